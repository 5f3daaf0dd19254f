"""What linrec replaces, a mechanism a file; a file belongs by being here and naming its REPLACEMENTS."""
