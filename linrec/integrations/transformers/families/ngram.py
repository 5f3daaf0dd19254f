"""Qwen4-Exp's embeddings of the last few tokens, and the dilated convolution behind them.

Both look back over tokens, so padding and documents count; without either they are left to transformers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from linrec.integrations.transformers.calls import Mixing
from linrec.integrations.transformers.families.causal_conv1d import convolved, keep
from linrec.integrations.transformers.replacement import Replacement


def short_convolution(mixing: Mixing, layer: Any, hidden_states: Tensor, cache: Any) -> Tensor:
    """hidden_states ``[B, T, D]`` -> the same; its taps are ``dilation`` tokens apart."""
    layout = mixing.layout
    if layout is None:
        return NotImplemented
    weight, dilation = layer.conv1d.weight[:, 0], layer.conv1d.dilation[0]
    taps = weight.new_zeros(weight.shape[0], layer.short_conv_state_len + 1)
    taps[:, ::dilation] = weight
    before = None if cache is None else cache.get_conv_state(layer.layer_idx, state_idx=1)
    shape = (hidden_states.shape[0], layer.short_conv_state_len, hidden_states.shape[2])
    history = hidden_states.new_zeros(shape) if before is None else before.mT.clone()
    y, after = convolved(hidden_states, history, taps, None, "silu", layout)
    if cache is not None:
        length = layer.short_conv_state_len
        cache.update_conv_state(hidden_states.mT, layer.layer_idx, state_idx=1, conv_kernel_size=length)
        if not cache.is_recording_past(layer.layer_idx):
            keep(cache.layers[layer.layer_idx].conv_states[1], after)
    return y


def embedding(mixing: Mixing, layer: Any, input_ids: Tensor, cache: Any) -> Tensor:
    """input_ids ``[B, T]`` -> ``[B, T, D]``: each document by itself, its first one behind the tokens of a cache."""
    batch, length = input_ids.shape
    layout = mixing.layout_over(batch, length)
    if layout is None or torch.compiler.is_compiling():
        return NotImplemented
    packing, width = layout.packing, layer.context_len
    known = None if cache is None else cache.get_conv_state(layer.layer_idx, state_idx=2)
    lengths = packing.cu_seqlens.diff()
    context = input_ids.new_full((len(lengths), width), layer.eos_token_id)
    if known is not None:
        context[packing.first] = known.to(context.dtype)
    pieces = input_ids.flatten()[packing.index].split(lengths.tolist())
    texts = [torch.cat(pair) for pair in zip(context, pieces, strict=True)]
    rows = pad_sequence(texts, batch_first=True, padding_value=layer.eos_token_id)
    embedded = type(layer).forward.linrec_original(layer, rows, None)[:, width:]
    real = torch.arange(embedded.shape[1], device=lengths.device) < lengths[:, None]
    if cache is not None:
        after = torch.stack([text[len(text) - width :] for text in texts])[packing.last]
        cache.update_conv_state(after, layer.layer_idx, state_idx=2, conv_kernel_size=width)
        if not cache.is_recording_past(layer.layer_idx):
            cache.layers[layer.layer_idx].conv_states[2].copy_(after)
    return layout.put_back(embedded[real][None], length)


REPLACEMENTS = (
    Replacement(
        ("_short_conv",),
        (("self", "hidden_states", "cache"),),
        short_convolution,
        "short convolution",
        "chunkwise",
        owner="Qwen4ExpTextPLELayer",
    ),
    Replacement(
        ("forward",),
        (("self", "input_ids", "cache"),),
        embedding,
        "",
        "documents apart",
        owner="Qwen4ExpTextNGramEmbedding",
    ),
)
