"""RecurrentGemma's recurrent block: a short convolution and an RG-LRU.

transformers keeps the block's state in the module, where a second cache would find it too and beams do not reorder it,
and forgets the convolution's part of it before every call of several tokens. Here it lies in the cache.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec import rules
from linrec.engines.convolution import causal_convolution
from linrec.integrations.transformers.calls import Mixing
from linrec.integrations.transformers.layout import Layout, apply
from linrec.integrations.transformers.replacement import Replacement
from linrec.layers.parts import widened
from linrec.layers.projection import project

SHARPNESS = 8.0  # the model's constant
RESET = -100.0  # e^-100 is zero and sqrt(1 - e^-200) is one, in every precision


class BlockState(NamedTuple):
    """conv ``[B, w - 1, D]``, the last inputs of the convolution; memory ``[B, D]``."""

    conv: Tensor
    memory: Tensor


def recurrent_block(
    block: Any, x: Tensor, first: Tensor, state: BlockState | None, cu_seqlens: Tensor | None = None
) -> tuple[Tensor, BlockState]:
    """The block on x ``[B, T, d]``. A token that is ``first`` ``[B, T]`` in its sequence forgets all before it, and
    enters with weight one."""
    kernel, bias = block.conv_1d.weight.squeeze(1), block.conv_1d.bias
    gate = block.act_fn(project(block.linear_y, x))
    u = project(block.linear_x, x)
    if state is None:
        rows = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
        state = BlockState(
            u.new_zeros(rows, kernel.shape[1] - 1, u.shape[2]),
            u.new_zeros(rows, u.shape[2], dtype=torch.promote_types(u.dtype, torch.float32)),
        )
    u, conv = causal_convolution(u, kernel, bias, state.conv, cu_seqlens)
    g, i = _gates(block.rg_lru, u)
    g = g.masked_fill(first.unsqueeze(-1), RESET)
    h, memory = rules.rg_lru(u, g, i, state=state.memory, cu_seqlens=cu_seqlens)
    return project(block.linear_out, h * gate), BlockState(conv, memory)


def _gates(lru: Any, u: Tensor) -> tuple[Tensor, Tensor]:
    """Log-decay and input gate ``[B, T, D]``: block-diagonal maps of the convolved branch, one block a head."""
    heads = u.reshape(-1, lru.num_attention_heads, lru.block_width).transpose(0, 1)
    i, r = (
        torch.baddbmm(bias.unsqueeze(1), heads, weight).transpose(0, 1).reshape(u.shape).sigmoid()
        for bias, weight in (
            (lru.input_gate_bias, lru.input_gate_weight),
            (lru.recurrent_gate_bias, lru.recurrent_gate_weight),
        )
    )
    return -SHARPNESS * F.softplus(widened(lru.recurrent_param)) * widened(r), i


def forward(
    mixing: Mixing,
    block: Any,
    input_states: Tensor,
    position_ids: Tensor,
    attention_mask: Tensor | None,
    use_cache: bool = True,
    **others: Any,
) -> tuple[Tensor, None]:
    """The block's own forward, of input_states ``[B, T, d_model]``, position_ids ``[B, T]``."""
    layer = _layer(mixing) if use_cache else None
    if layer is None and use_cache:
        return NotImplemented  # called by itself: transformers' state in the module
    before = None
    if layer is not None and layer.has_previous_state[0]:
        before = BlockState(layer.conv_states[0].mT, layer.recurrent_states[0])
    layout = mixing.layout_over(*input_states.shape[:2])
    first = _first(position_ids.expand(input_states.shape[:2]), layout, before is None)
    y, after = apply(partial(recurrent_block, block), {"x": input_states, "first": first}, layout, before)
    if layer is not None:
        _keep(layer, after)
    return y, None


def _layer(mixing: Mixing) -> Any:
    """The block's part of the cache. A cache that was made without a configuration takes it for softmax attention."""
    number = mixing.layer_number
    if mixing.cache is None or number is None:
        return None
    layers = mixing.cache.layers
    while len(layers) <= number:
        layers.append(mixing.cache.layer_class_to_replicate())
    if not isinstance(layers[number], _linear_layer()):
        layers[number] = _linear_layer()()
    return layers[number]


@cache
def _linear_layer() -> type:
    from transformers.cache_utils import LinearAttentionLayer

    return LinearAttentionLayer


def _keep(layer: Any, state: BlockState) -> None:
    layer.conv_states[0], layer.recurrent_states[0] = state.conv.mT, state.memory
    if not layer.has_previous_state[0]:
        layer.device, layer.dtype = state.conv.device, state.conv.dtype
        layer.is_conv_states_initialized[0] = layer.is_recurrent_states_initialized[0] = True
        layer.has_previous_state[0] = True


def _first(positions: Tensor, layout: Layout | None, empty: bool) -> Tensor:
    """The tokens that begin a sequence: at position zero, or, where there is padding or a boundary, behind it."""
    first = positions == 0
    if layout is None:
        return first
    if layout.starts is not None:
        first = first | layout.starts
    if empty and layout.real is not None:
        first = first | (layout.real & (layout.real.cumsum(1) == 1))
    return first


REPLACEMENTS = (
    Replacement(
        ("forward",),
        (("self", "input_states", "position_ids", "attention_mask", "use_cache"),),
        forward,
        "rg_lru",
        "chunkwise, step",
        "RecurrentGemmaRecurrentBlock",
    ),
)
