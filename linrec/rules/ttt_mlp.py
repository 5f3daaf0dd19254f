"""TTT-MLP."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.fastweight import FASTWEIGHT, RowTerms
from linrec.rule import Key, Query, rule
from linrec.rules.ttt_linear import SEQUENTIAL, Bias, LearningRate, Norm, Target, TokenFactor, ttt_terms

Up = Annotated[Tensor, Arg("H K P")]
UpBias = Annotated[Tensor, Arg("H P")]
Down = Annotated[Tensor, Arg("H P K")]


@rule(
    engine=FASTWEIGHT,
    cite="Sun et al. 2024, arXiv:2407.04620",
    equation="as TTT-Linear, with f(x) = gelu(x W_1 + b_1) W_2 + b_2",
    state="2*(2*K*P+P+K)",
    scale="1",
    missing={"parallel": SEQUENTIAL},
)
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
) -> RowTerms:
    """Test-time training of a two-layer network, TTT-MLP (Sun et al. 2024, arXiv:2407.04620).

    .. code-block:: text

        f(x) = gelu(x W1 + b1) W2 + b2;     loss_j = |LN(f(k_j)) - (v_j - k_j)|^2 / 2
        W_i = W_start - token_i sum_{j <= i} lr_j grad loss_j(W_start)         for each of W1, b1, W2, b2
        o_i = q_i + LN(f_i(q_i))

    with gelu's tanh form; w1 ``[H, K, P]``, b1 ``[H, P]``, w2 ``[H, P, K]``, b2 ``[H, K]`` (the paper's P is 4 K), the
    rest as in :func:`ttt_linear`.
    """
    return ttt_terms(q, k, v, lr, token, (norm_weight, norm_bias), [(w1, b1), (w2, b2)])
