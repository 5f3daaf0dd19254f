"""Rules that are more than one call of an engine, and what several of them share."""
