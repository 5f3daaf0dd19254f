"""Language models over the kit's layers, imported as ``linrec.models``."""
