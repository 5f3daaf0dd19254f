"""Speed, side by side in one process: each result is checked against the peer's before it is timed."""
