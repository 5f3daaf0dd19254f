"""A tied head is a module of its own with the embedding's parameter, whatever is done to the model."""

import copy
import io

import pytest
import torch
from torch import nn

from linrec.models import Config, LanguageModel

TOKENS = torch.arange(7)[None]


def build(tied=True, **options):
    torch.manual_seed(0)
    return LanguageModel(
        Config(vocab_size=11, d_model=8, num_layers=1, num_heads=2, tie_embeddings=tied, **options)
    )


def assert_tied(model):
    assert model.head.weight is model.embed.weight
    assert "head.weight" not in model.state_dict()
    hidden = model.hidden(TOKENS.to(model.device))[0]
    assert torch.equal(model.logits(hidden), hidden @ model.embed.weight.mT)


def test_one_parameter_under_one_name():
    model = build()
    assert_tied(model)
    assert type(model.head) is nn.Linear
    names = [name for name, _ in model.named_parameters()]
    assert names == list(model.state_dict()) and "embed.weight" in names and "head.weight" not in names
    untied = build(tied=False)
    assert list(untied.state_dict()) == [*names, "head.weight"]
    assert not untied.tied and untied.head.weight is not untied.embed.weight


def test_the_shared_weight_is_initialised_once():
    model = build()
    assert 0.5 * model.config.init_std < model.embed.weight.std() < 2 * model.config.init_std


@pytest.mark.parametrize("assign", [True, False])
def test_a_state_dict_without_the_head_is_whole(assign):
    model, other = build(), build()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(1)
    model.load_state_dict(other.state_dict(), assign=assign)
    assert_tied(model)
    assert torch.equal(model(TOKENS).logits, other(TOKENS).logits)
    with pytest.raises(RuntimeError, match=r"embed\.weight"):
        model.load_state_dict({k: v for k, v in other.state_dict().items() if k != "embed.weight"})
    outer, theirs = nn.ModuleDict({"model": build()}), nn.ModuleDict({"model": other})
    outer.load_state_dict(theirs.state_dict(), assign=assign)
    assert_tied(outer["model"])


def test_moved_copied_and_replaced():
    model = build()
    assert_tied(copy.deepcopy(model))
    assert_tied(copy.deepcopy(model).double())
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        assert_tied(copy.deepcopy(model).double())
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)
    with torch.device("meta"):
        empty = build()
    empty.to_empty(device="cpu").load_state_dict(model.state_dict())
    assert_tied(empty)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert_tied(torch.load(file, weights_only=False))
    model.embed = nn.Embedding(13, 8)  # as a resized vocabulary
    assert model(TOKENS).logits.shape == (1, 7, 13)
    assert_tied(model)
    model.embed.weight = nn.Parameter(torch.ones(13, 8))
    model(TOKENS)
    assert_tied(model)


def test_a_head_that_is_put_in_its_place_is_on_its_own():
    model = build()
    model.head = nn.Linear(8, 11, bias=False)
    assert not model.tied and "head.weight" in model.state_dict()
    assert model.double().head.weight is not model.embed.weight
    hidden = model.hidden(TOKENS)[0]
    assert torch.equal(model.logits(hidden), model.head(hidden))


class Beside(nn.Module):
    """As peft's wrapper of a module that is trained as a whole: a copy, behind the attributes of the module."""

    def __init__(self, module):
        super().__init__()
        self.copied = copy.deepcopy(module)

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self._modules["copied"], name)

    def forward(self, x):
        return self.copied(x)


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_copy_that_is_trained_in_its_place_is_on_its_own(wrapped):
    model = build()
    trained = Beside(model.head)
    model.head = trained if wrapped else trained.copied
    with torch.no_grad():
        trained.copied.weight.add_(1)
    hidden = model.double().hidden(TOKENS)[0]
    assert torch.equal(model.logits(hidden), hidden @ trained.copied.weight.mT)
    assert not torch.equal(trained.copied.weight, model.embed.weight)
    assert_tied(build())


def test_a_head_with_a_parametrized_weight_is_on_its_own():
    model = build()
    torch.nn.utils.parametrizations.weight_norm(model.head)
    hidden = model.hidden(TOKENS)[0]
    with torch.no_grad():
        model.head.parametrizations.weight.original0.mul_(3)
    assert torch.allclose(model.logits(hidden), 3 * hidden @ model.embed.weight.mT, rtol=1e-5)


def test_both_ends_give_their_gradient():
    model = build().double()
    model(TOKENS).logits.square().sum().backward()
    both = model.embed.weight.grad
    apart = copy.deepcopy(model)
    apart.head = nn.Linear(8, 11, bias=False, dtype=torch.float64)
    apart.head.weight = nn.Parameter(model.embed.weight.detach().clone())
    apart.zero_grad()
    apart(TOKENS).logits.square().sum().backward()
    assert torch.allclose(both, apart.embed.weight.grad + apart.head.weight.grad, rtol=1e-12)


def test_where_it_is():
    model = build().to(torch.bfloat16)
    assert model.device == torch.device("cpu") and model.dtype == torch.bfloat16
    model.embed = nn.Sequential(model.embed)  # as an adapter that is wrapped around it
    assert model.dtype == torch.bfloat16 and model.init_state().layers
