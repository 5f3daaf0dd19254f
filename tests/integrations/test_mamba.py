"""What linrec puts in place of Mamba's functions, each beside transformers' own and beside a loop over tokens."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.mamba import modeling_mamba
from transformers.models.mamba2 import modeling_mamba2

from linrec.integrations.transformers import accelerate
from linrec.integrations.transformers.calls import Mixing
from linrec.integrations.transformers.families import causal_conv1d, mamba, mamba2
from tests.integrations.families import small_model
from tests.integrations.scenarios import one_at_a_time, short_prompt

LIMIT = 1e-5
BATCH, LENGTH, HEADS, WIDTH, GROUPS, STATES = 2, 19, 4, 6, 2, 5
DT_LIMIT = (0.4, 0.9)


def mixing(length: int = LENGTH, **attributes: Any) -> Mixing:
    """In a mixer by itself, whose tokens are all real."""
    module = nn.Module()
    for name, value in attributes.items():
        setattr(module, name, value)
    return Mixing(module, {"hidden_states": torch.zeros(BATCH, length, 1)}, None, None)


def close(got: Tensor, want: Tensor) -> None:
    assert got.shape == want.shape and (got - want).abs().max() < LIMIT


def ssd_arguments() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "hidden_states": torch.randn(BATCH, LENGTH, HEADS, WIDTH),
        "dt": torch.randn(BATCH, LENGTH, HEADS),
        "A": -torch.rand(HEADS) - 0.1,
        "B": torch.randn(BATCH, LENGTH, GROUPS, STATES),
        "C": torch.randn(BATCH, LENGTH, GROUPS, STATES),
        "D": torch.randn(HEADS),
        "dt_bias": torch.randn(HEADS),
        "initial_states": torch.randn(BATCH, HEADS, WIDTH, STATES),
    }


def ssd_loop(limit: tuple[float, float], **x: Tensor) -> tuple[Tensor, Tensor]:
    """Head after head and token after token, from the equation."""
    state, rows = x["initial_states"].clone(), []
    for t in range(LENGTH):
        y = torch.zeros(BATCH, HEADS, WIDTH)
        for h in range(HEADS):
            group = h // (HEADS // GROUPS)
            dt = F.softplus(x["dt"][:, t, h] + x["dt_bias"][h]).clamp(*limit)[:, None, None]
            u, b, c = x["hidden_states"][:, t, h], x["B"][:, t, group], x["C"][:, t, group]
            state[:, h] = torch.exp(dt * x["A"][h]) * state[:, h] + dt * u[:, :, None] * b[:, None]
            y[:, h] = (state[:, h] * c[:, None]).sum(-1) + x["D"][h] * u
        rows.append(y)
    return torch.stack(rows, 1), state


@pytest.mark.parametrize("limit", [(0.0, float("inf")), DT_LIMIT])
def test_the_scan_of_mamba2(limit: tuple[float, float]) -> None:
    x = ssd_arguments()
    options: dict[str, Any] = {
        "chunk_size": 8,
        "dt_softplus": True,
        "dt_limit": limit,
        "return_final_states": True,
    }
    y, state = mamba2.mamba_chunk_scan_combined(mixing(), **x, **options)
    for want, last in (ssd_loop(limit, **x), modeling_mamba2.mamba2_chunk_scan(**x, **options)):
        close(y, want)
        close(state, last)
    del options["return_final_states"]
    alone: Any = mamba2.mamba_chunk_scan_combined(mixing(), **x, **options)
    assert torch.equal(alone, y)


@pytest.mark.parametrize("transposed", [False, True], ids=["as in transformers", "as in linrec"])
@pytest.mark.parametrize("gated", [False, True])
def test_one_token_of_mamba2(gated: bool, transposed: bool) -> None:
    """The mixer expands what has one number a head; the limit of the step, which it does not hand on, is its own."""
    x = ssd_arguments()
    want, last = ssd_loop(DT_LIMIT, **x)
    state = x.pop("initial_states")
    state = state.mT.contiguous().mT if transposed else state
    memory = state.data_ptr()
    for t in range(LENGTH):
        z = torch.randn(BATCH, HEADS, WIDTH) if gated else None
        got = mamba2.selective_state_update(
            mixing(1, time_step_limit=DT_LIMIT),
            state,
            x["hidden_states"][:, t],
            x["dt"][:, t, :, None].expand(-1, -1, WIDTH),
            x["A"][:, None, None].expand(-1, WIDTH, STATES),
            x["B"][:, t],
            x["C"][:, t],
            x["D"][:, None].expand(-1, WIDTH),
            dt_bias=x["dt_bias"][:, None].expand(-1, WIDTH),
            dt_softplus=True,
            z=z,
        )
        close(got, want[:, t] if z is None else want[:, t] * F.silu(z))
    close(state, last)
    assert state.data_ptr() == memory


def test_what_is_not_one_number_a_head_is_left_to_transformers() -> None:
    x = ssd_arguments()
    token = (
        x["hidden_states"][:, 0],
        x["dt"][:, 0, :, None].expand(-1, -1, WIDTH),
        torch.rand(HEADS, WIDTH, STATES),
    )
    result = mamba2.selective_state_update(mixing(1), x["initial_states"], *token, x["B"][:, 0], x["C"][:, 0])
    assert result is NotImplemented


def scan_arguments() -> dict[str, Any]:
    torch.manual_seed(0)
    channels = HEADS * WIDTH
    return {
        "hidden_states": torch.randn(BATCH, channels, LENGTH),
        "dt": torch.randn(BATCH, channels, LENGTH),
        "A": -torch.rand(channels, STATES) - 0.1,
        "B": torch.randn(BATCH, STATES, LENGTH),
        "C": torch.randn(BATCH, STATES, LENGTH),
        "D": torch.randn(channels),
        "z": torch.randn(BATCH, channels, LENGTH),
    }


def scan_loop(bias: Tensor, state: Tensor, **x: Tensor) -> tuple[Tensor, Tensor]:
    rows = []
    for t in range(LENGTH):
        dt = F.softplus(x["dt"][..., t] + bias)[..., None]
        u = x["hidden_states"][..., t]
        state = torch.exp(dt * x["A"]) * state + dt * u[..., None] * x["B"][:, None, :, t]
        y = (state * x["C"][:, None, :, t]).sum(-1) + x["D"] * u
        rows.append(y * F.silu(x["z"][..., t]))
    return torch.stack(rows, -1), state


def test_the_scan_of_mamba() -> None:
    x, bias = scan_arguments(), torch.randn(HEADS * WIDTH)
    options: dict[str, Any] = {"delta_bias": bias, "delta_softplus": True, "return_last_state": True}
    y, state = mamba.selective_scan_fn(mixing(), **x, **options)
    empty = torch.zeros(BATCH, HEADS * WIDTH, STATES)
    for want, last in (scan_loop(bias, empty, **x), modeling_mamba.mamba_selective_scan(**x, **options)):
        close(y, want)
        close(state, last)


def test_one_token_of_mamba() -> None:
    x, bias = scan_arguments(), torch.randn(HEADS * WIDTH)
    state = torch.randn(BATCH, HEADS * WIDTH, STATES)
    memory = state.data_ptr()
    want, last = scan_loop(bias, state.clone(), **x)
    for t in range(LENGTH):
        now = {name: v[..., t] for name, v in x.items() if name not in ("A", "D")}
        theirs = state.clone()
        others: dict[str, Any] = {"A": x["A"], "D": x["D"], "dt_bias": bias, "dt_softplus": True}
        got = mamba.selective_state_update(mixing(1), state, **now, **others)
        close(got, want[..., t])
        close(got, modeling_mamba.mamba_selective_state_update(theirs, **now, **others))
        close(state, theirs)
    close(state, last)
    assert state.data_ptr() == memory


@pytest.mark.parametrize("activation", [None, "silu", "gelu"])
def test_convolution(activation: str | None) -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(BATCH, WIDTH, LENGTH), torch.randn(WIDTH, 4), torch.randn(WIDTH)
    want = modeling_mamba2.causal_conv1d_fn(x, weight, bias, activation)
    close(causal_conv1d.causal_conv1d_fn(mixing(), x, weight, bias, activation), want)
    with_history = causal_conv1d.causal_conv1d_fn(mixing(LENGTH - 7), x, weight, bias, activation)
    close(with_history, want[..., 7:])
    ours, theirs = x[..., :4].clone(), x[..., :4].clone()
    for t in range(4, LENGTH):
        token = x[..., t : t + 1]
        got = causal_conv1d.causal_conv1d_update(mixing(1), token, ours, weight, bias, activation)
        close(got, want[..., t : t + 1])
        modeling_mamba2.causal_conv1d_update(token, theirs, weight, bias, activation)
        close(ours[..., 1:], theirs[..., 1:])


LIMITED: dict[str, dict[str, Any]] = {
    "mamba2": {"time_step_limit": DT_LIMIT},
    "falcon_h1": {"time_step_limit": DT_LIMIT},
    "granitemoehybrid": {"time_step_limit": DT_LIMIT},
    "nemotron_h": {"time_step_min": 0.5},
    "zamba2": {"time_step_min": 0.5},
}


@pytest.mark.parametrize("family", LIMITED)
def test_the_limit_of_a_step_holds_for_one_token(family: str) -> None:
    """Transformers forgets it there, and so continues a prompt with another function than that of the prompt."""
    reference = small_model(family, **LIMITED[family])
    model = copy.deepcopy(reference)
    with accelerate(model), torch.no_grad():
        for scenario in (one_at_a_time, short_prompt):
            assert scenario(model, reference) < 2e-5
        assert one_at_a_time(reference, reference) > 1e-4


def test_a_layer_with_several_heads_of_mamba_goes_on_from_its_own_states() -> None:
    """Zamba scans head after head; the states lie together."""
    reference = small_model("zamba", n_mamba_heads=4, mamba_d_state=4)
    model = copy.deepcopy(reference)
    with accelerate(model), torch.no_grad():
        ids = torch.randint(3, 97, (2, 30), generator=torch.Generator().manual_seed(3))
        first = model(ids[:, :11], use_cache=True)
        second = model(ids[:, 11:24], cache=first.cache, use_cache=True)
        third = model(ids[:, 24:], cache=second.cache, use_cache=True)
        got = torch.cat([first.logits, second.logits, third.logits], 1)
        assert (got - reference(ids, use_cache=False).logits).abs().max() < 2e-5
