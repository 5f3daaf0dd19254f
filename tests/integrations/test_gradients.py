"""Gradients of accelerated models: against float64, and of layers that are computed again in the backward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from linrec.integrations.transformers import accelerate, restore
from linrec.integrations.transformers.calls import Carried
from tests.integrations.double import in_double
from tests.integrations.families import FAMILIES, small_model
from tests.integrations.scenarios import documents, logits, packing, padded, positions_of

LIMIT = 1e-5
WORSE = 2.0  # times transformers' own error, which is this large only where weights make it so
DECAYS = ("A_log", "dt_bias", "time_decay")  # sums over all tokens of the gradient of one decay
UNSTEADY = ("qwen4_exp",)  # weights that make float32 lose as much, whatever computes it


def gradients(model: nn.Module, ids: Tensor, keep: Tensor | None = None, **said: Any) -> dict[str, Tensor]:
    """Of a weighted mean of the logits (of the tokens to keep), the weights being fixed and dense."""
    model.train()
    model.zero_grad()
    o = logits(model, ids, use_cache=False, **said)
    weight = torch.linspace(-40, 40, o.numel(), dtype=torch.float64).sin().view_as(o).to(o.dtype)
    if keep is not None:
        weight = weight * keep[..., None]
    (o * weight).sum().div(o[..., 0].numel()).backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


def error(got: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The largest, as a share of the largest gradient where that is above one."""
    assert got.keys() == right.keys()
    scale = max(1.0, *(float(x.abs().max()) for x in right.values()))
    return max(float((got[name] - x).abs().max()) for name, x in right.items()) / scale


def decay_error(got: dict[str, Tensor], right: dict[str, Tensor]) -> float:
    """The largest of the parameters of decays, each as a share of the largest gradient of that parameter."""
    decays = [(got[name], x) for name, x in right.items() if name.endswith(DECAYS)]
    return max([float((value - x).abs().max() / x.abs().max()) for value, x in decays], default=0.0)


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_in_float64(family: str) -> None:
    reference = small_model(family)
    model = copy.deepcopy(reference)  # before a call: some keep its states
    ids = torch.stack(documents((70, 70)))
    right = gradients(in_double(reference), ids)
    theirs = gradients(reference, ids)
    with accelerate(model):
        ours = gradients(model, ids)
    assert error(ours, right) <= max(LIMIT, WORSE * error(theirs, right))
    unsteady = decay_error(theirs, right) if family in UNSTEADY else 0.0
    assert decay_error(ours, right) <= max(LIMIT, unsteady)


@pytest.fixture(params=["qwen3_5", "mamba2", "kimi_linear"])
def model(request: pytest.FixtureRequest) -> Iterator[nn.Module]:
    made = small_model(request.param)
    accelerate(made)
    yield made
    restore(made)


def told(kind: str) -> tuple[Tensor, dict[str, Any], Tensor | None]:
    """Tokens, what is said of them, and which are real."""
    texts = documents((20, 30, 9))
    if kind == "packed":
        said = packing(texts)
        return torch.cat(texts)[None], {name: said[name] for name in ("position_ids", "seq_idx")}, None
    ids, mask = padded(texts, "left")
    return ids, {"attention_mask": mask, "position_ids": positions_of(mask)}, mask


@pytest.mark.parametrize("kind", ["packed", "padded"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_layers_that_are_computed_again_know_the_call(model: nn.Module, kind: str, reentrant: bool) -> None:
    ids, said, keep = told(kind)
    right = gradients(model, ids, keep, **said)
    activate: Any = model.gradient_checkpointing_enable
    with pytest.warns(FutureWarning, match="activation_checkpointing_enable"):
        activate({"use_reentrant": reentrant})
    got = gradients(model, ids, keep, **said)
    assert error(got, right) <= 1e-6
    assert any(isinstance(getattr(m, "_gradient_checkpointing_func", None), Carried) for m in model.modules())
    restore(model)
    assert not any(
        isinstance(getattr(m, "_gradient_checkpointing_func", None), Carried) for m in model.modules()
    )


@pytest.mark.parametrize("kind", ["packed", "padded"])
def test_gradients_of_a_batch_are_those_of_its_sequences(model: nn.Module, kind: str) -> None:
    """Each weighted as in the batch."""
    ids, said, keep = told(kind)
    got = gradients(model, ids, keep, **said)
    model.zero_grad()
    weight = torch.linspace(-40, 40, ids.numel() * 97, dtype=torch.float64).sin().view(*ids.shape, 97).float()
    real = torch.ones_like(ids, dtype=torch.bool) if keep is None else keep.bool()
    pieces = [ids[row][real[row]] for row in range(len(ids))]
    weights = [weight[row][real[row]] for row in range(len(ids))]
    if kind == "packed":
        pieces, weights = (list(x[0].split([20, 30, 9])) for x in (pieces, weights))
    for text, w in zip(pieces, weights, strict=True):
        (logits(model, text[None], use_cache=False)[0] * w).sum().div(ids.numel()).backward()
    right = {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}
    assert error(got, right) <= 2e-6
