"""The delta rule with momentum."""

from typing import NamedTuple

import torch
from torch import Tensor

from linrec.engines.matrix import on_value_heads
from linrec.engines.numerics.decays import between, cumulative_decay, exclusive, grown, lower
from linrec.engines.numerics.triangular import solve_unit_lower
from linrec.engines.programs.program import PROGRAM, ProgramTerms, Run, heads_first
from linrec.rule import Decay, Options, Query, Strength, UnitKey, Unpack, Value, rule


class MomentumState(NamedTuple):
    """memory S and momentum M, both ``[B, HV, K, V]``."""

    memory: Tensor
    momentum: Tensor


@rule(engine=PROGRAM, state="2*K*V")
def momentum_delta(
    q: Query,
    k: UnitKey,
    v: Value,
    g: Decay,
    h: Decay,
    eta: Strength,
    beta: Strength,
    p: UnitKey | None = None,
    **options: Unpack[Options],
) -> ProgramTerms:
    """Delta rule with momentum and weight decay: Titans with a linear memory (Behrouz, Zhong, Mirrokni 2025,
    arXiv:2501.00663).

    .. code-block:: text

        M_t = e^{h_t} M_{t-1} + η_t k_t (v_t - S_{t-1}ᵀp_t)ᵀ,  S_t = e^{g_t} S_{t-1} + β_t M_t,  o_t = S_tᵀ q_t

    q, k ``[B, T, H, K]``, p the key of the prediction (default k), v ``[B, T, HV, V]``; ``[B, T, HV]``: g log-decay of
    the memory and h of the momentum, both <= 0, eta the learning rate, beta the step. h = -inf and beta = 1 would be
    :func:`weight_decay_delta`. The state is a ``MomentumState(memory, momentum)``; ``scale`` (default K^-1/2)
    multiplies q.
    """
    predict = k if p is None else p

    def body(run: Run, x: dict[str, Tensor], state: MomentumState) -> tuple[Tensor, MomentumState]:
        spread = {n: on_value_heads(x[n], v) for n in ("q", "k", "p")}
        spread["q"] = spread["q"] * run.scale
        return run.chunks(_one_chunk, x | spread, state)

    def empty(rows: int) -> MomentumState:
        zeros = v.new_zeros(rows, v.shape[2], k.shape[3], v.shape[3])
        return MomentumState(zeros, zeros)

    tensors = {"q": q, "k": k, "p": predict, "v": v, "g": g, "h": h, "eta": eta, "beta": beta}
    return ProgramTerms(tensors, body, empty, out=tuple(v.shape[2:]))


def _one_chunk(x: dict[str, Tensor], state: MomentumState) -> tuple[Tensor, MomentumState]:
    """The chunk form: the error of token j reaches the memory of token t with the weight ``reach[t, j]``.

    reach = decay(g) Diag(beta) decay(h): momentum carries it from j to i, the step i adds it, the memory keeps it.
    """
    q, k, p, v = (heads_first(x[n]) for n in ("q", "k", "p", "v"))
    g, h, eta, beta = (heads_first(x[n])[..., None] for n in ("g", "h", "eta", "beta"))
    slow, fast = cumulative_decay(g), cumulative_decay(h)
    keep = lower(v.shape[-2], v.device)
    kept = between(slow, slow, keep, v) * beta.mT
    reach = kept @ between(fast, fast, keep, v)
    carried = kept @ grown(fast, v)  # weight of the entry momentum
    earlier = torch.cat([torch.zeros_like(reach[..., :1, :]), reach[..., :-1, :]], dim=-2)
    expected = grown(exclusive(slow), v) * (p @ state.memory) + exclusive(carried) * (p @ state.momentum)
    error = solve_unit_lower(-eta * (p @ k.mT) * earlier, eta * (v - expected))
    o = grown(slow, v) * (q @ state.memory) + carried * (q @ state.momentum) + ((q @ k.mT) * reach) @ error
    last, end = slice(-1, None), fast[..., -1:, :]
    memory = grown(slow[..., last, :], v) * state.memory + carried[..., last, :] * state.momentum
    memory = memory + (k * reach[..., last, :].mT).mT @ error
    momentum = grown(end, v) * state.momentum + (k * grown(end - fast, v)).mT @ error
    return heads_first(o), MomentumState(memory, momentum)
