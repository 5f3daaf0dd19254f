"""Mamba-3: the trapezoidal rule and rotating states."""

from typing import Annotated, NamedTuple

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import on_value_heads
from linrec.engines.programs.program import PROGRAM, ProgramTerms, Run
from linrec.engines.programs.rotation import cumulative_angle, turn, turn_rows
from linrec.engines.programs.trapezoid import trapezoid
from linrec.errors import ShapeError
from linrec.rule import Options, Unpack, rule

Input = Annotated[Tensor, Arg("B T HV P")]
TimeStep = Annotated[Tensor, Arg("B T HV", draw="positive")]
Rate = Annotated[Tensor, Arg("HV", draw="negative")]
Projection = Annotated[Tensor, Arg("B T G N")]
Mixing = Annotated[Tensor, Arg("B T HV", draw="strength")]
Angle = Annotated[Tensor, Arg("B T HV J", draw="logit")]
Skip = Annotated[Tensor, Arg("HV")]


class Mamba3State(NamedTuple):
    """memory ``[B, HV, N, P]``; the last token's k ``[B, HV, N]`` (rank R: ``[B, HV, R, N]``) and v ``[B, HV, P]``."""

    memory: Tensor
    k: Tensor
    v: Tensor


@rule(engine=PROGRAM, state="N*P+N+P", scale="1")
def mamba3(
    x: Input,
    dt: TimeStep,
    A: Rate,
    B: Projection,
    C: Projection,
    lam: Mixing,
    theta: Angle,
    D: Skip | None = None,
    **options: Unpack[Options],
) -> ProgramTerms:
    """Mamba-3, single input and output (Lahoti, Li, Chen et al. 2026, arXiv:2603.15569).

    .. code-block:: text

        S_t = α_t R_t (S_{t-1} + (1-λ_t) dt_t B_{t-1} x_{t-1}ᵀ) + λ_t dt_t B_t x_tᵀ
        y_t = S_tᵀ C_t + D x_t,  α_t = e^{dt_t A}, R_t turns pairs by -θ_t

    A pair are the channels 2i and 2i + 1, i < J. x ``[B, T, HV, P]``, dt ``[B, T, HV]`` > 0, A ``[HV]`` < 0, B and C
    ``[B, T, G, N]`` with their biases added, lam ``[B, T, HV]`` in (0, 1), theta ``[B, T, HV, J]`` with J <= N / 2 (the
    paper's dt pi tanh(raw)), D ``[HV]`` or None. Turning the state is the paper's rotation of B and C by the cumulative
    angle. The state is a ``Mamba3State(memory, k, v)``; ``scale`` (default 1) multiplies C. lam = 1 and theta = 0 is
    Mamba-2. Raises ShapeError if J > N / 2.
    """
    check_angles("mamba3", theta, B)

    def body(run: Run, t: dict[str, Tensor], state: Mamba3State) -> tuple[Tensor, Mamba3State]:
        ranked = {**t, "B": t["B"][..., None, :], "C": t["C"][..., None, :]}
        values = t["x"][..., None, :]
        y, last = turning_trapezoid(
            run, ranked, values, A, state._replace(k=state.k[:, :, None]), state.v[:, :, None]
        )
        y = y.squeeze(3)
        return y if D is None else y + D[:, None] * t["x"], last._replace(k=last.k.squeeze(2))

    def empty(rows: int) -> Mamba3State:
        heads, wide, narrow = x.shape[2], B.shape[3], x.shape[3]
        return Mamba3State(*(x.new_zeros(rows, heads, *s) for s in ((wide, narrow), (wide,), (narrow,))))

    tensors = {"x": x, "dt": dt, "B": B, "C": C, "lam": lam, "theta": theta}
    return ProgramTerms(tensors, body, empty, out=tuple(x.shape[2:]))


def check_angles(who: str, theta: Tensor, B: Tensor) -> None:
    """ShapeError if more pairs would turn, theta ``[B, T, HV, J]``, than there are, B ``[B, T, G, ..., N]``."""
    if 2 * theta.shape[3] > B.shape[-1]:
        raise ShapeError(f"{who}: J must be at most N / 2, got J={theta.shape[3]}, N={B.shape[-1]}")


def turning_trapezoid(
    run: Run, t: dict[str, Tensor], v: Tensor, A: Tensor, state: Mamba3State, v_before: Tensor
) -> tuple[Tensor, Mamba3State]:
    """y ``[B, T, HV, R, P]`` without the skip, and the last state; B, C in ``t`` and k in ``state`` have a rank axis.

    v ``[B, T, HV, R, P]`` are the values of the tokens, v_before ``[B, HV, R, P]`` those of the token before; A
    ``[HV]``.
    """
    angle = cumulative_angle(t["theta"])
    q, k = (turn(on_value_heads(t[n], t["x"]), angle[..., None, :]) for n in ("C", "B"))
    shares = t["lam"] * t["dt"], (1 - t["lam"]) * t["dt"]
    start = state.memory, state.k, v_before
    y, memory = trapezoid(run, q * run.scale, k, v, t["dt"] * A, shares, start)
    last = angle[:, -1]
    return y, Mamba3State(turn_rows(memory, -last), turn(k[:, -1], -last[:, :, None]), t["x"][:, -1])
