"""Test-time training: the state is a small network, and every token is a step of its training.

Gradients are taken at the weights with which a mini-batch starts, so that a mini-batch is matrix products.
``engine`` goes through mini-batches and keeps track of unfinished ones; ``dual`` reads with every token's own weights
without forming them (TTT, Titans); ``large_chunk`` applies first and updates at the end of a chunk (LaCT), with
Muon's step from ``muon``.
"""

from linrec.engines.fastweight.dual import MomentumTerms, RowTerms
from linrec.engines.fastweight.engine import FASTWEIGHT, FastState
from linrec.engines.fastweight.large_chunk import LargeChunkTerms
from linrec.engines.fastweight.muon import orthogonalised

__all__ = ["FASTWEIGHT", "FastState", "LargeChunkTerms", "MomentumTerms", "RowTerms", "orthogonalised"]
