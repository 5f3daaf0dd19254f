"""GateLoop: complex decays, that is, decay and rotation."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import MatrixTerms, on_value_heads
from linrec.engines.programs.program import PROGRAM, ProgramTerms, Run
from linrec.engines.programs.rotation import cumulative_angle, turn, turn_rows
from linrec.errors import ShapeError
from linrec.rule import Key, Options, Query, Unpack, Value, rule

PairDecay = Annotated[Tensor, Arg("B T HV J", draw="log_decay")]
PairAngle = Annotated[Tensor, Arg("B T HV J", draw="logit")]


@rule(engine=PROGRAM, scale="1")
def gateloop(
    q: Query, k: Key, v: Value, g: PairDecay, theta: PairAngle, **options: Unpack[Options]
) -> ProgramTerms:
    """GateLoop: linear attention with data-dependent complex decays (Katsch 2023, arXiv:2311.01927).

    .. code-block:: text

        S_t = Diag(e^{g_t + iθ_t}) S_{t-1} + k̄_t v_tᵀ,  o_t = Re(S_tᵀ q_t),  K/2 complex channels

    q, k ``[B, T, H, K]`` hold J = K / 2 complex channels, real and imaginary parts at 2i and 2i + 1; v
    ``[B, T, HV, V]``, g log-decay <= 0 and theta angle ``[B, T, HV, J]``. State ``[B, HV, K, V]``: real and negated
    imaginary parts; ``scale`` (default 1) multiplies q. Raises ShapeError unless K = 2 J. theta = 0 is gated linear
    attention with a decay for every pair.
    """
    if k.shape[3] != 2 * g.shape[3]:
        raise ShapeError(f"gateloop: K must be 2 J, got K={k.shape[3]}, J={g.shape[3]}")

    def body(run: Run, x: dict[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        angle = cumulative_angle(x["theta"])
        q, k = (turn(on_value_heads(x[n], x["v"]), angle) for n in ("q", "k"))
        decay = x["g"].repeat_interleave(2, dim=-1)  # B T HV J -> B T HV (J 2)
        o, state = run.matrix(MatrixTerms(q, k, x["v"], decay), state, run.scale)
        return o, turn_rows(state, -angle[:, -1])

    return ProgramTerms(
        {"q": q, "k": k, "v": v, "g": g, "theta": theta},
        body,
        lambda rows: v.new_zeros(rows, v.shape[2], k.shape[3], v.shape[3]),
        out=tuple(v.shape[2:]),
    )
