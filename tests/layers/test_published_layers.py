"""Elementwise layers against the published models in transformers, with the same weights."""

import pytest
import torch

from linrec import layers
from linrec.testing import relative_error

pytest.importorskip("transformers")


def tokens():
    return torch.randn(2, 21, 32, dtype=torch.float64)


def copy(pairs):
    with torch.no_grad():
        for ours, theirs in pairs:
            ours.copy_(theirs)


def test_mamba():
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    theirs, ours = MambaMixer(MambaConfig(hidden_size=32), 0).double(), layers.Mamba(32).double()
    copy(
        [
            (ours.in_proj.weight, theirs.in_proj.weight),
            (ours.conv.weight, theirs.conv1d.weight[:, 0]),
            (ours.conv.bias, theirs.conv1d.bias),
            (ours.x_proj.weight, theirs.x_proj.weight),
            (ours.step_proj.weight, theirs.dt_proj.weight),
            (ours.step_proj.bias, theirs.dt_proj.bias),
            (ours.A_log, theirs.A_log),
            (ours.D, theirs.D),
            (ours.out_proj.weight, theirs.out_proj.weight),
        ]
    )
    x = tokens()
    assert relative_error(ours(x)[0], theirs(x)) < 1e-6  # theirs computes the decays in float32


def test_griffin():
    from transformers import RecurrentGemmaConfig
    from transformers.models.recurrent_gemma.modeling_recurrent_gemma import RecurrentGemmaRecurrentBlock

    config = RecurrentGemmaConfig(hidden_size=32, lru_width=32, num_attention_heads=4, num_hidden_layers=1)
    theirs, ours = RecurrentGemmaRecurrentBlock(config, 0).double(), layers.RGLRU(32, 4).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    unit = theirs.rg_lru
    copy(
        [
            (ours.in_proj.weight, torch.cat([theirs.linear_x.weight, theirs.linear_y.weight])),
            (ours.in_proj.bias, torch.cat([theirs.linear_x.bias, theirs.linear_y.bias])),
            (ours.conv.weight, theirs.conv_1d.weight[:, 0]),
            (ours.conv.bias, theirs.conv_1d.bias),
            (ours.gate_weight, torch.cat([unit.recurrent_gate_weight, unit.input_gate_weight], -1)),
            (ours.gate_bias, torch.cat([unit.recurrent_gate_bias, unit.input_gate_bias], -1)),
            (ours.rate, unit.recurrent_param),
            (ours.out_proj.weight, theirs.linear_out.weight),
            (ours.out_proj.bias, theirs.linear_out.bias),
        ]
    )
    x, places = tokens(), torch.arange(21).expand(2, -1)
    want = theirs(x, places, None, use_cache=False)
    want = want[0] if isinstance(want, tuple) else want
    assert relative_error(ours(x)[0], want) < 1e-6  # theirs keeps its state in float32


def test_rwkv4():
    from transformers import RwkvConfig
    from transformers.models.rwkv.modeling_rwkv import RwkvSelfAttention

    config = RwkvConfig(hidden_size=32, attention_hidden_size=32, num_hidden_layers=2)
    theirs, ours = RwkvSelfAttention(config, 0).double(), layers.RWKV4(32).double()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    copy(
        [
            (ours.decay, theirs.time_decay),
            (ours.bonus, theirs.time_first),
            (ours.mix_k, theirs.time_mix_key[0, 0]),
            (ours.mix_v, theirs.time_mix_value[0, 0]),
            (ours.mix_r, theirs.time_mix_receptance[0, 0]),
            (ours.k_proj.weight, theirs.key.weight),
            (ours.v_proj.weight, theirs.value.weight),
            (ours.r_proj.weight, theirs.receptance.weight),
            (ours.out_proj.weight, theirs.output.weight),
        ]
    )
    x = tokens()
    assert relative_error(ours(x)[0], theirs(x)[0]) < 1e-6  # theirs keeps its sums in float32
