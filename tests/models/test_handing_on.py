"""What one layer hands on to later ones goes through every way to call a model, and other blocks leave it alone."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch

from linrec.errors import CheckpointError, ConfigError, ShapeError
from linrec.layers import HGRN2, RWKV7
from linrec.models import Config, LanguageModel
from linrec.models.blocks import Block
from linrec.models.huggingface import LinrecConfig, LinrecForCausalLM
from linrec.models.loading import convert
from linrec.state import map_tensors

OPTIONS = {"rwkv7": {"value_rank": 3, "gate_rank": 4}}
PATTERN = ("rwkv7", "gated_delta_net", "rwkv7", "softmax_attention")
SIZES: dict[str, Any] = {"vocab_size": 29, "d_model": 16, "num_heads": 2, "pattern": PATTERN}
CONFIG = Config(**SIZES, layer_options=OPTIONS, norm="layer", embed_norm=True, mlp="rwkv")


def model() -> LanguageModel:
    torch.manual_seed(0)
    made = LanguageModel(CONFIG).double().eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return made


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


def test_values_of_the_first_layer_reach_the_others_and_no_other_token() -> None:
    """Layer 2 by hand, between the other blocks: its values are mixed with those of layer 0, token by token."""
    made = model()
    tokens = torch.randint(29, (2, 7))
    x, blocks = made.embed(tokens), list(made.blocks)
    block = blocks[0]
    assert isinstance(block, Block) and block.pre_norm is not None and isinstance(block.mixer, RWKV7)
    with torch.no_grad():
        x = block.pre_norm(x)
        h = block.mixer_norm(x)
        first = block.mixer(h)[0][..., 16:]
        shifted = torch.nn.functional.pad(h, (0, 0, 1, -1)) - h
        close(first, block.mixer.v_proj(h + shifted * block.mixer.mu[3]))
        y, _ = block(made.embed(tokens), None, None, None)
        close(y[..., 16:], first)
        y, _ = blocks[1](y, None, None, None)
        close(y[..., 16:], first)
        changed = y.clone()
        changed[:, 4, 16:] += 1
        before, after = (blocks[2](z, None, None, None)[0] for z in (y, changed))
        close(before[:, :4], after[:, :4])
        assert not torch.allclose(before[:, 4, :16], after[:, 4, :16])


def test_pieces_forks_padding_and_packing() -> None:
    made, tokens = model(), torch.randint(29, (2, 11))
    with torch.no_grad():
        want = made(tokens).logits
        first = made(tokens[:, :6])
        kept = map_tensors(torch.clone, first.state)
        for _ in range(2):  # a state that was gone on from is as it was
            close(made(tokens[:, 6:], first.state).logits, want[:, 6:])
        step = made.step(tokens[:, 6:7], kept)
        close(step.logits, want[:, 6:7])
        mask = torch.ones_like(tokens)
        mask[0, 8:], mask[1, :3] = 0, 0
        padded = made(tokens, attention_mask=mask)
        close(padded.logits[0, :8], want[0, :8])
        close(padded.logits[1, 3:], made(tokens[1:, 3:]).logits[0])
        packed = made(tokens.view(1, -1), cu_seqlens=torch.tensor([0, 11, 22])).logits
        close(packed.view_as(want), want)
        close(made.prefill(tokens, chunk=4).logits, want[:, -1:])


def test_hidden_states_and_recomputation_through_transformers() -> None:
    model = LinrecForCausalLM(LinrecConfig.from_linrec(CONFIG)).double()
    tokens = torch.randint(29, (2, 9))
    output = model(tokens, labels=tokens, output_hidden_states=True)
    assert [h.shape for h in output.hidden_states] == [torch.Size([2, 9, 16])] * 5
    output.loss.backward()
    want = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.train()
    model.gradient_checkpointing_enable()
    model(tokens, labels=tokens).loss.backward()
    for name, parameter in model.named_parameters():
        close(parameter.grad, want[name])


def test_layers_share_learned_bounds() -> None:
    options = {"hgrn2": {"learned_bounds": True}}
    sizes: dict[str, Any] = {"d_model": 16, "num_heads": 2, "num_layers": 4}
    made = LanguageModel(
        Config(**sizes, pattern=("gated_delta_net", "hgrn2"), layer_options=options)
    ).double()
    tables = [name for name in made.state_dict() if "bounds" in name]
    assert tables == ["blocks.1.mixer.bounds.weight"]
    table = made.get_parameter(tables[0])
    assert table.shape == (4, 16)
    with torch.no_grad():
        table.normal_()
    shares = table.softmax(0)
    for block, want in ((1, shares[1]), (3, shares[1:].sum(0))):
        layer = made.blocks[block].mixer
        assert isinstance(layer, HGRN2)
        floor = layer.floor(torch.zeros(1, 1, 2, 8).double())
        assert floor is not None
        close(floor.flatten(), want)
    copy = deepcopy(made)
    tokens = torch.randint(29, (1, 6))
    with torch.no_grad():
        copy.get_parameter(tables[0]).zero_()
        assert not torch.allclose(copy(tokens).logits, made(tokens).logits)
    made(tokens).logits.square().sum().backward()
    assert table.grad is not None and bool(table.grad.abs().sum() > 0)


def test_what_does_not_fit_is_an_error() -> None:
    with pytest.raises(ShapeError, match=r"16 \+ 16 of an earlier layer"):
        RWKV7(16, 2, value_rank=3, depth=1)(torch.randn(1, 2, 16))
    for wrong in ({"norm": "batch"}, {"mlp": "moe"}, {"norm_bias": 1}, {"embed_norm": "yes"}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Config(**SIZES, **wrong)


def test_a_format_without_such_norms_refuses_them(tmp_path: Any) -> None:
    config = Config(**{**SIZES, "pattern": ("mamba2",)}, mlp_ratio=None, norm="layer")
    LanguageModel(config).save(tmp_path / "ours")
    with pytest.raises(CheckpointError, match="norm = 'layer'"):
        convert(LanguageModel, tmp_path / "ours", tmp_path / "theirs", "mamba2")


def test_without_biases_there_are_none(tmp_path: Any) -> None:
    made = LanguageModel(Config(**SIZES, layer_options=OPTIONS, norm="layer", norm_bias=False))
    assert not [
        name for name, _ in made.named_parameters() if name.endswith("norm.bias") and "mixer." not in name
    ]
    made.save(tmp_path)
    again = LanguageModel.load(tmp_path)
    tokens = torch.randint(29, (1, 5))
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, made.eval()(tokens).logits)
