"""Mamba-3 with several inputs and outputs a head."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.programs.program import PROGRAM, ProgramTerms, Run
from linrec.rule import Options, Unpack, rule
from linrec.rules.mamba3 import (
    Angle,
    Input,
    Mamba3State,
    Mixing,
    Rate,
    Skip,
    TimeStep,
    check_angles,
    turning_trapezoid,
)

Projections = Annotated[Tensor, Arg("B T G R N")]
Spread = Annotated[Tensor, Arg("HV R P")]


@rule(engine=PROGRAM, state="N*P+R*N+P", scale="1")
def mamba3_mimo(
    x: Input,
    dt: TimeStep,
    A: Rate,
    B: Projections,
    C: Projections,
    lam: Mixing,
    theta: Angle,
    mimo_x: Spread,
    D: Skip | None = None,
    **options: Unpack[Options],
) -> ProgramTerms:
    """Mamba-3 of rank R, multiple inputs and outputs (Lahoti, Li, Chen et al. 2026, arXiv:2603.15569).

    .. code-block:: text

        S_t = α_t Q_t (S_{t-1} + (1-λ_t) dt_t U_{t-1}) + λ_t dt_t U_t,  U_t = Σ_r B_tr (x_t⊙m_r)ᵀ
        y_tr = S_tᵀ C_tr + D x_t⊙m_r,  α_t = e^{dt_t A}, Q_t turns pairs by -θ_t

    m is ``mimo_x``; a pair are the channels 2i and 2i + 1, i < J. x ``[B, T, HV, P]``, dt ``[B, T, HV]`` > 0, A
    ``[HV]`` < 0, B and C ``[B, T, G, R, N]``, lam ``[B, T, HV]`` in (0, 1), theta ``[B, T, HV, J]`` with J <= N / 2,
    mimo_x ``[HV, R, P]``, D ``[HV]`` or None; y ``[B, T, HV, R, P]``. R = 1 is :func:`mamba3`, whose state this is,
    with k ``[B, HV, R, N]``; ``scale`` (default 1) multiplies C. Cost: R micro steps a token, which ``chunk_size``
    counts. Raises ShapeError if J > N / 2.
    """
    check_angles("mamba3_mimo", theta, B)

    def body(run: Run, t: dict[str, Tensor], state: Mamba3State) -> tuple[Tensor, Mamba3State]:
        v, v_before = (values[..., None, :] * mimo_x for values in (t["x"], state.v))
        y, last = turning_trapezoid(run, t, v, A, state, v_before)
        return y if D is None else y + D[:, None, None] * v, last

    def empty(rows: int) -> Mamba3State:
        heads, narrow = x.shape[2:]
        ranks, wide = B.shape[3:]
        return Mamba3State(
            *(x.new_zeros(rows, heads, *s) for s in ((wide, narrow), (ranks, wide), (narrow,)))
        )

    tensors = {"x": x, "dt": dt, "B": B, "C": C, "lam": lam, "theta": theta}
    return ProgramTerms(tensors, body, empty, out=(x.shape[2], B.shape[3], x.shape[3]))
