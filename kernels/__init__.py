"""Triton kernels, arranged by stage, imported as ``linrec.kernels``."""
