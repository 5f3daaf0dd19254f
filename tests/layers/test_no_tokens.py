"""Every layer, and a model of it, without rows, without tokens, and on packings of empty segments."""

import pytest
import torch

from linrec.layers import LAYERS
from linrec.models import Config, LanguageModel
from linrec.state import named_tensors
from linrec.stream import Session
from tests.layers.test_layers import NAMES, make


@pytest.mark.parametrize("shape", [(0, 9), (0, 1), (0, 0), (2, 0)], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_layers(name, shape):
    layer = make(name)
    x = torch.zeros(*shape, 16, dtype=torch.float64, requires_grad=True)
    for options in ({}, {"attention_mask": torch.ones(shape)}):
        y, state = layer(x, **options)
        assert y.shape == x.shape and y.dtype == x.dtype
        assert all(t.shape[0] == shape[0] for _, t in named_tensors(state))
        assert layer(x, state)[0].shape == x.shape
        if y.requires_grad:
            y.sum().backward()
    assert x.grad is None or x.grad.shape == x.shape


@pytest.mark.parametrize("bounds", [[0], [0, 0], [0, 0, 5, 5]], ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_packings(name, bounds):
    layer, x = make(name), torch.ones(1, bounds[-1], 16, dtype=torch.float64)
    y, state = layer(x, cu_seqlens=torch.tensor(bounds))
    assert y.shape == x.shape
    assert all(t.shape[0] == len(bounds) - 1 for _, t in named_tensors(state))
    layer(x, state, cu_seqlens=torch.tensor(bounds))


@pytest.mark.parametrize("name", sorted(LAYERS))
def test_models(name):
    torch.manual_seed(0)
    model = LanguageModel(Config(vocab_size=16, d_model=16, num_layers=1, num_heads=2, pattern=(name,)))
    none = torch.zeros(0, 9, dtype=torch.long)
    output = model(none)
    assert output.logits.shape == (0, 9, 16)
    output.logits.sum().backward()
    with torch.no_grad():
        for options in ({}, {"chunk": 4}, {"attention_mask": torch.ones(0, 9)}):
            read = model.prefill(none, **options)
            assert read.logits.shape == (0, 1, 16)
        assert model.step(none[:, :1], read.state).logits.shape == (0, 1, 16)
    session = Session(model)
    session.feed([]).feed([1, 2]).feed(torch.zeros(0, dtype=torch.long))
    assert session.next_logits.shape == (16,)
