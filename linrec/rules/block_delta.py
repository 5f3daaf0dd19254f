"""Block delta rule: several pairs a token, all predicted from the same state."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import on_value_heads
from linrec.engines.programs.program import PROGRAM, ProgramTerms, Run
from linrec.engines.programs.simultaneous import simultaneous
from linrec.rule import Decay, Options, Query, Unpack, rule

Keys = Annotated[Tensor, Arg("B T H R K", draw="unit")]
Values = Annotated[Tensor, Arg("B T HV R V")]
Strengths = Annotated[Tensor, Arg("B T HV R", draw="strength")]


@rule(engine=PROGRAM)
def block_delta(
    q: Query, k: Keys, v: Values, g: Decay, eta: Strengths, **options: Unpack[Options]
) -> ProgramTerms:
    """Block delta rule: one gradient step on R pairs a token (Behrouz et al. 2025, arXiv:2505.23735).

    .. code-block:: text

        S_t = e^{g_t} S_{t-1} + Σ_r η_tr k_tr (v_tr - S_{t-1}ᵀk_tr)ᵀ,  o_t = S_tᵀ q_t

    q ``[B, T, H, K]``, k ``[B, T, H, R, K]``, v ``[B, T, HV, R, V]``, g ``[B, T, HV]`` log-decay <= 0, eta
    ``[B, T, HV, R]``; stable while the eigenvalues of sum_r eta k k^T stay below 1 + e^g. R = 1 is
    :func:`weight_decay_delta`; unlike :func:`delta_product` the pairs do not see each other. State ``[B, HV, K, V]``;
    ``scale`` (default K^-1/2) multiplies q.
    """

    def body(run: Run, x: dict[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (on_value_heads(x[n], x["v"]) for n in ("q", "k"))
        return simultaneous(run, q * run.scale, k, x["v"], x["g"], x["eta"], state)

    heads, _, width = v.shape[2:]
    return ProgramTerms(
        {"q": q, "k": k, "v": v, "g": g, "eta": eta},
        body,
        lambda rows: v.new_zeros(rows, heads, k.shape[4], width),
        out=(heads, width),
    )
