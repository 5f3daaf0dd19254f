"""Records the small models in ``fla/``: random weights as flash-linear-attention writes them, and its logits.

The tests read what is recorded and need nothing of that project. To record anew, in an environment of its own::

    python3 -m venv peer
    peer/bin/pip install torch flash-linear-attention transformers triton
    TRITON_INTERPRET=1 peer/bin/python -m tests.models.formats.record_fla [NAME ...]

Its kernels need a GPU and float32. Here the models' own code runs in float64 on a CPU, with each kernel replaced by
what it computes, token by token (``plain_fla.py``); before recording, these loops are held against the project's own
plain references where it has some. Every parameter is drawn anew, so that none is as it is initialised.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from tests.models.formats.plain_fla import PLAIN, recurrence, retention, unit

HERE = Path(__file__).parent / "fla"
SMALL: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 2, "vocab_size": 31, "norm_eps": 1e-4}
SMALL |= {"intermediate_size": 24, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
DELTA = {"num_heads": 2, "head_dim": 4}
RWKV = {
    "head_dim": 4,
    "decay_low_rank_dim": 4,
    "gate_low_rank_dim": 6,
    "a_low_rank_dim": 3,
    "v_low_rank_dim": 5,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "gated_deltanet": (
        "GatedDeltaNet",
        {**DELTA, "num_v_heads": 4, "expand_v": 1.5, "allow_neg_eigval": True},
    ),
    "gated_deltanet_bare": ("GatedDeltaNet", {**DELTA, "use_short_conv": False, "use_gate": False}),
    "gated_deltanet_sigmoid": (
        "GatedDeltaNet",
        {**DELTA, "output_gate_activation": "sigmoid", "conv_size": 3, "tie_word_embeddings": True},
    ),
    "rwkv7": ("RWKV7", {**RWKV, "num_hidden_layers": 3}),
    "rwkv7_unfused": ("RWKV7", {**RWKV, "fuse_norm": False, "norm_first": False, "hidden_ratio": 2}),
    "delta_net": (
        "DeltaNet",
        {"num_heads": 4, "use_gate": True, "expand_k": 0.5, "expand_v": 0.75, "allow_neg_eigval": True},
    ),
    "delta_net_sums": (
        "DeltaNet",
        {"num_heads": 4, "qk_activation": "elu", "qk_norm": "sum", "use_beta": False},
    ),
    "delta_net_relu": (
        "DeltaNet",
        {"num_heads": 4, "qk_activation": "relu", "use_short_conv": False},
    ),
    "kda": ("KDA", {**DELTA, "num_v_heads": 4, "expand_v": 1.5, "allow_neg_eigval": True}),
    "kda_bounded": ("KDA", {**DELTA, "use_short_conv": False, "safe_gate": True, "lower_bound": -5.0}),
    "gla": ("GLA", {"num_heads": 2, "expand_k": 0.75, "intermediate_size": None, "hidden_ratio": 3}),
    "gla_unfused": (
        "GLA",
        {"num_heads": 2, "fuse_norm": False, "use_short_conv": True, "clamp_min": -0.04, "expand_v": 2.0},
    ),
    "gla_bare": ("GLA", {"num_heads": 2, "use_output_gate": False}),
    "retnet": ("RetNet", {"num_heads": 2}),
    "retnet_bare": ("RetNet", {"num_heads": 4, "expand_v": 1.0, "use_output_gate": False}),
    "hgrn2": ("HGRN2", {"expand_ratio": 4, "use_short_conv": True, "num_hidden_layers": 3}),
    "hgrn2_unbounded": ("HGRN2", {"expand_ratio": 8, "use_lower_bound": False}),
}


def replace_kernels() -> None:
    """Put PLAIN in place, and squared ReLU and SiLU where the models look activations up."""
    for where, plain in PLAIN.items():
        module, *names, last = where.split(".")
        owner: Any = importlib.import_module(f"fla.{module}")
        for name in names:
            inner = getattr(owner, name, None)
            owner = importlib.import_module(f"{owner.__name__}.{name}") if inner is None else inner
        assert hasattr(owner, last), where
        setattr(owner, last, plain)
    activations: dict[str, Any] = vars(importlib.import_module("fla.modules.activations"))["ACT2FN"]
    activations |= {"sqrelu": lambda x: x.relu().square(), "swish": F.silu}
    vars(importlib.import_module("fla.models.rwkv7.modeling_rwkv7"))["ACT2FN"].update(activations)


def check_loops() -> None:
    """The loops against the project's plain references, in float32, which is what these compute in."""
    ops = {
        name: importlib.import_module(f"fla.ops.{name}.naive") for name in ("gated_delta_rule", "kda", "gla")
    }
    q, k, v = (torch.randn(2, 9, 4, 8) for _ in range(3))
    g, beta = -torch.rand(2, 9, 4, 8), torch.rand(2, 9, 4)
    k = unit(k)
    pairs: list[tuple[Any, tuple[Any, ...]]] = [
        (
            ops["gated_delta_rule"].naive_recurrent_gated_delta_rule(q, k, v, beta, g[..., 0]),
            (g[..., :1], beta),
        ),
        (ops["kda"].naive_recurrent_kda(q, k, v, g, beta), (g, beta)),
        (ops["gla"].naive_recurrent_gla(q, k, v, g), (g,)),
    ]
    for (want, _), gates in pairs:
        torch.testing.assert_close(recurrence(q, k, v, *gates), want, rtol=1e-5, atol=1e-5)
    naive = importlib.import_module("fla.ops.retention.naive").naive_retention
    want = naive(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
    torch.testing.assert_close(retention(q, k, v)[0], want, rtol=1e-4, atol=1e-5)


def record(name: str) -> None:
    """The folder of one case: ``config.json``, ``model.safetensors``, and ``logits.safetensors`` with their tokens."""
    from safetensors.torch import save_file

    family, options = CASES[name]
    models = importlib.import_module("fla.models")
    torch.manual_seed(sum(name.encode()))
    model = getattr(models, f"{family}ForCausalLM")(
        getattr(models, f"{family}Config")(**SMALL | options)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            small = parameter.dim() < 2 or parameter.shape[-1] == 1
            parameter.copy_(parameter * (0.5 if small else 0.0) + 0.25 * torch.randn_like(parameter))
        model.save_pretrained(HERE / name)
        tokens = torch.randint(SMALL["vocab_size"], (2, 17))
        logits = model.double()(tokens, use_cache=False).logits
    assert logits.dtype == torch.float64
    save_file({"tokens": tokens, "logits": logits}, HERE / name / "logits.safetensors")
    size = sum(path.stat().st_size for path in (HERE / name).iterdir())
    print(f"{name}: {size / 1000:.0f} kB, logits of standard deviation {logits.std():.3g}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable()
    check_loops()
    replace_kernels()
    for case in sys.argv[1:] or CASES:
        record(case)
    print(json.dumps(sorted(path.name for path in HERE.iterdir())))
