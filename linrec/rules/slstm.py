"""sLSTM: exponential gates, scalar memory, and feedback of the output into the gates."""

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.cell import CELL, CellTerms
from linrec.engines.numerics.scans import EMPTY
from linrec.errors import UnknownNameError
from linrec.rule import Options, Unpack, Value, rule

Recurrent = Annotated[Tensor, Arg("HV V V")]
FEEDBACK = (
    "the gates read the previous output, so the step is not affine in the state and steps do not compose"
)
FORGET_GATES = {"sigmoid": F.logsigmoid, "exp": lambda f: f}


class SLSTMState(NamedTuple):
    """c, n, h, m, each ``[B, HV, V]``: cell and normaliser divided by e^m, output, running maximum."""

    c: Tensor
    n: Tensor
    h: Tensor
    m: Tensor


@rule(engine=CELL, state="4*V", scale="1", missing={"parallel": FEEDBACK, "chunkwise": FEEDBACK})
def slstm(
    z: Value,
    i: Value,
    f: Value,
    o: Value,
    Rz: Recurrent,
    Ri: Recurrent,
    Rf: Recurrent,
    Ro: Recurrent,
    forget_gate: str = "sigmoid",
    **options: Unpack[Options],
) -> CellTerms:
    """sLSTM of xLSTM (Beck et al. 2024, arXiv:2405.04517).

    .. code-block:: text

        c_t = f' c_{t-1} + e^{ĩ} tanh z̃,  n_t = f' n_{t-1} + e^{ĩ},  h_t = σ(õ) c_t / n_t
        f' = σ(f̃),  z̃ = z_t + R h_{t-1}, ĩ, f̃, õ likewise

        forget_gate="exp":  f' = e^{f̃}

    z, i, f, o ``[B, T, HV, V]`` before their nonlinearities, R ``[HV, V, V]`` for each of them (R[h] @ h_{t-1}). Stored
    relative to the running maximum m_t = max(log f' + m_{t-1}, ĩ), so ĩ may be any number. State
    ``SLSTMState(c, n, h, m)``; ``scale`` (default 1) multiplies h_t. Raises UnknownNameError for another forget gate.
    """
    if forget_gate not in FORGET_GATES:
        raise UnknownNameError(
            f"slstm: unknown forget_gate {forget_gate!r}; one of {', '.join(FORGET_GATES)}"
        )
    log_forget = FORGET_GATES[forget_gate]
    feedback = torch.cat([Rz, Ri, Rf, Ro], dim=1)

    def cell(t: Mapping[str, Tensor], s: SLSTMState) -> tuple[Tensor, SLSTMState]:
        echo = (feedback @ s.h[..., None])[..., 0]
        z, i, f, o = (t["gates"] + echo).chunk(4, dim=-1)
        kept = log_forget(f) + s.m
        m = torch.maximum(kept, i)
        decay, weight = (kept - m).exp(), (i - m).exp()
        c, n = decay * s.c + weight * z.tanh(), decay * s.n + weight
        h = o.sigmoid() * c / n
        return h, SLSTMState(c, n, h, m)

    def empty(rows: int) -> SLSTMState:
        shape = (rows, *z.shape[2:])
        return SLSTMState(*(z.new_full(shape, value) for value in (0.0, 0.0, 0.0, EMPTY)))

    return CellTerms({"gates": torch.cat([z, i, f, o], dim=-1)}, cell, empty, tuple(z.shape[2:]))
