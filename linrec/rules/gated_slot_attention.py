"""Gated slot attention: softmax attention to a fixed number of slots, which decay."""

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import MatrixTerms, on_value_heads
from linrec.engines.numerics.forward_mode import softmax
from linrec.engines.programs.program import PROGRAM, ProgramTerms, Run
from linrec.engines.programs.two_sided import two_sided
from linrec.rule import Key, Options, Query, Unpack, Value, rule

SlotDecay = Annotated[Tensor, Arg("B T HV M", draw="log_decay")]


class SlotState(NamedTuple):
    """Transposed slot keys ``[B, HV, K, M]`` and slot values ``[B, HV, M, V]``."""

    keys: Tensor
    values: Tensor


@rule(engine=PROGRAM, state="M*(K+V)")
def gated_slot_attention(
    q: Query, k: Key, v: Value, g: SlotDecay, **options: Unpack[Options]
) -> ProgramTerms:
    """Gated slot attention: two passes of gated linear attention (Zhang et al. 2024, arXiv:2409.07146).

    .. code-block:: text

        K̃_t = Diag(e^{g_t}) K̃_{t-1} + (1-e^{g_t}) k_tᵀ
        Ṽ_t likewise with v_t
        o_t = Ṽ_tᵀ softmax(K̃_t q_t)

    q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, g ``[B, T, HV, M]`` log-decay <= 0 of each of the M slots. The state is
    a ``SlotState(keys, values)``; ``scale`` (default K^-1/2) multiplies q.
    """

    def body(run: Run, x: dict[str, Tensor], state: SlotState) -> tuple[Tensor, SlotState]:
        q, k = (on_value_heads(x[n], x["v"]) for n in ("q", "k"))
        return attend_slots(run, q * run.scale, k, x["v"], -torch.expm1(x["g"]), x["g"], state)

    return ProgramTerms(
        {"q": q, "k": k, "v": v, "g": g},
        body,
        lambda rows: empty_slots(k, v, g, rows),
        out=tuple(v.shape[2:]),
    )


def empty_slots(k: Tensor, v: Tensor, g: Tensor, rows: int) -> SlotState:
    """Zero slots for ``rows`` sequences; k ``[B, T, HV, K]``, v ``[B, T, HV, V]``, g ``[B, T, HV, M]``."""
    heads, slots = g.shape[2:]
    return SlotState(v.new_zeros(rows, heads, k.shape[3], slots), v.new_zeros(rows, heads, slots, v.shape[3]))


def attend_slots(
    run: Run, q: Tensor, k: Tensor, v: Tensor, write: Tensor, g: Tensor, state: SlotState
) -> tuple[Tensor, SlotState]:
    """The two passes, on value heads: scores of the slots by a value-side decay, then their values by a key-side one.

    q, k ``[B, T, HV, K]``, v ``[B, T, HV, V]``, write and g ``[B, T, HV, M]``: how much of the token each slot takes,
    and its log-decay.
    """
    scores, keys = two_sided(run, q, k, write, None, g, state.keys)
    o, values = run.matrix(MatrixTerms(softmax(scores), write, v, g), state.values)
    return o, SlotState(keys, values)
