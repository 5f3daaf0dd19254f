"""Reports and pictures: HTML files that open offline, and what is drawn in them."""
