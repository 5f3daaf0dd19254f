"""The language model: one pass, chunks, steps, padding and packing give the same logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from linrec import models
from linrec.errors import DtypeError, RangeError, ShapeError
from linrec.layers import LAYERS
from linrec.state import named_tensors, state_bytes


def tokens(*shape: int) -> Tensor:
    return torch.randint(0, 97, shape)


def build(*pattern: str, **options: Any) -> models.LanguageModel:
    config = models.Config(vocab_size=97, d_model=16, num_heads=2, init_std=0.3, pattern=pattern, **options)
    return models.LanguageModel(config).double().eval()


@pytest.mark.parametrize("layer", LAYERS)
@torch.no_grad()
def test_chunks_and_steps_equal_one_pass(layer: str) -> None:
    model, ids = build(layer), tokens(2, 20)
    whole = model(ids)
    prefilled = model.prefill(ids[:, :17], chunk=5)
    torch.testing.assert_close(prefilled.logits, whole.logits[:, 16:17], rtol=1e-9, atol=1e-9)
    state = prefilled.state
    for t in range(17, 20):
        logits, state = model.step(ids[:, t : t + 1], state)
        torch.testing.assert_close(logits, whole.logits[:, t : t + 1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("layer", LAYERS)
@torch.no_grad()
def test_padding_on_either_side_changes_nothing(layer: str) -> None:
    model, ids = build(layer), tokens(3, 12)
    mask = torch.ones_like(ids)
    mask[1, :7] = 0
    mask[2, 4:] = 0
    alone = [model(ids[:1]), model(ids[1:2, 7:]), model(ids[2:, :4])]
    together = model.prefill(ids, attention_mask=mask, chunk=5)
    torch.testing.assert_close(
        together.logits, torch.cat([a.logits[:, -1:] for a in alone]), rtol=1e-9, atol=1e-9
    )
    following = tokens(3, 1)
    expected = torch.cat([model(following[i : i + 1], alone[i].state).logits for i in range(3)])
    torch.testing.assert_close(model.step(following, together.state).logits, expected, rtol=1e-9, atol=1e-9)


@torch.no_grad()
def test_packed_sequences_are_separate(hybrid: models.LanguageModel) -> None:
    ids = tokens(1, 11)
    packed = hybrid(ids, cu_seqlens=torch.tensor([0, 4, 11]))
    separate = [hybrid(ids[:, :4]).logits, hybrid(ids[:, 4:]).logits]
    torch.testing.assert_close(packed.logits, torch.cat(separate, 1), rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_future_is_not_seen(hybrid: models.LanguageModel) -> None:
    ids = tokens(1, 12)
    other = ids.clone()
    other[:, 6:] = (other[:, 6:] + 1) % 97
    difference = (hybrid(ids).logits - hybrid(other).logits).abs().amax((0, 2))
    assert difference[:6].max() < 1e-4 < difference[6]


def test_init_state_is_the_empty_state(hybrid: models.LanguageModel) -> None:
    ids, empty = tokens(3, 4), hybrid.init_state(3)
    torch.testing.assert_close(hybrid(ids, empty).logits, hybrid(ids).logits)
    assert all(t.shape[0] == 3 for _, t in named_tensors(empty))


@torch.no_grad()
def test_a_state_is_not_changed_in_place(hybrid: models.LanguageModel) -> None:
    state = hybrid.prefill(tokens(1, 9)).state
    before = {name: t.clone() for name, t in named_tensors(state)}
    hybrid.step(tokens(1, 1), state)
    hybrid(tokens(1, 6), state)
    assert all(torch.equal(before[name], t) for name, t in named_tensors(state))


@torch.no_grad()
def test_only_attention_grows() -> None:
    sizes = {}
    for layer in LAYERS:
        model = build(layer)
        sizes[layer] = [state_bytes(model.prefill(tokens(1, n)).state) for n in (8, 64)]
    assert all((b > a) == LAYERS[layer].state_grows for layer, (a, b) in sizes.items())
    assert all(a == b for layer, (a, b) in sizes.items() if not LAYERS[layer].state_grows)


def test_gradients_reach_every_weight() -> None:
    model = build("gated_delta_net", "softmax_attention", tie_embeddings=False)
    model(tokens(2, 9)).logits.logsumexp(-1).sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


def test_initial_loss_is_that_of_guessing() -> None:
    model = models.LanguageModel(models.preset("demo-hybrid"))
    ids = torch.randint(0, 257, (2, 64))
    loss = torch.nn.functional.cross_entropy(model(ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    assert abs(loss.item() - torch.tensor(257.0).log().item()) < 0.2


def test_the_fingerprint_follows_weights_and_configuration(hybrid: models.LanguageModel) -> None:
    first = hybrid.fingerprint()
    assert first == hybrid.fingerprint()
    with torch.no_grad():
        hybrid.embed.weight[3, 3] += 1e-3
    assert hybrid.fingerprint() != first


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda m: m(torch.zeros(1, 4)), DtypeError),
        (lambda m: m([[1, 2]]), DtypeError),
        (lambda m: m(torch.zeros(4, dtype=torch.long)), ShapeError),
        (lambda m: m(torch.tensor([[97]])), RangeError),
        (lambda m: m(torch.tensor([[-1]])), RangeError),
        (lambda m: m(tokens(2, 3), m.init_state(1)), ShapeError),
        (lambda m: m(tokens(1, 3), (1, 2)), ShapeError),
        (lambda m: m(tokens(1, 3), attention_mask=torch.ones(1, 4)), ShapeError),
        (lambda m: m.step(tokens(1, 2), m.init_state()), ShapeError),
        (lambda m: m.prefill(tokens(1, 0)), ShapeError),
        (lambda m: m.prefill(tokens(2, 2), attention_mask=torch.tensor([[1, 1], [0, 0]])), ShapeError),
        (lambda m: m.prefill(tokens(1, 2), chunk=0), RangeError),
    ],
)
def test_bad_input(hybrid: models.LanguageModel, call: Callable[[Any], Any], error: type[Exception]) -> None:
    with pytest.raises(error, match="expected"):
        call(hybrid)
