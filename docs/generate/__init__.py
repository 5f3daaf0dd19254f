"""What the documentation site makes of the registry at build time; docs/hooks.py gives it to MkDocs."""
