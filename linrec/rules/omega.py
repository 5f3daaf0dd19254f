"""The Omega rule: every token takes a gradient step on the last R tokens together."""

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import on_value_heads
from linrec.engines.programs.program import PROGRAM, ProgramTerms, Run
from linrec.engines.programs.simultaneous import simultaneous
from linrec.rule import Decay, Options, Query, UnitKey, Unpack, Value, rule

WindowStrength = Annotated[Tensor, Arg("B T HV R", draw="strength")]


class WindowState(NamedTuple):
    """memory ``[B, HV, K, V]``; the last R - 1 keys ``[B, R - 1, H, K]`` and values ``[B, R - 1, HV, V]``."""

    memory: Tensor
    k: Tensor
    v: Tensor


@rule(engine=PROGRAM, state="K*V+(R-1)*(K+V)")
def omega(
    q: Query, k: UnitKey, v: Value, g: Decay, eta: WindowStrength, **options: Unpack[Options]
) -> ProgramTerms:
    """Omega rule with a linear memory and plain gradient steps (Behrouz et al. 2025, arXiv:2505.23735).

    .. code-block:: text

        S_t = e^{g_t} S_{t-1} + Σ_{r<R} η_tr k_{t-r} (v_{t-r} - S_{t-1}ᵀk_{t-r})ᵀ,  o_t = S_tᵀ q_t

    q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, g ``[B, T, HV]`` log-decay <= 0, eta ``[B, T, HV, R]``: weight of the
    token r places back in a window of R; tokens before the first do not count. R = 1 is :func:`weight_decay_delta`. The
    state is a ``WindowState(memory, k, v)``; ``scale`` (default K^-1/2) multiplies q.
    """
    window = eta.shape[3]

    def body(run: Run, x: dict[str, Tensor], state: WindowState) -> tuple[Tensor, WindowState]:
        k, v = torch.cat([state.k, x["k"]], dim=1), torch.cat([state.v, x["v"]], dim=1)
        q, keys = (on_value_heads(y, x["v"]) for y in (x["q"] * run.scale, _windows(k, window)))
        o, memory = simultaneous(run, q, keys, _windows(v, window), x["g"], x["eta"], state.memory)
        length = x["v"].shape[1]
        return o, WindowState(memory, k[:, length:], v[:, length:])

    def empty(rows: int) -> WindowState:
        memory = v.new_zeros(rows, v.shape[2], k.shape[3], v.shape[3])
        return WindowState(memory, *(x.new_zeros(rows, window - 1, *x.shape[2:]) for x in (k, v)))

    tensors = {"q": q, "k": k, "v": v, "g": g, "eta": eta}
    return ProgramTerms(tensors, body, empty, out=tuple(v.shape[2:]))


def _windows(x: Tensor, size: int) -> Tensor:
    """``[B, size - 1 + T, H, K] -> [B, T, H, size, K]``, the newest token of each window first."""
    length = x.shape[1] - size + 1
    return torch.stack([x[:, size - 1 - r : size - 1 - r + length] for r in range(size)], dim=3)
