"""Wide products cover a model's forward and backward pass, and nothing else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from linrec.integrations.transformers import accelerate, passes, restore
from tests.integrations.families import small_model
from tests.integrations.scenarios import documents


class Sections:
    """Counts sections like those of wide products."""

    open = entered = 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        self.open, self.entered = self.open + 1, self.entered + 1
        try:
            yield
        finally:
            self.open -= 1


@pytest.fixture
def sections(monkeypatch: pytest.MonkeyPatch) -> Sections:
    made = Sections()
    monkeypatch.setattr(passes, "wide_products", made)
    return made


@pytest.fixture
def model() -> Iterator[nn.Module]:
    made = small_model("qwen3_5")
    accelerate(made)
    yield made
    restore(made)


def seen_in(model: nn.Module, sections: Sections) -> list[int]:
    """How many sections are open in each of the first layer's calls, and where its gradient arrives."""
    seen: list[int] = []

    def note(module: nn.Module, given: object, output: torch.Tensor) -> None:
        seen.append(sections.open)
        if output.requires_grad:
            output.register_hook(lambda gradient: seen.append(sections.open))

    model.model.layers[0].register_forward_hook(note)  # type: ignore[union-attr, index]
    return seen


def test_forward_and_backward_are_covered(model: nn.Module, sections: Sections) -> None:
    seen = seen_in(model, sections)
    ids = torch.stack(documents((9, 9)))
    model(ids, labels=ids, use_cache=False).loss.backward()
    assert seen == [1, 1] and sections.open == 0 and sections.entered == 2
    model(ids, use_cache=False).logits.sum().backward()
    assert seen == [1] * 4 and sections.open == 0


def test_one_token_and_other_precisions_are_not(model: nn.Module, sections: Sections) -> None:
    seen = seen_in(model, sections)
    with torch.no_grad():
        done = model(torch.tensor([[5, 6]]), use_cache=True)
        model(torch.tensor([[7]]), cache=done.cache, use_cache=True)
        model.bfloat16()(torch.tensor([[5, 6]]))
    assert seen == [1, 0, 0] and sections.open == 0


def test_a_pass_that_fails_is_ended(model: nn.Module, sections: Sections) -> None:
    ids = torch.stack(documents((9, 9)))
    with pytest.raises(RuntimeError, match=r"size|shape"):
        model(inputs_embeds=torch.zeros(1, 5, 31))
    assert sections.open == 0

    def fail(gradient: torch.Tensor) -> None:
        raise ZeroDivisionError

    done = model(ids, labels=ids, use_cache=False, output_hidden_states=True)
    done.hidden_states[1].register_hook(fail)
    with pytest.raises(ZeroDivisionError):
        done.loss.backward()
    assert sections.open == 1
    with torch.no_grad():
        model(ids)
    assert sections.open == 0
