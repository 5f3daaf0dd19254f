"""A module is called, never read: whatever stands in the place of a projection, or is hooked to it, counts."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn

from linrec.engines.numerics import linear
from linrec.layers import LAYERS
from linrec.layers.projection import affine_map, bare, project
from linrec.models import Config, LanguageModel
from linrec.testing import relative_error

NAMES = sorted(LAYERS)
SMALL = {"large_chunk_ttt": {"mini_batch": 4}, "longhorn": {"step_rank": 2}, "mamba": {"step_rank": 2}}
PATTERN = ("gated_delta_net", "latent_attention", "mamba2")
TIGHT = 1e-10


@pytest.fixture(autouse=True)
def every_row_is_worth_another_product(monkeypatch):
    """Products that read the weight are taken at every size, so that they would be noticed here."""
    monkeypatch.setattr(linear, "WORTH", 0)
    monkeypatch.setattr(linear, "best_product", lambda *_: "mv")


class Lora(nn.Module):
    """An adapter of low rank beside a projection, with a bias of its own."""

    def __init__(self, base):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=base.weight.dtype)  # noqa: E731
        self.base = base
        self.a, self.b = nn.Parameter(draw(2, base.in_features)), nn.Parameter(draw(base.out_features, 2) / 4)
        self.c = nn.Parameter(draw(base.out_features) / 4)

    def forward(self, x):
        return self.base(x) + x @ self.a.mT @ self.b.mT + self.c

    def merged(self):
        found = nn.Linear(self.base.in_features, self.base.out_features, dtype=self.a.dtype)
        with torch.no_grad():
            found.weight.copy_(self.base.weight + self.b @ self.a)
            found.bias.copy_(self.c if self.base.bias is None else self.base.bias + self.c)
        return found


def make(name, dtype=torch.float64):
    torch.manual_seed(0)
    return LAYERS[name](16, 2, **SMALL.get(name, {})).to(dtype).eval()


def model(dtype=torch.float64, **options):
    torch.manual_seed(0)
    sizes = {"vocab_size": 23, "d_model": 16, "num_heads": 2, "init_std": 0.3, "pattern": PATTERN}
    return LanguageModel(Config(**{**sizes, **options})).to(dtype).eval()


def inputs(of):
    if isinstance(of, LanguageModel):
        return torch.arange(11)[None] * 5 % 23
    dtype = next(p.dtype for p in of.parameters())
    return torch.randn(1, 11, 16, dtype=dtype, generator=torch.Generator().manual_seed(1))


def results(of):
    """A prompt, a single step on its state, and a piece on that, with gradients and without."""
    x, found = inputs(of), []
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            state = None
            for piece in x.split([6, 1, 4], dim=1):
                y, state = of(piece, state)
                found.append(y.detach())
    return found


def projections(of):
    return [name for name, module in of.named_modules() if isinstance(module, nn.Linear)]


def assert_all_changed_to(got, want, before):
    for a, b, c in zip(got, want, before, strict=True):
        assert relative_error(a, b) < TIGHT
        assert relative_error(a, c) > 1e-6


def adapted_and_hooked(whole, names):
    """Each projection with an adapter, then with inputs and outputs turned round by hooks: as with such a weight."""
    before = results(whole)
    for name in names:
        changed, plain = copy.deepcopy(whole), copy.deepcopy(whole)
        adapter = Lora(changed.get_submodule(name))
        changed.set_submodule(name, adapter)
        plain.set_submodule(name, adapter.merged())
        assert_all_changed_to(results(changed), results(plain), before)

        changed, plain = copy.deepcopy(whole), copy.deepcopy(whole)
        hooked, turned = changed.get_submodule(name), plain.get_submodule(name)
        hooked.register_forward_pre_hook(lambda _, args: (args[0].flip(-1),))
        hooked.register_forward_hook(lambda _, __, y: y.flip(-1))
        for parameter in turned.parameters():
            parameter.data = parameter.data.flip(*range(parameter.dim()))
        assert_all_changed_to(results(changed), results(plain), before)


@pytest.mark.parametrize("name", NAMES)
def test_adapters_and_hooks_on_every_projection_of_every_layer(name):
    layer = make(name)
    adapted_and_hooked(layer, projections(layer))


@pytest.mark.parametrize("tied", [True, False])
def test_adapters_and_hooks_on_every_projection_of_a_model(tied):
    whole = model(tie_embeddings=tied)
    names = projections(whole)
    assert "head" in names and "blocks.1.mixer.up_proj" in names and "blocks.2.mlp.down" in names
    if tied:  # changed in place below, its weight would change the embedding as well
        names.remove("head")
        changed, plain = copy.deepcopy(whole), copy.deepcopy(whole)
        changed.head = Lora(changed.head)
        plain.head = changed.head.merged()
        assert_all_changed_to(results(changed), results(plain), results(whole))
    adapted_and_hooked(whole, names)


@pytest.mark.parametrize("name", NAMES)
def test_projections_are_torchs_own_kind(name):
    assert all(type(m) is nn.Linear for m in make(name).modules() if isinstance(m, nn.Linear))


def quantized(of):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch moves it to a package of its own
        warnings.simplefilter("ignore", UserWarning)
        return torch.ao.quantization.quantize_dynamic(of, {nn.Linear})


@pytest.mark.parametrize("name", NAMES)
def test_dynamic_quantization_replaces_every_projection(name):
    layer = make(name, torch.float32)
    small = quantized(layer)
    assert not any(isinstance(m, nn.Linear) for m in small.modules())
    with torch.no_grad():
        state = None
        for piece in inputs(layer).split([6, 1, 4], dim=1):
            y, state = small(piece, state)
            assert torch.isfinite(y).all()


@pytest.mark.parametrize("tied", [True, False])
def test_a_quantized_model_answers_nearly_the_same(tied):
    whole = model(torch.float32, tie_embeddings=tied, init_std=0.02)
    small, tokens = quantized(whole), inputs(whole)
    assert len(projections(whole)) == 3 * 3 + 3 + 4 + 2 + 2 + 1 and not projections(small)
    with torch.no_grad():
        want, got = whole(tokens).logits, small(tokens).logits
        step = small.step(tokens[:, -1:], small(tokens[:, :-1]).state).logits
    assert 0 < relative_error(got, want) < 0.05
    assert relative_error(step, got[:, -1:]) < 0.05


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module .* returned a view")
def test_sharded_weights_are_gathered_for_the_call():
    from torch._C._distributed_c10d import HashStore
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    whole = model(torch.float32, tie_embeddings=False)
    sharded = copy.deepcopy(whole)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for name in projections(sharded):
            fully_shard(sharded.get_submodule(name), mesh=mesh)
        fully_shard(sharded, mesh=mesh)
        for a, b in zip(results(sharded), results(whole), strict=True):
            assert relative_error(a, b) < 1e-5
    finally:
        dist.destroy_process_group()


def test_the_map_of_a_module_is_that_of_its_calls():
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    adapter = Lora(nn.Linear(5, 4, dtype=torch.float64))
    parametrized = nn.utils.parametrizations.orthogonal(nn.Linear(5, 4, dtype=torch.float64))
    for module in (nn.Linear(5, 4, False, dtype=torch.float64), nn.Linear(5, 4, dtype=torch.float64), adapter,
                   parametrized):  # fmt: skip
        matrix, offset = affine_map(module, 5, x)
        y = x @ matrix if offset is None else x @ matrix + offset
        assert relative_error(y, module(x)) < TIGHT


@pytest.mark.parametrize("change", [lambda module: module, Lora])
def test_one_graph_under_compile(change):
    module, x = change(nn.Linear(5, 4)), torch.ones(1, 5)
    hooked = nn.Linear(5, 4)
    hooked.register_forward_hook(lambda _, __, y: 2 * y)

    @torch.compile(backend="eager", fullgraph=True)
    def compiled(x):
        return project(module, x), project(hooked, x), *affine_map(module, 5, x), *affine_map(hooked, 5, x)

    with torch.no_grad():
        *called, matrix, offset, doubled, shift = compiled(x)
        assert torch.equal(called[0], module(x)) and torch.equal(called[1], hooked(x))
        assert torch.allclose(x @ matrix + offset, module(x)) and torch.allclose(
            x @ doubled + shift, hooked(x)
        )


def test_only_an_untouched_linear_is_read(monkeypatch):
    """Everything that could tell a call from a reading makes it a call."""
    x, called = torch.ones(1, 4), torch.zeros(1)

    def calls(change):
        module = nn.Linear(4, 4)
        called.zero_()
        monkeypatch.setattr(torch.nn.functional, "linear", lambda *_: called.add_(1))
        change(module)
        with torch.no_grad():
            project(module, x)
        monkeypatch.undo()
        monkeypatch.setattr(linear, "WORTH", 0)
        monkeypatch.setattr(linear, "best_product", lambda *_: "mv")
        return bool(called)

    def forward_of_its_own(module):
        module.forward = lambda x: called.add_(1)

    class Other(nn.Linear):
        pass

    assert not calls(lambda module: None)
    assert calls(forward_of_its_own)
    assert calls(lambda module: module.register_forward_hook(lambda *_: None))
    assert calls(lambda module: module.register_forward_pre_hook(lambda *_: None))
    assert calls(lambda module: module.register_full_backward_hook(lambda *_: None))
    assert calls(lambda module: setattr(module, "__class__", Other))
    assert calls(lambda module: setattr(module, "weight", Weight(module.weight.detach())))
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert calls(lambda module: None)
    finally:
        handle.remove()
    original = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda self, x: original(self, x))
    assert not bare(nn.Linear(4, 4))


class Weight(nn.Parameter):
    """A weight that is stored in some other way."""
