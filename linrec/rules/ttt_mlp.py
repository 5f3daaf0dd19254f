"""TTT-MLP."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.fastweight import FASTWEIGHT, RowTerms
from linrec.rule import Key, Options, Query, Unpack, rule
from linrec.rules.ttt_linear import SEQUENTIAL, Bias, LearningRate, Norm, Target, TokenFactor, ttt_terms

Up = Annotated[Tensor, Arg("H K P")]
UpBias = Annotated[Tensor, Arg("H P")]
Down = Annotated[Tensor, Arg("H P K")]


@rule(engine=FASTWEIGHT, state="2*(2*K*P+P+K)", scale="1", missing={"parallel": SEQUENTIAL})
def ttt_mlp(
    q: Query,
    k: Key,
    v: Target,
    lr: LearningRate,
    token: TokenFactor,
    norm_weight: Norm,
    norm_bias: Norm,
    w1: Up,
    b1: UpBias,
    w2: Down,
    b2: Bias,
    **options: Unpack[Options],
) -> RowTerms:
    """Test-time training of a two-layer network, TTT-MLP (Sun et al. 2024, arXiv:2407.04620).

    .. code-block:: text

        as TTT-Linear, with f(x) = gelu(x W_1 + b_1) W_2 + b_2

        W_t = W_0 - token_t Σ_{j≤t} lr_j ∇½|LN(f(k_j)) - (v_j - k_j)|² for each of W_1, b_1, W_2, b_2
        o_t = q_t + LN(f_t(q_t))

    with gelu's tanh form; w1 ``[H, K, P]``, b1 ``[H, P]``, w2 ``[H, P, K]``, b2 ``[H, K]`` (the paper's P is 4 K), the
    rest as in :func:`ttt_linear`.
    """
    return ttt_terms(q, k, v, lr, token, (norm_weight, norm_bias), [(w1, b1), (w2, b2)])
