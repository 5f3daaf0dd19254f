"""Decoding token by token at batch one, the same weights in both libraries."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from linrec import rules
from linrec.donation import donation
from linrec.errors import BenchmarkError
from linrec.evals.bench import peers
from linrec.evals.bench.cases import delta_inputs
from linrec.evals.bench.measure import Work, side_by_side
from linrec.models.config import Config
from linrec.models.language_model import LanguageModel
from linrec.state import map_tensors, named_tensors

# Mamba-2's 130M model: 24 layers of mixers only.
FULL = {"width": 768, "layers": 24, "state": 128, "vocab": 50288}
QUICK = {"width": 128, "layers": 2, "state": 16, "vocab": 512}


def step_row(quick: bool, rounds: int) -> dict[str, Any]:
    """One token of the gated delta rule at batch one, H=16, K=V=128."""
    q, k, v, g, beta = delta_inputs(1, *((2, 16) if quick else (16, 128))).values()
    state = torch.randn(1, *q.shape[2:], v.shape[3])

    def ours() -> tuple[Tensor, Any]:
        return rules.gated_delta_net.step(q, k, v, g, beta, state=state)

    def theirs() -> tuple[Tensor, Tensor]:
        return peers.gated_delta_step(q, k, v, g, beta, state)

    row = {
        "case": "gated_delta_net step",
        "shape": f"H={q.shape[2]}, K=V={q.shape[3]}",
        "pass": "one token",
        "peer": "transformers",
    }
    works: dict[str, Work] = {"ours": partial(_again, ours, 50), "theirs": partial(_again, theirs, 50)}
    with torch.no_grad():
        return side_by_side(row, zip(ours(), theirs(), strict=True), works, 3 * rounds, count=50)


def model_row(quick: bool, rounds: int) -> dict[str, Any]:
    """Tokens a second of a whole Mamba-2 model, greedy, from the state after a short prompt."""
    sizes = QUICK if quick else FULL
    tokens = 4 if quick else 16
    theirs = transformers_model(**sizes)
    ours = same_model(theirs, **sizes)
    prompt = torch.arange(1, 9)[None]
    row = {
        "case": "mamba2 model decode",
        "shape": ", ".join(f"{k} {v}" for k, v in sizes.items()),
        "pass": "one token",
        "peer": "transformers",
    }
    with torch.inference_mode():
        decode_ours, decode_theirs = _Ours(ours, prompt), _Theirs(theirs, prompt)
        results = zip(decode_ours(3), decode_theirs(3), strict=True)
        works: dict[str, Work] = {
            "ours": partial(decode_ours, tokens),
            "theirs": partial(decode_theirs, tokens),
        }
        return side_by_side(row, results, works, rounds, count=tokens)


def _again(work: Work, count: int) -> None:
    """Results are dropped: keeping 50 states would time the system's handing out of fresh memory."""
    for _ in range(count):
        work()


class _Ours:
    """Greedy tokens from the state after a prompt, every time from a copy; the logits that each was drawn from next.

    The copy goes where the last one was: like transformers' cache, the state that is decoded on is made once.
    """

    def __init__(self, model: LanguageModel, prompt: Tensor):
        self.model, self.start = model, model.prefill(prompt)
        self.state = map_tensors(torch.clone, self.start.state)

    def __call__(self, tokens: int) -> list[Tensor]:
        for (_, own), (_, kept) in zip(*map(named_tensors, (self.state, self.start.state)), strict=True):
            own.copy_(kept)
        logits, every = self.start.logits, []
        for _ in range(tokens):
            with donation(self.state):
                logits, self.state = self.model.step(logits[:, -1].argmax(-1, keepdim=True), self.state)
            every.append(logits)
        return every


class _Theirs:
    """The same, but on and on: transformers changes its cache in place."""

    def __init__(self, model: Any, prompt: Tensor):
        self.model, self.output = model, model(prompt, use_cache=True)
        self.cache = next(name for name in ("cache", "cache_params") if name in self.output)  # by version

    def __call__(self, tokens: int) -> list[Tensor]:
        every = []
        for _ in range(tokens):
            token = self.output.logits[:, -1].argmax(-1, keepdim=True)
            self.output = self.model(token, use_cache=True, **{self.cache: self.output[self.cache]})
            every.append(self.output.logits)
        return every


def transformers_model(width: int, layers: int, state: int, vocab: int) -> Any:
    """Transformers' Mamba-2 with random weights."""
    from transformers import Mamba2Config, Mamba2ForCausalLM

    config = Mamba2Config(
        hidden_size=width,
        num_hidden_layers=layers,
        state_size=state,
        head_dim=64,
        num_heads=2 * width // 64,
        n_groups=1,
        vocab_size=vocab,
        tie_word_embeddings=False,
        use_cache=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Mamba2ForCausalLM(config).eval()


def same_model(theirs: Any, width: int, layers: int, state: int, vocab: int) -> LanguageModel:
    """This library's model with the same weights."""
    config = Config(
        vocab_size=vocab,
        d_model=width,
        num_layers=layers,
        pattern=("mamba2",),
        num_heads=2 * width // 64,
        mlp_ratio=None,
        tie_embeddings=False,
        layer_options={"mamba2": {"state_size": state}},
    )
    model = LanguageModel(config).eval()
    names = {
        "backbone.embeddings.weight": "embed.weight",
        "backbone.norm_f.weight": "norm.weight",
        "lm_head.weight": "head.weight",
    }
    parts = {
        "norm.weight": "mixer_norm.weight",
        "mixer.in_proj.weight": "mixer.in_proj.weight",
        "mixer.conv1d.weight": "mixer.conv.weight",
        "mixer.conv1d.bias": "mixer.conv.bias",
        "mixer.dt_bias": "mixer.decay.bias",
        "mixer.A_log": "mixer.decay.A_log",
        "mixer.D": "mixer.D",
        "mixer.norm.weight": "mixer.norm.weight",
        "mixer.out_proj.weight": "mixer.out_proj.weight",
    }
    for n in range(layers):
        names |= {f"backbone.layers.{n}.{a}": f"blocks.{n}.{b}" for a, b in parts.items()}
    own = model.state_dict()
    weights = {names[name]: x.reshape(own[names[name]].shape) for name, x in theirs.state_dict().items()}
    if weights.keys() != own.keys():
        raise BenchmarkError(f"weights without a counterpart: {sorted(weights.keys() ^ own.keys())}")
    model.load_state_dict(weights)
    return model
