"""xLSTM's mLSTM."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec import rules
from linrec.integrations.transformers.calls import Mixing
from linrec.integrations.transformers.layout import apply
from linrec.integrations.transformers.replacement import Replacement
from linrec.integrations.transformers.states import moved_on
from linrec.layers.parts import widened
from linrec.rules.mlstm import MLSTMState

State = tuple[Tensor, Tensor, Tensor]  # C [B, H, K, V], n [B, H, K], m [B, H, 1]


def forward(
    mixing: Mixing,
    backend: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    igate: Tensor,
    fgate: Tensor,
    c_initial: Tensor | None = None,
    n_initial: Tensor | None = None,
    m_initial: Tensor | None = None,
    return_last_states: bool | None = None,
    mode: str | None = None,
) -> Tensor | tuple[Tensor, State]:
    """query, key ``[B, H, T, K]``, value ``[B, H, T, V]``, before activation igate, fgate ``[B, H, T]``; h like
    value, and the state: c_initial ``[B, H, K, V]``, n_initial ``[B, H, K]``, m_initial ``[B, H, 1]``."""
    heads_last = {"q": query, "k": key, "v": value, "g": F.logsigmoid(widened(fgate)), "i": igate}
    tensors = {name: x.transpose(1, 2) for name, x in heads_last.items()}
    layout = mixing.layout_over(query.shape[0], query.shape[2])
    before = None
    if c_initial is not None and n_initial is not None and m_initial is not None:
        before = c_initial, n_initial, m_initial
    if before is not None and layout is None and mixing.model is not None and _movable(query, before):
        h, state = _moved_on(tensors, before)
    else:
        h, after = apply(rules.mlstm, tensors, layout, None if before is None else _joined(*before))
        state = _parted(after)
    h = h.transpose(1, 2)
    return (h, state) if _wanted(backend, return_last_states, mode) else h


def _joined(c: Tensor, n: Tensor, m: Tensor) -> MLSTMState:
    return MLSTMState(torch.cat([c, n[..., None]], dim=-1), m[..., 0])


def _parted(state: MLSTMState) -> State:
    return state.memory[..., :-1], state.memory[..., -1], state.m[..., None]


def _movable(query: Tensor, state: State) -> bool:
    """Whether this is one token of a cache that only values are asked of. The model would copy its states into it."""
    return (
        query.shape[2] == 1
        and not torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and all(x.dtype is torch.float32 for x in state)
    )


def _moved_on(tensors: dict[str, Any], state: State) -> tuple[Tensor, State]:
    """One token, by which the cache's own tensors are moved on: C and n become parts of one memory, linrec's."""
    c, n, m = state
    rows, heads, keys, values = c.shape
    if c.storage_offset() or n.data_ptr() != c.data_ptr() + 4 * values:
        memory, _ = _joined(c, n, m)
        c.set_(memory[..., :-1])  # type: ignore[call-overload]
        n.set_(memory[..., -1])  # type: ignore[call-overload]
    width = values + 1
    memory = c.as_strided((rows, heads, keys, width), (heads * keys * width, keys * width, width, 1))

    def step(memory: Tensor) -> tuple[Tensor, Tensor]:
        o, after = rules.mlstm(**tensors, state=MLSTMState(memory, m[..., 0]))
        m.copy_(after.m[..., None])
        return o, after.memory

    return moved_on(memory, step), state


def _wanted(backend: Any, return_last_states: bool | None, mode: str | None) -> bool:
    """Whether the state is returned: always for inference."""
    if "inference" in (mode or backend.config.mode):
        return True
    return backend.config.return_last_states if return_last_states is None else return_last_states


REPLACEMENTS = (
    Replacement(
        ("forward",),
        (
            ("self", "query", "key", "value", "igate", "fgate", "c_initial", "n_initial", "m_initial",
             "return_last_states", "mode"),
        ),
        forward,
        "mlstm",
        "chunkwise, step",
        "xLSTMBackend",
    ),
)  # fmt: skip
