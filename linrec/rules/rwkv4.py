"""RWKV-4's attention."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.wkv import WKV, WKVTerms
from linrec.rule import Channels, Options, Unpack, rule

ConstantDecay = Annotated[Tensor, Arg("D", draw="log_decay")]
Bonus = Annotated[Tensor, Arg("D")]


@rule(engine=WKV, state="3", scale="1")
def rwkv4(k: Channels, v: Channels, w: ConstantDecay, u: Bonus, **options: Unpack[Options]) -> WKVTerms:
    """RWKV-4's WKV (Peng et al. 2023, arXiv:2305.13048).

    .. code-block:: text

        o_t = (Σ_{j<t} e^{(t-1-j)w + k_j} v_j + e^{u+k_t} v_t) / (the same with v = 1)

    k (any number: it is the logarithm of a weight) and v ``[B, T, D]``, w ``[D]`` log-decay <= 0 (the model's
    -e^{raw}), u ``[D]`` bonus of the current token, which is not decayed; the token before it is not either. State
    ``WKVState(num, den, m)``, each ``[B, D]``, scaled by e^{-m}; ``scale`` (default 1) multiplies o_t (there is no q).
    """
    return WKVTerms(k, v, w, u)
