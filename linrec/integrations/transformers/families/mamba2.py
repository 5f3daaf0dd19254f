"""Mamba-2's mixers: Mamba-2, Zamba-2, Bamba, Nemotron-H, Falcon-H1, Granite."""

from __future__ import annotations

import math
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from linrec import rules
from linrec.integrations.transformers.calls import Mixing
from linrec.integrations.transformers.families.mamba import through_its_parts, time_step
from linrec.integrations.transformers.layout import apply
from linrec.integrations.transformers.replacement import Replacement
from linrec.integrations.transformers.states import moved_on

Limit = tuple[float, float]  # of a time step
NO_LIMIT: Limit = (0.0, math.inf)


def mamba_chunk_scan_combined(
    mixing: Mixing,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    chunk_size: int,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    initial_states: Tensor | None = None,
    dt_softplus: bool = False,
    dt_limit: Limit = NO_LIMIT,
    return_final_states: bool = False,
    z: Tensor | None = None,
    **others: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """hidden_states, z ``[B, T, H, P]``, dt ``[B, T, H]``, A, D and dt_bias ``[H]``, B and C ``[B, T, G, N]``,
    initial_states ``[B, H, P, N]``.

    The final state lies in memory as linrec's do, ``[B, H, N, P]``; caches keep such strides.
    """
    dt = limited_step(dt, dt_bias, dt_softplus, dt_limit)
    over_time = {"x": hidden_states, "dt": dt, "B": B, "C": C}
    before = None if initial_states is None else initial_states.mT
    y, after = apply(rules.mamba2, over_time, mixing.layout, before, A=A, D=D)
    y = y if z is None else y * F.silu(z)
    return (y, after.mT) if return_final_states else y


def selective_state_update(
    mixing: Mixing,
    state: Tensor,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    dt_bias: Tensor | None = None,
    dt_softplus: bool = False,
    z: Tensor | None = None,
    **others: Any,
) -> Tensor:
    """One token: hidden_states, z ``[B, H, P]``, B and C ``[B, G, N]``; state ``[B, H, P, N]`` is moved on in place.

    What has one number a head comes expanded: dt ``[B, H, P]``, A ``[H, P, N]``, D and dt_bias ``[H, P]``. The limit of
    the time step, which does not come, is that of the mixer.
    """
    if not (_constant(A, 2) and _constant(dt, 1)):
        return NotImplemented
    limit = getattr(mixing.module, "time_step_limit", None) or NO_LIMIT
    dt = limited_step(dt[..., 0], _first(dt_bias), dt_softplus, limit)
    token = {name: x[:, None] for name, x in {"x": hidden_states, "dt": dt, "B": B, "C": C}.items()}
    a, d = A[:, 0, 0], _first(D)
    y = moved_on(state.mT, lambda before: apply(rules.mamba2, token, mixing.layout, before, A=a, D=d))[:, 0]
    return y if z is None else y * F.silu(z)


def limited_step(dt: Tensor, bias: Tensor | None, softplus: bool, limit: Limit) -> Tensor:
    """dt ``[..., H]`` as projected, bias ``[H]`` -> the step, in its limits."""
    dt = time_step(dt, bias, softplus)
    return dt if softplus and tuple(limit) == NO_LIMIT else dt.clamp(*limit)


def _first(x: Tensor | None) -> Tensor | None:
    return None if x is None else x[..., 0]


def _constant(x: Tensor, axes: int) -> bool:
    """Whether the last axes hold one number over and over."""
    shape, strides = x.shape[-axes:], x.stride()[-axes:]
    return all(size == 1 or stride == 0 for size, stride in zip(shape, strides, strict=True))


_SCAN = ("hidden_states", "dt", "A", "B", "C")
_FUSED = (
    *(
        "zxbcdt",
        "conv1d_weight",
        "conv1d_bias",
        "dt_bias",
        "A",
        "D",
        "chunk_size",
        "initial_states",
        "dt_limit",
    ),
    *("return_final_states", "activation", "rmsnorm_weight", "rmsnorm_eps", "outproj_weight", "outproj_bias"),
    *("headdim", "ngroups", "norm_before_gate"),
)

REPLACEMENTS = (
    Replacement(
        ("mamba2_chunk_scan",),
        (
            (
                *_SCAN,
                *("chunk_size", "D", "dt_bias", "initial_states", "dt_softplus", "dt_limit"),
                "return_final_states",
            ),
        ),
        mamba_chunk_scan_combined,
        "mamba2",
        "chunkwise",
    ),
    Replacement(
        ("mamba2_selective_state_update",),
        (("state", *_SCAN, "D", "dt_bias", "dt_softplus", "z"),),
        selective_state_update,
        "mamba2",
        "step",
    ),
    Replacement(
        ("mamba2_split_conv1d_scan_combined",),
        (_FUSED,),
        through_its_parts,
        "mamba2",
        "",
    ),
)
