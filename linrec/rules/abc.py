"""Attention with bounded memory control."""

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import on_value_heads
from linrec.engines.numerics.forward_mode import logcumsumexp
from linrec.engines.programs.program import PROGRAM, ProgramTerms, Run
from linrec.rule import Key, Options, Query, Unpack, Value, rule
from linrec.rules.gated_slot_attention import SlotState, attend_slots, empty_slots

LEAST = -1e4  # a logit below is of no weight beside any other, and takes part with this one: -inf has no sums
SlotLogits = Annotated[Tensor, Arg("B T HV M", draw="logit")]


class ABCState(NamedTuple):
    """The slots, and the log of the weights they have taken so far ``[B, HV, M]`` (-inf when empty)."""

    slots: SlotState
    log_weight: Tensor


@rule(engine=PROGRAM, state="M*(K+V+1)")
def abc(q: Query, k: Key, v: Value, z: SlotLogits, **options: Unpack[Options]) -> ProgramTerms:
    """Attention with bounded memory control, ABC (Peng et al. 2021, arXiv:2110.02488).

    .. code-block:: text

        K̃_t = Σ_{j≤t} softmax_j(z_j) k_jᵀ,  Ṽ_t likewise with v,  o_t = Ṽ_tᵀ softmax(K̃_t q_t)

        Z_t = log Σ_{j≤t} e^{z_j},  each slot holds the average of the tokens weighted by e^{z_j - Z_t}

    Gated slot attention with decay Z_{t-1} - Z_t and write e^{z_t - Z_t}. q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, z
    ``[B, T, HV, M]`` logits of the M slots, unbounded (-inf: the token takes no part unless there is no other). The
    state is an ``ABCState(slots, log_weight)``; ``scale`` (default K^-1/2) multiplies q.
    """

    def body(run: Run, x: dict[str, Tensor], state: ABCState) -> tuple[Tensor, ABCState]:
        q, k = (on_value_heads(x[n], x["v"]) for n in ("q", "k"))
        start, z = state.log_weight[:, None], x["z"].clamp(min=LEAST)
        total = torch.logaddexp(start, logcumsumexp(z))
        before = torch.cat([start, total[:, :-1]], dim=1)
        fresh = torch.isneginf(before)  # nothing was there to decay
        g = torch.where(fresh, 0.0, torch.where(fresh, total, before) - total).clamp(max=0)
        write = (z - total).clamp(max=0).exp()
        o, slots = attend_slots(run, q * run.scale, k, x["v"], write, g, state.slots)
        return o, ABCState(slots, total[:, -1])

    return ProgramTerms(
        {"q": q, "k": k, "v": v, "z": z},
        body,
        lambda rows: ABCState(empty_slots(k, v, z, rows), v.new_full((rows, *z.shape[2:]), -torch.inf)),
        out=tuple(v.shape[2:]),
    )
