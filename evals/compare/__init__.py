"""``linrec compare``: mixers side by side as byte-level language models of equal size."""
