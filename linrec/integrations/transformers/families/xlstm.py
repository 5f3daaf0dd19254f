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
    before = None
    if c_initial is not None and n_initial is not None and m_initial is not None:
        before = MLSTMState(torch.cat([c_initial, n_initial[..., None]], dim=-1), m_initial[..., 0])
    heads_last = {"q": query, "k": key, "v": value, "g": F.logsigmoid(widened(fgate)), "i": igate}
    tensors = {name: x.transpose(1, 2) for name, x in heads_last.items()}
    layout = mixing.layout_over(query.shape[0], query.shape[2])
    h, (memory, m) = apply(rules.mlstm, tensors, layout, before)
    state = (memory[..., :-1], memory[..., -1], m[..., None])
    return (h.transpose(1, 2), state) if _wanted(backend, return_last_states, mode) else h.transpose(1, 2)


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
