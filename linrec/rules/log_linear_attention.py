"""Log-linear attention."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import MatrixTerms
from linrec.engines.programs.fenwick import LevelState, empty_levels, fenwick
from linrec.engines.programs.program import PROGRAM, ProgramTerms, Run
from linrec.rule import Decay, Key, Options, Query, Unpack, Value, rule

LevelWeights = Annotated[Tensor, Arg("B T HV L", draw="strength")]


@rule(engine=PROGRAM, state="L*K*V")
def log_linear_attention(
    q: Query, k: Key, v: Value, g: Decay, lam: LevelWeights, **options: Unpack[Options]
) -> ProgramTerms:
    """Log-linear attention over scalar-gated linear attention (Guo et al. 2025, arXiv:2506.04761).

    .. code-block:: text

        o_t = Σ_{j≤t} λ_{t,lev(t,j)} e^{g_{j+1}+…+g_t} (q_t·k_j) v_j,  lev(t,j) = bitlength(t xor j)

    q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, g ``[B, T, HV]`` log-decay <= 0, lam ``[B, T, HV, L]`` weights of the
    levels, indexed by the query. Times t and j count from 0, and levels end at L - 1: L levels tell 2^(L - 1) tokens
    apart; beyond, the last level holds all that is older. The state is a
    ``LevelState(memory [B, L, HV, K, V], seen [B])``; ``scale`` (default K^-1/2) multiplies q. lam = 1 is :func:`gla`.
    """

    def body(run: Run, x: dict[str, Tensor], state: LevelState) -> tuple[Tensor, LevelState]:
        terms = MatrixTerms(x["q"] * run.scale, x["k"], x["v"], x["g"])
        return fenwick(run, terms, x["lam"], state)

    return ProgramTerms(
        {"q": q, "k": k, "v": v, "g": g, "lam": lam},
        body,
        lambda rows: empty_levels(v, lam.shape[3], k.shape[3], rows),
        out=tuple(v.shape[2:]),
    )
