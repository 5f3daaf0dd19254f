"""Triton kernels of the matrix engine."""
