"""Large-chunk test-time training (LaCT)."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.fastweight import FASTWEIGHT, LargeChunkTerms
from linrec.errors import ShapeError
from linrec.rule import Key, Options, Query, Unpack, rule
from linrec.rules.titans import Written
from linrec.rules.ttt_linear import SEQUENTIAL, LearningRate

Up = Annotated[Tensor, Arg("H K P")]
Down = Annotated[Tensor, Arg("H P V")]


@rule(engine=FASTWEIGHT, state="2*(2*K*P+P*V)", scale="1", missing={"parallel": SEQUENTIAL})
def large_chunk_ttt(
    q: Query,
    k: Key,
    v: Written,
    lr: LearningRate,
    w1: Up,
    w2: Down,
    w3: Up,
    mini_batch: int = 64,
    muon: bool = True,
    **options: Unpack[Options],
) -> LargeChunkTerms:
    """Test-time training in large chunks, LaCT (Zhang et al. 2025, arXiv:2505.23884).

    .. code-block:: text

        o_t = f(q_t),  f(x) = (silu(x W_1) ⊙ x W_3) W_2
        after a chunk W ← W + Muon(∇ Σ lr_j v_j·f(k_j))

    Outputs are those of the weights at the chunk's start, each of W1, W2 and W3 is changed at its end. Tokens of one
    chunk do not see each other: the model pairs the memory with window attention. q, k ``[B, T, H, K]``, v
    ``[B, T, H, V]``, lr ``[B, T, H]``, first weights w1, w3 ``[H, K, P]``, w2 ``[H, P, V]``. A chunk has ``mini_batch``
    tokens (the paper's: 2048 and more); ``muon=False`` takes the plain gradient. The state is a ``FastState`` of
    differences from the first weights and the gradient so far. ``scale`` multiplies q; default 1. Raises ShapeError for
    a mini_batch below 1.
    """
    if mini_batch < 1:
        raise ShapeError(f"large_chunk_ttt: mini_batch must be a positive integer, got {mini_batch!r}")
    return LargeChunkTerms(q, k, v, (w1, w2, w3), mini_batch, lr, muon)
