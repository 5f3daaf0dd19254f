"""Rules, layers and the language model as whole graphs: torch.compile without a break, torch.export for every T."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim

from linrec import rules
from linrec.layers import LAYERS, Layer
from linrec.models.config import Config
from linrec.models.language_model import LanguageModel
from linrec.rule import donation
from linrec.rules import RULES
from linrec.state import detach, named_tensors
from linrec.testing import example_inputs

GROWING = [name for name, layer in LAYERS.items() if layer.rule.grows]
WHOLE = [name for name in LAYERS if name not in GROWING]
FEW = ["gated_delta_net", "rwkv6", "mamba2", "mamba", "hgrn", "s5"]
WIDTH = 8


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def made(name: str) -> Layer:
    torch.manual_seed(0)
    return LAYERS[name](d_model=WIDTH, num_heads=2).double()


def tokens(batch: int, length: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, length, WIDTH, generator=generator, dtype=torch.float64)


def leaves(result: tuple[Tensor, Any]) -> list[Tensor]:
    """The output and every tensor of the state."""
    return [result[0], *(x for _, x in named_tensors(result[1]))]


def gradients(result: tuple[Tensor, Any], layer: Layer) -> list[Tensor | None]:
    loss = sum(x.square().sum() for x in leaves(result) if x.is_floating_point())
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, list(layer.parameters()), allow_unused=True))


def close(got: list[Any], want: list[Any]) -> None:
    for a, b in zip(got, want, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def same(layer: Layer, graph: Callable[..., Any], *arguments: Any, **options: Any) -> None:
    """Values, states and gradients are those of the layer itself."""
    want, got = layer(*arguments, **options), graph(*arguments, **options)
    close(leaves(got), leaves(want))
    close(gradients(got, layer), gradients(want, layer))


SOME = [*FEW, "delta_product", "titans", "rwkv4", "canon"]
EACH = [name if name in SOME else pytest.param(name, marks=pytest.mark.slow) for name in WHOLE]


@pytest.mark.parametrize("name", EACH)
def test_a_layer_is_one_graph(name: str) -> None:
    """Forward and backward without a break, from the empty state and then for one token from the one it leaves."""
    layer = made(name)
    graph = torch.compile(layer, fullgraph=True, backend="aot_eager")
    same(layer, graph, tokens(2, 9))
    state = detach(layer(tokens(2, 5))[1])
    same(layer, graph, tokens(2, 1), state)


MASK = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]])


@pytest.mark.slow
@pytest.mark.parametrize("name", WHOLE)
def test_padding_and_packing_break_no_graph(name: str) -> None:
    layer = made(name)
    graph = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x, state = tokens(2, 7).masked_fill(MASK[..., None] == 0, torch.nan), detach(layer(tokens(2, 5))[1])
    same(layer, graph, x, attention_mask=MASK)
    same(layer, graph, x, state, attention_mask=MASK)
    bounds = torch.tensor([0, 4, 4, 11])
    same(layer, graph, tokens(1, 11), cu_seqlens=bounds)
    same(layer, graph, tokens(1, 11), detach(layer(tokens(3, 5))[1]), cu_seqlens=bounds)


@pytest.mark.parametrize("name", ["gated_delta_net", "mamba", "rwkv6"])
def test_padding_and_packing_of_some(name: str) -> None:
    layer = made(name)
    graph = torch.compile(layer, fullgraph=True, backend="aot_eager")
    same(layer, graph, tokens(2, 7), attention_mask=MASK)
    same(layer, graph, tokens(1, 11), cu_seqlens=torch.tensor([0, 4, 4, 11]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of what it breaks graphs at
@pytest.mark.parametrize("name", GROWING)
def test_layers_whose_states_grow_may_break_graphs_and_stay_right(name: str) -> None:
    layer = made(name)
    graph = torch.compile(layer, backend="aot_eager")
    same(layer, graph, tokens(2, 9))
    same(layer, graph, tokens(2, 1), detach(layer(tokens(2, 5))[1]))


@pytest.mark.slow
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", FEW)
def test_the_default_backend(name: str, grad: bool) -> None:
    """One graph for the first length and one for every other; nine tokens of width 16 without gradients as well."""
    layer = LAYERS[name](d_model=16, num_heads=2).double()
    graph = torch.compile(layer, fullgraph=True)
    with torch.set_grad_enabled(grad):
        for length in (9, 12, 33, 70):
            x = torch.randn(2, length, 16, dtype=torch.float64)
            with torch._dynamo.config.patch(error_on_recompile=length > 12):
                got = graph(x)
            close(leaves(got), leaves(layer(x)))
            if grad and length in (9, 33):
                close(gradients(got, layer), gradients(layer(x), layer))


def test_lengths_do_not_compile_again() -> None:
    layer = made("gated_delta_net")
    graph = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for length in (9, 12, 64, 65, 130):
        with torch._dynamo.config.patch(error_on_recompile=length > 12):
            same(layer, graph, tokens(2, length))


@pytest.mark.parametrize(("strict", "grad"), [(False, True), (False, False), (True, True)])
@pytest.mark.parametrize("name", FEW)
def test_a_layer_is_exported_for_every_length(name: str, grad: bool, strict: bool) -> None:
    """One token, and lengths that are no multiple of a chunk, as well; saved and loaded; gradients too."""
    layer = made(name)
    with torch.set_grad_enabled(grad):
        program = torch.export.export(layer, (tokens(2, 9),), dynamic_shapes=({1: Dim("T")},), strict=strict)
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        module = torch.export.load(file).module()
        for length in (1, 2, 70, 130):
            got, want = module(tokens(2, length)), layer(tokens(2, length))
            close(leaves(got), leaves(want))
            assert type(got[1]) is type(want[1])
        if grad:
            loss = module(tokens(2, 70))[0].square().sum()
            loss.backward()
            want = torch.autograd.grad(layer(tokens(2, 70))[0].square().sum(), list(layer.parameters()))
            found = dict(module.named_parameters())
            close([found[n].grad for n, _ in layer.named_parameters()], list(want))


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in WHOLE if name not in FEW])
def test_every_layer_is_exported(name: str) -> None:
    layer = made(name)
    program = torch.export.export(layer, (tokens(2, 9),), dynamic_shapes=({1: Dim("T")},), strict=False)
    for length in (1, 70):
        close(leaves(program.module()(tokens(2, length))), leaves(layer(tokens(2, length))))


def model(*pattern: str) -> LanguageModel:
    torch.manual_seed(0)
    config = Config(vocab_size=31, d_model=WIDTH, num_layers=len(pattern), pattern=pattern, num_heads=2)
    return LanguageModel(config).eval()


@pytest.mark.parametrize(
    "backend",
    ["eager", *(pytest.param(name, marks=pytest.mark.slow) for name in ("aot_eager", "inductor"))],
)
def test_a_decoding_loop_of_compiled_steps(backend: str) -> None:
    """The tokens of the model itself; also where the state is given away, which a graph does not take."""
    plain = model("gated_delta_net", "mamba", "rwkv6")
    step = torch.compile(plain.step, fullgraph=True, backend=backend)
    forward = torch.compile(plain, fullgraph=True, backend=backend)
    prompt = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), donation(mode is torch.no_grad):
            want, got = plain(prompt), forward(prompt)
            for number in range(8):
                torch.testing.assert_close(got.logits, want.logits, rtol=1e-4, atol=1e-5)
                token = want.logits[:, -1:].argmax(-1)
                assert torch.equal(got.logits[:, -1:].argmax(-1), token)
                with torch._dynamo.config.patch(error_on_recompile=number > 1), donation(False):
                    want, got = plain.step(token, want.state), step(token, got.state)


def test_a_model_is_exported_with_mask_and_state() -> None:
    plain = model("gated_delta_net", "mamba")
    ids, mask = torch.ones(2, 9, dtype=torch.long), torch.ones(2, 9)
    length = Dim("T")
    shapes = {"tokens": {1: length}, "state": None, "cu_seqlens": None, "attention_mask": {1: length}}
    options = {"state": None, "cu_seqlens": None, "attention_mask": mask}
    program = torch.export.export(plain, (ids,), options, dynamic_shapes=shapes, strict=False)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    module = torch.export.load(file).module()
    ids, mask = torch.arange(34).view(2, 17) % 31, torch.ones(2, 17)
    mask[0, :5] = 0
    got = module(ids, state=None, cu_seqlens=None, attention_mask=mask)
    torch.testing.assert_close(got.logits, plain(ids, attention_mask=mask).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["parallel", "chunkwise", "recurrent"])
def test_the_forms_of_a_rule_are_the_same_call(form: str) -> None:
    """Bit for bit, with a scale and a chunk size of its own."""
    rule = rules.gated_delta_net
    inputs = example_inputs(rule, T=21)

    def call(**tensors: Any) -> Any:
        return rule.form(form)(**tensors, scale=0.3, chunk_size=16)

    with torch.no_grad():
        got, want = torch.compile(call, fullgraph=True, backend="aot_eager")(**inputs), call(**inputs)
    assert torch.equal(got.o, want.o)
    assert torch.equal(got.state, want.state)


def test_wrong_bounds_are_still_refused_when_a_graph_runs() -> None:
    inputs = example_inputs(rules.gated_delta_net, B=1, T=21)

    def call(cu_seqlens: Tensor, **tensors: Any) -> Tensor:
        return rules.gated_delta_net(**tensors, cu_seqlens=cu_seqlens).o

    graph = torch.compile(call, fullgraph=True, backend="aot_eager")
    graph(torch.tensor([0, 5, 21]), **inputs)
    with pytest.raises(ValueError, match="cu_seqlens must rise"):
        graph(torch.tensor([0, 5, 20]), **inputs)


def test_gradients_of_gradients_are_refused() -> None:
    """Through an exported program, which torch runs operator by operator; never a silent zero."""
    inputs = example_inputs(rules.gated_delta_net, T=9)

    class Model(torch.nn.Module):
        def forward(self, *tensors: Tensor) -> Tensor:
            return rules.gated_delta_net(*tensors).o

    module = torch.export.export(Model(), tuple(inputs.values())).module()
    given = [x.requires_grad_() for x in inputs.values()]
    (first, *_) = torch.autograd.grad(module(*given).square().sum(), given, create_graph=True)
    with pytest.raises(NotImplementedError, match="gradients of gradients"):
        first.sum().backward()


@pytest.mark.parametrize("name", ["gated_delta_net", "kimi_delta_attention", "mamba", "s5", "rwkv4"])
def test_the_operator_keeps_torch_s_rules(name: str) -> None:
    """Schema, fakes, autograd and dynamic shapes."""
    rule = RULES[name]
    inputs = [x.requires_grad_() for x in example_inputs(rule, T=9, B=1, HV=2).values()]
    call = (name, "", ",".join(rule.arguments), "{}", None, None, "auto")
    bounds = torch.tensor([0, 4, 9])
    for cu_seqlens in (None, bounds):
        torch.library.opcheck(torch.ops.linrec.rule.default, (*call, inputs, cu_seqlens))
