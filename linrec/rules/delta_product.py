"""DeltaProduct: several delta steps a token."""

from typing import Annotated

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import delta_terms
from linrec.engines.programs.program import PROGRAM, ProgramTerms, Run, micro_steps
from linrec.rule import Decay, Options, Query, Unpack, rule

Keys = Annotated[Tensor, Arg("B T H R K", draw="unit")]
Values = Annotated[Tensor, Arg("B T HV R V")]
Strengths = Annotated[Tensor, Arg("B T HV R", draw="strength")]


@rule(engine=PROGRAM)
def delta_product(
    q: Query, k: Keys, v: Values, g: Decay, beta: Strengths, **options: Unpack[Options]
) -> ProgramTerms:
    """DeltaProduct: one decay, then R delta steps, then the readout (Siems et al. 2025, arXiv:2502.10297; negative
    eigenvalues: Grazzi et al. 2024, arXiv:2411.12537).

    .. code-block:: text

        S ← e^{g_t} S_{t-1},  S ← S + β_tr k_tr (v_tr - Sᵀk_tr)ᵀ for r = 1 .. R,  S_t = S,  o_t = S_tᵀ q_t

    q ``[B, T, H, K]``, k ``[B, T, H, R, K]`` of unit norm, v ``[B, T, HV, R, V]``, g ``[B, T, HV]`` log-decay <= 0,
    beta ``[B, T, HV, R]``, in (0, 2) for negative eigenvalues: beta = 2 is a reflection, two of them make a rotation. R
    = 1 is the gated delta rule. State ``[B, HV, K, V]``; ``scale`` (default K^-1/2) multiplies q. ``chunk_size`` counts
    micro steps.
    """
    heads, steps, width = v.shape[2:]

    def body(run: Run, x: dict[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        k, v, beta = (micro_steps(x[n]) for n in ("k", "v", "beta"))
        q = (x["q"] * run.scale).repeat_interleave(steps, dim=1)  # B T H K -> B (T R) H K
        later = x["g"].new_zeros(*x["g"].shape, steps - 1)
        decay = micro_steps(torch.cat([x["g"][..., None], later], dim=-1))
        terms = delta_terms(q, k, v, decay, write=beta)
        o, state = run.matrix(terms, state)
        return o[:, steps - 1 :: steps], state

    return ProgramTerms(
        {"q": q, "k": k, "v": v, "g": g, "beta": beta},
        body,
        lambda rows: v.new_zeros(rows, heads, k.shape[4], width),
        out=(heads, width),
    )
