"""Mamba's mixers: Mamba, Falcon-Mamba, Jamba, Zamba."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from linrec import rules
from linrec.integrations.transformers.calls import Mixing
from linrec.integrations.transformers.layout import apply
from linrec.integrations.transformers.replacement import Replacement
from linrec.integrations.transformers.states import moved_on
from linrec.layers.parts import widened


def selective_scan_fn(
    mixing: Mixing,
    hidden_states: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    **others: Any,
) -> Tensor | tuple[Tensor, Tensor]:
    """hidden_states, dt, z ``[B, D, T]``, A ``[D, N]``, B and C ``[B, N, T]``, D and delta_bias ``[D]``; state
    ``[B, D, N]``.

    The state that a cache holds does not come; it is fetched there.
    """
    dt = time_step(
        dt.mT.contiguous(), delta_bias, delta_softplus
    )  # time comes last, and one token is read at once
    over_time = {"x": hidden_states.mT, "dt": dt, "B": B.mT, "C": C.mT}
    y, after = apply(rules.mamba, over_time, mixing.layout, _state_before(mixing), A=A, D=D)
    y = y.mT if z is None else y.mT * F.silu(z)
    return (y, after) if return_last_state else y


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
    """One token: hidden_states, dt, z ``[B, D]``, A ``[D, N]``, B and C ``[B, N]``, D and dt_bias ``[D]``; state
    ``[B, D, N]`` is moved on in place."""
    dt = time_step(dt, dt_bias, dt_softplus)
    token = {name: x[:, None] for name, x in {"x": hidden_states, "dt": dt, "B": B, "C": C}.items()}
    y = moved_on(state, lambda before: apply(rules.mamba, token, mixing.layout, before, A=A, D=D))[:, 0]
    return y if z is None else y * F.silu(z)


def through_its_parts(mixing: Mixing, *args: Any, **kwargs: Any) -> None:
    """A whole mixer in one kernel, or None, after which the mixer goes through its parts, which linrec computes."""
    return


def time_step(dt: Tensor, bias: Tensor | None, softplus: bool) -> Tensor:
    """dt ``[..., D]`` as projected, bias ``[D]`` -> the step."""
    dt = widened(dt) if bias is None else widened(dt) + bias
    return F.softplus(dt) if softplus else dt


def _state_before(mixing: Mixing) -> Tensor | None:
    """``[B, D, N]``; of Zamba, which scans head by head, that of the next head."""
    layer = mixing.cached_layer
    state = None if layer is None else layer.recurrent_states[0]
    if state is None or state.dim() == 3:
        return state
    head, mixing.heads = mixing.heads, mixing.heads + 1
    return state[:, head]


_SCAN = ("hidden_states", "dt", "A", "B", "C")

REPLACEMENTS = (
    Replacement(
        ("mamba_selective_scan",),
        (
            (
                *_SCAN,
                *("D", "z", "delta_bias", "delta_softplus", "return_last_state", "use_mambapy"),
                "use_associative_scan",
            ),
        ),
        selective_scan_fn,
        "mamba",
        "chunkwise",
    ),
    Replacement(
        ("mamba_selective_state_update",),
        (("state", *_SCAN, "D", "dt_bias", "dt_softplus", "z"),),
        selective_state_update,
        "mamba",
        "step",
    ),
    Replacement(
        ("mamba_inner_fn",),
        (
            (
                *(
                    "xz",
                    "conv1d_weight",
                    "conv1d_bias",
                    "x_proj_weight",
                    "delta_proj_weight",
                    "out_proj_weight",
                ),
                *("out_proj_bias", "A", "B", "C", "D", "delta_bias", "delta_softplus"),
                *("b_rms_weight", "c_rms_weight", "dt_rms_weight", "b_c_dt_rms_eps"),
            ),
        ),
        through_its_parts,
        "mamba",
        "",
    ),
)
