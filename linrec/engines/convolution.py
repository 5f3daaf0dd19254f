"""Short causal depthwise convolution with a streaming state.

.. code-block:: text

    y_t = bias + sum_{i < W} weight_i * x_{t - W + 1 + i}        weight_{W - 1} meets the current token
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.engines.numerics import forward_mode, taps
from linrec.engines.numerics.backends import auto_on, chosen_backend, prefers_triton
from linrec.errors import DtypeError, ShapeError
from linrec.packing import by_segment
from linrec.rule import Call, Terms


def short_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    lengths: Tensor | None = None,
    silu: bool = False,
) -> tuple[Tensor, Tensor]:
    """x ``[B, T, D]``, weight ``[D, W]``, state ``[B, W - 1, D]`` the last inputs -> (y or silu(y), next state).

    bias ``[D]``, lengths ``[B]``: how many tokens of each row are real, if not all.
    """
    width, length = weight.shape[1], x.shape[1]
    if length == 0:
        return x, state
    if length > 1 and taps.suits(x, weight, bias, state):
        return taps.convolved(x, weight, bias, state, silu), _last_of_rows(x, state, lengths)
    history = torch.cat((state if state.dtype is x.dtype else state.to(x.dtype), x), 1)
    if length == 1:
        y = _of_one_token(history, weight, bias)
    elif torch.compiler.is_compiling():
        # Compilers fuse the taps; compiling the gradient of conv1d would fix the length of the sequence.
        y = history[:, :length] * weight[:, 0]
        for tap in range(1, width):
            y = torch.addcmul(y, history[:, tap : tap + length], weight[:, tap])
        y = y if bias is None else y + bias
    else:
        y = F.conv1d(history.transpose(1, 2), weight[:, None], bias, groups=weight.shape[0]).transpose(1, 2)
    y = forward_mode.silu(y) if silu else y
    if lengths is not None:
        return y, _last_of_rows(x, state, lengths)
    last = history[:, length:]  # in a graph, of every length alike
    return y, (last if length == 1 else last.clone())  # a view would keep the whole call's tokens alive


def _of_one_token(history: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """history ``[B, W, D]`` -> ``[B, 1, D]``; products rounded to bfloat16 would cost a digit."""
    dtype, taps = history.dtype, weight.T
    wide = torch.promote_types(dtype, torch.float32)
    if dtype is not wide or taps.dtype is not wide:
        history, taps = history.to(wide), taps.to(wide)
    y = (history * taps).sum(1, keepdim=True)
    y = y if bias is None else y + bias
    return y if y.dtype is dtype else y.to(dtype)


def _last_of_rows(x: Tensor, state: Tensor, lengths: Tensor | None) -> Tensor:
    """The last W - 1 inputs of each row, ``lengths`` of which are real, in memory of their own."""
    if lengths is None:
        return _last_inputs(x, state.to(x.dtype), None)
    last = lengths[:, None] + torch.arange(state.shape[1], device=x.device)
    history = torch.cat((state.to(x.dtype), x), 1)
    return history.gather(1, last[..., None].expand(-1, -1, x.shape[2]))


def causal_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    state: Tensor,
    cu_seqlens: Tensor | None = None,
    silu: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """y or silu(y), and the next state, of a batch or of packed segments; through one Triton kernel on a GPU.

    x ``[B, T, D]``, weight ``[D, W]``, bias ``[D]`` or None, state ``[B or segments, W - 1, D]``.
    """
    tensors = [x, weight, state] if bias is None else [x, weight, state, bias]
    if prefers_triton(backend, *tensors):
        from linrec.kernels import convolution

        y = convolution.short_convolution(x, weight, bias, state, cu_seqlens, silu)
        return y, _last_inputs(x, state, cu_seqlens)
    if cu_seqlens is None:
        return short_convolution(x, weight, bias, state, None, silu)
    if torch.compiler.is_compiling():
        state = state.to(x.dtype)
        y = _packed(x, weight, bias, state, cu_seqlens)
        return (forward_mode.silu(y) if silu else y), _last_inputs(x, state, cu_seqlens)
    return by_segment(
        lambda tensors, rows, lengths: short_convolution(tensors["x"], weight, bias, rows, lengths, silu),
        {"x": x},
        state,
        cu_seqlens.tolist(),
    )


def _packed(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor, cu_seqlens: Tensor) -> Tensor:
    """The output for packed segments, in calls whose sizes depend on no values: what graphs can hold."""
    rows, kept, _ = state.shape
    start, end = cu_seqlens[:-1], cu_seqlens[1:].contiguous()
    token = torch.arange(x.shape[1], device=x.device, dtype=start.dtype)
    segment = torch.searchsorted(end, token, right=True)
    first = start[segment]
    history = torch.cat([state.flatten(0, 1), x[0]])
    y = torch.zeros_like(x[0]) if bias is None else bias.expand(x.shape[1:])
    for tap in range(kept + 1):
        place = token - kept + tap
        source = torch.where(place >= first, rows * kept + place, segment * kept + kept + place - first)
        y = torch.addcmul(y, history[source], weight[:, tap])
    return y[None]


def _last_inputs(x: Tensor, state: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The next state, on the device alone: the last W - 1 of each row's state and tokens."""
    rows, kept, _ = state.shape
    if cu_seqlens is None:
        recent = x[:, max(x.shape[1] - kept, 0) :].to(state.dtype)
        return torch.cat([state[:, recent.shape[1] :], recent], dim=1)
    start, count = cu_seqlens[:-1, None], cu_seqlens.diff()[:, None]
    slot = torch.arange(kept, device=x.device)
    row = torch.arange(rows, device=x.device)[:, None]
    place = count - kept + slot
    source = torch.where(place >= 0, rows * kept + start + place, row * kept + slot + count)
    return torch.cat([state.flatten(0, 1), x[0].to(state.dtype)])[source]


@dataclass
class ConvolutionTerms(Terms):
    """x ``[B, T, D]``, weight ``[D, W]``, bias ``[D]`` or None; the output is multiplied by the scale."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None = None

    def over_time(self) -> dict[str, Tensor]:
        """The tensors with a time axis, by name."""
        return {"x": self.x}


class ConvolutionEngine:
    """See :mod:`linrec.engines.convolution`."""

    name = "convolution"

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """At least float32."""
        return torch.promote_types(dtype, torch.float32)

    def init_state(self, terms: ConvolutionTerms, segments: int) -> Tensor:
        """Zeros ``[segments, W - 1, D]``."""
        return terms.x.new_zeros(segments, terms.weight.shape[1] - 1, terms.x.shape[2])

    def auto_backend(self, device: str) -> str:
        """What ``backend="auto"`` runs on this kind of device."""
        return auto_on(device)

    def run(
        self, terms: ConvolutionTerms, state: Tensor | None, call: Call, who: str
    ) -> tuple[Tensor, Tensor]:
        """Every form is the same sum of W products; the recurrent one goes token by token. ``state [B, W - 1, D]``."""
        backend = chosen_backend(call, who, terms.x, terms.weight)
        empty = self.init_state(terms, terms.segments(call))
        state = empty if state is None else _checked(state, empty, who)
        if backend == "triton":
            bounds = None if call.bounds is None else torch.tensor(call.bounds, device=terms.x.device)
            y, state = causal_convolution(terms.x, terms.weight, terms.bias, state, bounds, backend=backend)
            return y * call.scale, state
        if call.bounds is None:
            return _run_batch(terms, state, None, call)
        return by_segment(
            lambda tensors, rows, lengths: _run_batch(terms.with_tensors(tensors), rows, lengths, call),
            terms.over_time(),
            state,
            call.bounds,
        )


def _run_batch(
    terms: ConvolutionTerms, state: Tensor, lengths: Tensor | None, call: Call
) -> tuple[Tensor, Tensor]:
    if call.form != "recurrent" or lengths is not None or terms.x.shape[1] == 0:
        y, state = short_convolution(terms.x, terms.weight, terms.bias, state, lengths)
        return y * call.scale, state
    outputs = []
    for x in terms.x.split(1, dim=1):
        y, state = short_convolution(x, terms.weight, terms.bias, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1) * call.scale, state


def _checked(state: Tensor, empty: Tensor, who: str) -> Tensor:
    if not isinstance(state, Tensor):
        raise DtypeError(f"{who}: state must be a tensor {list(empty.shape)}, got {type(state).__name__}")
    if state.shape != empty.shape:
        raise ShapeError(f"{who}: state must be [B, W - 1, D] = {list(empty.shape)}, got {list(state.shape)}")
    if not state.is_floating_point():
        raise DtypeError(f"{who}: state must be floating point, got {state.dtype}")
    return state.to(empty.dtype)


CONVOLUTION = ConvolutionEngine()
