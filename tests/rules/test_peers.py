"""Against transformers' own torch implementations, where these are right."""

import warnings

import pytest
import torch
import torch.nn.functional as F

from linrec import layers, rules
from linrec.testing import example_inputs, relative_error

pytest.importorskip("transformers")


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def test_gated_delta_net_equals_qwen3_next():
    from transformers.models.qwen3_next import modeling_qwen3_next as peer

    x = {n: t.float() for n, t in example_inputs(rules.gated_delta_net, T=150, HV=2).items()}
    for name in ("torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule"):
        reference = getattr(peer, name)
        reference = getattr(reference, "__wrapped__", reference)
        o, state = reference(*x.values(), initial_state=None, output_final_state=True)
        for form in ("parallel", "chunkwise", "recurrent"):
            got = rules.gated_delta_net.form(form)(**x)
            assert relative_error(got.o, o) < 2e-6, (name, form)
            assert relative_error(got.state, state) < 2e-6, (name, form)


def test_mamba2_layer_equals_transformers():
    from transformers import Mamba2Config
    from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer

    config = Mamba2Config(
        hidden_size=32,
        num_heads=4,
        head_dim=16,
        state_size=8,
        n_groups=2,
        expand=2,
        chunk_size=16,
        vocab_size=8,
    )
    torch.manual_seed(0)
    peer = Mamba2Mixer(config, layer_idx=0)
    ours = layers.Mamba2(32, head_dim=16, state_size=8, num_groups=2)
    with torch.no_grad():
        peer.dt_bias.uniform_(-3, 1)
        ours.in_proj.weight.copy_(peer.in_proj.weight)
        ours.conv.weight.copy_(peer.conv1d.weight[:, 0])
        assert ours.conv.bias is not None
        ours.conv.bias.copy_(peer.conv1d.bias)
        ours.decay.A_log.copy_(peer.A_log[:, None])
        ours.decay.bias.copy_(peer.dt_bias[:, None])
        ours.D.copy_(peer.D)
        ours.norm.weight.copy_(peer.norm.weight)
        ours.out_proj.weight.copy_(peer.out_proj.weight)
        x = torch.randn(2, 50, 32)
        want = peer(x)
        assert relative_error(ours(x)[0], want) < 5e-6


def test_softmax_attention_equals_torch():
    x = example_inputs(rules.softmax_attention, T=33)
    q, k, v = (t.transpose(1, 2) for t in x.values())
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).transpose(1, 2)
    assert relative_error(rules.softmax_attention.chunkwise(**x, chunk_size=8).o, want) < 1e-14
