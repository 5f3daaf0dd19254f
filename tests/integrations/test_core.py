"""What is put into a model, when it counts, and that it is taken out again."""

from __future__ import annotations

import copy
import io
import threading
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.qwen3_5 import modeling_qwen3_5 as modelling

from linrec.integrations.transformers import accelerate, disable, enable, report, restore
from linrec.integrations.transformers.calls import dispatched, enter_mixer, leave_mixer, now
from linrec.integrations.transformers.replacement import places
from tests.integrations.families import small_model
from tests.integrations.scenarios import documents, logits, packed_by_positions

NAME = "torch_chunk_gated_delta_rule"


@pytest.fixture
def model() -> Iterator[nn.Module]:
    made = small_model("qwen3_5")
    yield made
    restore(made)


def computed_by_linrec(model: nn.Module) -> bool:
    """Packed documents are kept apart by linrec alone."""
    with torch.no_grad():
        return packed_by_positions(model, small_model("qwen3_5")) < 1e-3


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def test_a_restored_model_is_as_it_was(model: nn.Module) -> None:
    functions = {name: x for name, x in vars(modelling).items() if isinstance(x, types.FunctionType)}
    state = {name: set(vars(m)) for name, m in model.named_modules()}
    ids = torch.stack(documents((70,)))
    before = logits(model, ids)
    handle = accelerate(model)
    assert getattr(modelling, NAME) is not functions[NAME] and hooks(model) > 0
    assert not torch.equal(logits(model, ids), before)
    handle.restore()
    assert {name: vars(modelling)[name] for name in functions} == functions and hooks(model) == 0
    assert {name: set(vars(m)) for name, m in model.named_modules()} == state
    assert torch.equal(logits(model, ids), before)
    restore(model)  # nothing to undo


def test_twice_is_once_and_a_block_ends(model: nn.Module) -> None:
    with accelerate(model):
        count, function = hooks(model), getattr(modelling, NAME)
        accelerate(model)
        assert hooks(model) == count and getattr(modelling, NAME) is function
        assert computed_by_linrec(model)
    assert hooks(model) == 0 and not computed_by_linrec(model)


def test_another_model_of_the_same_class_is_left_alone(model: nn.Module) -> None:
    other = small_model("qwen3_5", seed=1)
    ids = torch.stack(documents((70,)))
    before = logits(other, ids)
    accelerate(model)
    assert torch.equal(logits(other, ids), before)
    second = small_model("qwen3_5")
    accelerate(second)
    restore(model)
    assert computed_by_linrec(second), "the functions stay while a model needs them"
    restore(second)


def test_a_wrapped_model_and_a_part_of_one(model: nn.Module) -> None:
    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, **given: Any) -> Any:
            return self.inner(**given)

    accelerate(Wrapped())
    assert computed_by_linrec(model)
    restore(model)
    accelerate(model.model)  # type: ignore[arg-type]
    assert computed_by_linrec(model)


@pytest.mark.parametrize("made", ["copied", "loaded"])
def test_copies_and_files_keep_it(model: nn.Module, made: str) -> None:
    accelerate(model)
    if made == "copied":
        other = copy.deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    restore(model)
    assert not computed_by_linrec(model) and computed_by_linrec(other)
    restore(other)
    assert not computed_by_linrec(other)


def test_models_made_while_it_is_enabled() -> None:
    before = small_model("qwen3_5")
    with enable():
        enable()
        made = small_model("qwen3_5")
    after = small_model("qwen3_5")
    assert [computed_by_linrec(m) for m in (before, made, after)] == [False, True, False]
    restore(made)
    enable()
    disable()
    disable()
    assert not computed_by_linrec(small_model("qwen3_5"))


def test_an_unknown_signature_is_left_and_said(
    model: nn.Module, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = getattr(modelling, NAME)

    def changed(query: Any, key: Any, value: Any, g: Any, beta: Any, order: str, **others: Any) -> Any:
        return original(query, key, value, g, beta, **others)

    monkeypatch.setattr(modelling, NAME, changed)
    accelerate(model)
    assert getattr(modelling, NAME) is changed and hooks(model) == 0
    rows = report(model)
    assert {row.rule for row in rows} == {""} and len(rows) == 3
    assert all("(query, key, value, g, beta, order)" in row.left for row in rows)
    assert "order" in capsys.readouterr().out


def test_a_name_that_is_gone_is_no_error(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    assert places(modelling.Qwen3_5GatedDeltaNet)
    monkeypatch.delattr(modelling, NAME)
    assert {row.left for row in accelerate(model).rows} == {f"{NAME} is gone"}


def test_the_report_says_what_computes_a_mixer(model: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    assert {row.left for row in report(model)} == {"not accelerated"}
    capsys.readouterr()
    rows = accelerate(model).rows
    assert report(model) == rows
    assert [row.module for row in rows] == [f"model.layers.{i}.linear_attn" for i in (0, 1, 3)]
    assert {(row.kind, row.left) for row in rows} == {("Qwen3_5GatedDeltaNet", "")}
    assert all("gated_delta_net" in row.rule and NAME in row.before for row in rows)
    assert "model.layers.0.linear_attn" in capsys.readouterr().out


def test_a_model_without_mixers(capsys: pytest.CaptureFixture[str]) -> None:
    model = nn.Linear(3, 3)
    assert report(accelerate(model).model) == [] and hooks(model) == 0
    assert "Linear: nothing" in capsys.readouterr().out


def test_a_call_that_fails_leaves_nothing_behind(model: nn.Module) -> None:
    accelerate(model)
    with pytest.raises(Exception, match=r"size|shape|Dimension"):
        model(inputs_embeds=torch.zeros(1, 5, 31))
    assert now.model is None and now.mixer is None
    assert computed_by_linrec(model)


def test_what_linrec_does_not_take_is_left_to_the_original() -> None:
    taken = dispatched(lambda x: ("original", x), lambda mixing, x: NotImplemented if x == 1 else ("ours", x))
    assert taken(0) == ("original", 0), "outside of a mixer"
    enter_mixer(nn.Identity(), (), {})
    try:
        assert [taken(0), taken(1)] == [("ours", 0), ("original", 1)]
    finally:
        leave_mixer(nn.Identity(), (), None)
    assert now.mixer is None


def test_threads_have_calls_of_their_own(model: nn.Module) -> None:
    """Two threads, one with a mask and one without, meet in a layer."""
    accelerate(model)
    ids = torch.stack(documents((12, 12)))
    mask = torch.ones_like(ids)
    mask[:, 8:] = 0
    given: list[dict[str, Any]] = [{}, {"attention_mask": mask}]
    right = [logits(model, ids, use_cache=True, **said) for said in given]
    barrier, got = threading.Barrier(2), [torch.empty(0)] * 2

    def meet(*_: Any) -> None:
        barrier.wait(60)

    model.model.layers[0].register_forward_pre_hook(meet)  # type: ignore[union-attr, index]

    def call(number: int) -> None:
        got[number] = logits(model, ids, use_cache=True, **given[number])

    threads = [threading.Thread(target=call, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, right, strict=True))
