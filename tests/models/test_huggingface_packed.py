"""Packed documents under every name that says where they begin: each is as if it were alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from linrec import models
from linrec.errors import ArgumentError, ShapeError

transformers = pytest.importorskip("transformers")
from transformers import DataCollatorWithFlattening  # noqa: E402

LENGTHS = (5, 1, 9, 3)


@pytest.fixture
def documents() -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, 96, (n,), generator=generator) for n in LENGTHS]


def close(got: Tensor, want: Tensor) -> None:
    """Equal to 2e-6 of the whole, in float32."""
    assert got.shape == want.shape
    assert bool((got - want).norm() <= 2e-6 * want.norm())


def alone(model: models.LanguageModel, documents: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits of every document by itself, side by side, and the mean loss over all their predictions."""
    logits = [model(d[None]).logits[0] for d in documents]
    losses = [
        torch.nn.functional.cross_entropy(x[:-1], d[1:], reduction="sum")
        for x, d in zip(logits, documents, strict=True)
    ]
    return torch.cat(logits)[None], torch.stack(losses).sum() / sum(n - 1 for n in LENGTHS)


def collated(documents: list[Tensor], form: str) -> dict[str, Any]:
    forms: dict[str, dict[str, Any]] = {
        "position_ids": {},
        "position_ids from 2": {"position_ids_start": 2},
        "flash": {"return_flash_attn_kwargs": True},
        "flash alone": {"return_flash_attn_kwargs": True, "return_position_ids": False},
        "seq_idx": {"return_seq_idx": True, "return_position_ids": False},
        "everything": {"return_seq_idx": True, "return_flash_attn_kwargs": True},
    }
    collator = DataCollatorWithFlattening(return_tensors="pt", **forms[form])
    batch: dict[str, Any] = collator([{"input_ids": d.tolist()} for d in documents])
    return batch


FORMS = ("position_ids", "position_ids from 2", "flash", "flash alone", "seq_idx", "everything")


@pytest.mark.parametrize("form", FORMS)
def test_the_flattening_collator_gives_each_document_alone(
    hybrid: models.LanguageModel, face: Any, documents: list[Tensor], form: str
) -> None:
    expected, loss = alone(hybrid, documents)
    gradients = torch.autograd.grad(loss, list(hybrid.parameters()))
    out = face(**collated(documents, form))
    close(out.logits, expected)
    close(out.loss, loss)
    for got, want in zip(torch.autograd.grad(out.loss, list(hybrid.parameters())), gradients, strict=True):
        close(got, want)


def test_own_boundaries_and_empty_documents(
    hybrid: models.LanguageModel, face: Any, documents: list[Tensor]
) -> None:
    expected, loss = alone(hybrid, documents)
    ids = torch.cat(documents)[None]
    bounds = torch.tensor([0, 5, 6, 6, 15, 18, 18])
    out = face(ids, cu_seqlens=bounds, labels=ids)
    close(out.logits, expected)
    torch.testing.assert_close(out.loss, loss)
    following = face(torch.full((6, 1), 7), cache=out.cache).logits
    longer = torch.cat([documents[2], torch.tensor([7])])[None]
    close(following[3:4, 0], hybrid(longer).logits[:, -1])


def test_no_label_crosses_a_boundary(
    hybrid: models.LanguageModel, face: Any, documents: list[Tensor]
) -> None:
    """Labels that are not masked at the first token of a document are no targets of the document before."""
    _, loss = alone(hybrid, documents)
    batch = collated(documents, "position_ids")
    ids = batch["input_ids"]
    assert not torch.equal(batch["labels"], ids)
    torch.testing.assert_close(face(ids, position_ids=batch["position_ids"], labels=ids).loss, loss)
    shifted = torch.cat([ids[:, 1:], ids[:, :1]], 1)
    shifted[0, -1] = -100
    torch.testing.assert_close(face(ids, position_ids=batch["position_ids"], shift_labels=shifted).loss, loss)
    summed = face(ids, position_ids=batch["position_ids"], labels=ids, num_items_in_batch=torch.tensor(7))
    torch.testing.assert_close(summed.loss, loss * sum(n - 1 for n in LENGTHS) / 7)


def test_several_packed_rows_with_padding(
    hybrid: models.LanguageModel, face: Any, documents: list[Tensor]
) -> None:
    """Rows of documents of 5 + 1 and 9 + 3 tokens, the first padded on the left by 3 and on the right by 3."""
    one, two, three, four = documents
    pad = torch.full((3,), 96)
    ids = torch.stack([torch.cat([pad, one, two, pad]), torch.cat([three, four])])
    positions = torch.tensor([[0] * 3 + [0, 1, 2, 3, 4, 0] + [9] * 3, [*range(9), 0, 1, 2]])
    mask = torch.ones_like(ids)
    mask[0, :3], mask[0, 9:] = 0, 0
    expected, loss = alone(hybrid, documents)
    labels = ids.masked_fill(mask == 0, -100)
    out = face(ids, attention_mask=mask, position_ids=positions, labels=labels, output_hidden_states=True)
    close(out.logits[mask.bool()], expected[0])
    # Of the first document the token before is padding, which predicts as in transformers' models unless masked.
    labels[0, 3] = -100
    out = face(ids, attention_mask=mask, position_ids=positions, labels=labels, output_hidden_states=True)
    torch.testing.assert_close(out.loss, loss)
    assert [h.shape for h in out.hidden_states] == [(2, 12, 32)] * 4


def test_positions_that_restart_nowhere_change_nothing(
    hybrid: models.LanguageModel, face: Any, prompt: Tensor
) -> None:
    expected = hybrid(prompt).logits
    plain = torch.arange(9)
    assert torch.equal(face(prompt, position_ids=plain[None]).logits, expected)
    assert torch.equal(face(prompt, position_ids=plain.expand(2, 9)).logits, expected)
    mask = torch.ones_like(prompt)
    mask[1, :4] = 0
    positions = mask.cumsum(1) - 1
    padded = hybrid(prompt, attention_mask=mask).logits
    for fill in (0, 1):
        given = positions.masked_fill(mask == 0, fill)
        assert torch.equal(face(prompt, attention_mask=mask, position_ids=given).logits, padded)
    first = face(prompt[:, :6], attention_mask=mask[:, :6])
    rest = face(prompt[:, 6:], cache=first.cache, attention_mask=mask, position_ids=positions[:, 6:])
    torch.testing.assert_close(rest.logits, padded[:, 6:], atol=2e-5, rtol=2e-5)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a gap": ({"position_ids": torch.tensor([[0, 1, 2, 5, 6, 7]])}, "rise by one"),
    "backwards": ({"position_ids": torch.tensor([[0, 1, 2, 1, 2, 3]])}, "rise by one"),
    "a beginning that is missing": ({"position_ids": torch.tensor([[5, 6, 7, 0, 1, 2]])}, "begin at"),
    "positions and numbers": (
        {"position_ids": torch.tensor([[0, 1, 2, 0, 1, 2]]), "seq_idx": torch.tensor([[0, 0, 1, 1, 1, 1]])},
        "contradict",
    ),
    "positions and bounds": (
        {"position_ids": torch.arange(6)[None], "cu_seqlens": torch.tensor([0, 3, 6])},
        "contradict",
    ),
    "queries and keys": (
        {"cu_seq_lens_q": torch.tensor([0, 3, 6]), "cu_seq_lens_k": torch.tensor([0, 2, 6])},
        "same boundaries",
    ),
    "too short a maximum": ({"cu_seq_lens_q": torch.tensor([0, 2, 6]), "max_length_q": 3}, "has 4 tokens"),
    "a number that comes again": ({"seq_idx": torch.tensor([[0, 0, 1, 1, 0, 0]])}, "rise"),
    "padding": (
        {"cu_seqlens": torch.tensor([0, 3, 6]), "attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]])},
        "exclude",
    ),
    "fractions": ({"position_ids": torch.arange(6.0)[None]}, "whole numbers"),
    "another length": ({"position_ids": torch.arange(5)[None]}, "as the tokens"),
    "bounds that end early": ({"cu_seqlens": torch.tensor([0, 3])}, "rise from 0 to T"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_contradictions_are_refused(face: Any, kind: str) -> None:
    given, message = REFUSED[kind]
    with pytest.raises((ArgumentError, ShapeError), match=message):
        face(torch.ones(1, 6, dtype=torch.long), **given)


def test_positions_must_go_on_from_the_state(face: Any, prompt: Tensor) -> None:
    cache = face(prompt).cache
    with pytest.raises(ArgumentError, match="has read 9, 9 tokens"):
        face(prompt, cache=cache, position_ids=torch.arange(9)[None])
    with pytest.raises(ArgumentError, match="a state continues one document"):
        face(prompt[:, :4], cache=cache, position_ids=torch.tensor([[9, 10, 0, 1]]))
    face(prompt, cache=cache, position_ids=torch.arange(9, 18)[None])
