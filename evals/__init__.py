"""Evaluation and benchmarks, imported as ``linrec.evals``."""
