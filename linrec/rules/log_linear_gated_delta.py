"""The log-linear gated delta rule."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import delta_terms
from linrec.engines.programs.fenwick import LevelState, empty_levels, fenwick
from linrec.engines.programs.program import PROGRAM, ProgramTerms, Run
from linrec.rule import Decay, Options, Query, Strength, UnitKey, Unpack, Value, rule

LevelWeights = Annotated[Tensor, Arg("B T HV L", draw="strength")]


@rule(engine=PROGRAM, state="L*K*V")
def log_linear_gated_delta(
    q: Query, k: UnitKey, v: Value, g: Decay, beta: Strength, lam: LevelWeights, **options: Unpack[Options]
) -> ProgramTerms:
    """Log-linear gated DeltaNet (Guo et al. 2025, arXiv:2506.04761).

    .. code-block:: text

        S_t^{(l)} = e^{g_t} (I - β_t k_t k_tᵀ) S_{t-1}^{(l)}
        S_t^{(0)} = β_t k_t v_tᵀ
        o_t = Σ_l λ_{t,l} S_t^{(l)ᵀ} q_t

    Levels merge as in :func:`log_linear_attention`. Shapes as in :func:`gated_delta_net`; lam ``[B, T, HV, L]``. The
    state is a ``LevelState(memory [B, L, HV, K, V], seen [B])``; ``scale`` (default K^-1/2) multiplies q. lam = 1 is
    the gated delta rule.
    """

    def body(run: Run, x: dict[str, Tensor], state: LevelState) -> tuple[Tensor, LevelState]:
        terms = delta_terms(x["q"] * run.scale, x["k"], x["v"], x["g"], write=x["beta"])
        return fenwick(run, terms, x["lam"], state)

    return ProgramTerms(
        {"q": q, "k": k, "v": v, "g": g, "beta": beta, "lam": lam},
        body,
        lambda rows: empty_levels(v, lam.shape[3], k.shape[3], rows),
        out=tuple(v.shape[2:]),
    )
