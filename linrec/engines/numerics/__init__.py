"""What every engine computes with: scans, products, triangular systems, derivatives, and which call is fastest."""
