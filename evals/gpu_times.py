"""Times on a GPU, the results checked first: the Triton backend, fla-core's chunk functions, softmax attention.

fla-core's functions take the same layout and the same natural-log decays, but other argument names, orders and default
scales; :data:`PEERS` says which of ours goes where, by name, and every call passes the scale. Its keys and values have
equally many heads.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.errors import BackendError, UnknownNameError
from linrec.evals.run import versions, write_json
from linrec.testing import budget, example_inputs, relative_error

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Peer:
    """A function of fla-core: its module and name, and our argument for each of its own."""

    module: str
    function: str
    arguments: dict[str, str]

    def load(self) -> Callable[..., Any]:
        return getattr(importlib.import_module(self.module), self.function)

    def keywords(self, inputs: dict[str, Tensor], scale: float) -> dict[str, Any]:
        """What the function is called with; a final state is asked for, as our rules always return one."""
        named = {theirs: inputs[ours] for theirs, ours in self.arguments.items()}
        return {**named, "scale": scale, "output_final_state": True}


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


PEERS = {
    "delta_net": Peer("fla.ops.delta_rule", "chunk_delta_rule", _same("q", "k", "v", "beta")),
    "gated_delta_net": Peer(
        "fla.ops.gated_delta_rule", "chunk_gated_delta_rule", _same("q", "k", "v", "g", "beta")
    ),
    "kimi_delta_attention": Peer("fla.ops.kda", "chunk_kda", _same("q", "k", "v", "g", "beta")),
    "gla": Peer("fla.ops.gla", "chunk_gla", _same("q", "k", "v", "g")),
    "lightning": Peer(
        "fla.ops.simple_gla", "chunk_simple_gla", {**_same("q", "k", "v"), "g_gamma": "g"}
    ),
    "rwkv6": Peer("fla.ops.rwkv6", "chunk_rwkv6", {**_same("k", "v", "u"), "r": "q", "w": "g"}),
    "generalized_delta": Peer(
        "fla.ops.generalized_delta_rule", "chunk_dplr_delta_rule", {**_same("q", "k", "v", "a", "b"), "gk": "g"}
    ),
}  # fmt: skip


@dataclass
class Timing:
    """Milliseconds of one implementation, medians; its error against float32 torch and what is allowed, of the
    output or of the gradient that is furthest off."""

    name: str
    forward: float
    backward: float
    error: float
    allowed: float


def compare(
    rule: str, *, batch: int = 4, length: int = 4096, heads: int = 16, width: int = 128,
    dtype: torch.dtype = torch.bfloat16, peers: bool = True,
) -> list[Timing]:  # fmt: skip
    """Time this rule's Triton backend, fla-core's function for it (if installed and ``peers``) and causal softmax
    attention of the same shape. BackendError where there is no GPU, or where a result is wrong."""
    from linrec.rules import RULES

    if rule not in RULES:
        raise UnknownNameError(f"unknown rule {rule!r}")
    if not torch.cuda.is_available():
        raise BackendError(
            "timing kernels needs a GPU, and torch sees none here; without --device cuda the CPU is timed"
        )
    sizes: dict[str, Any] = {"B": batch, "T": length, "H": heads, "HV": heads, "K": width, "V": width}
    exact = example_inputs(RULES[rule], dtype=torch.float32, device="cuda", **sizes)
    scale = width**-0.5
    tokens = {name for name, arg in RULES[rule].arguments.items() if arg.carries_tokens}
    inputs = {n: x.to(dtype) if n in tokens else x for n, x in exact.items()}
    plain = lambda **x: RULES[rule](**x, scale=scale, backend="torch").o  # noqa: E731
    reference, rough = _results(plain, exact), _results(plain, inputs)
    allowed = [
        0.0 if r is None or x is None else budget(r, x, dtype) for r, x in zip(rough, reference, strict=True)
    ]
    calls: dict[str, Callable[..., Tensor]] = {
        "linrec": lambda **x: RULES[rule](**x, scale=scale, backend="triton").o
    }
    if peers and rule in PEERS and importlib.util.find_spec("fla"):
        peer, function = PEERS[rule], PEERS[rule].load()
        calls["fla-core"] = lambda **x: function(**peer.keywords(x, scale))[0]
    found = []
    for name, call in calls.items():
        error, bound = worst(_results(call, inputs), reference, allowed)
        if name == "linrec" and error > bound:
            raise BackendError(f"{rule}: the result is off by {error:.1e}, allowed is {bound:.1e}")
        found.append(Timing(name, *_milliseconds(call, inputs), error, bound))
    shape = (batch, heads, length, width)
    qkv = {n: torch.randn(shape, device="cuda", dtype=dtype) for n in ("query", "key", "value")}
    attention = lambda **x: F.scaled_dot_product_attention(**x, is_causal=True)  # noqa: E731
    return [*found, Timing("softmax attention", *_milliseconds(attention, qkv), 0.0, 0.0)]


def _results(call: Callable[..., Tensor], inputs: dict[str, Tensor]) -> list[Tensor | None]:
    """The output and the gradient of every input, None where there is none (fla-core has none of ``g_gamma``)."""
    leaves = {n: x.detach().requires_grad_() for n, x in inputs.items()}
    o = call(**leaves)
    weight = torch.randn(o.shape, generator=torch.Generator().manual_seed(0)).to(o)
    return [o.detach(), *torch.autograd.grad(o, list(leaves.values()), weight, allow_unused=True)]


def worst(
    found: Sequence[Tensor | None], reference: Sequence[Tensor | None], allowed: Sequence[float]
) -> tuple[float, float]:
    """(error, allowed) of the tensor that is furthest off for what it is allowed."""
    errors = [
        (relative_error(x, exact), bound)
        for x, exact, bound in zip(found, reference, allowed, strict=True)
        if x is not None and exact is not None
    ]
    return max(errors, key=lambda pair: pair[0] / pair[1])


def report(rules: Sequence[str] = (), *, quick: bool = False) -> dict[str, list[Timing]]:
    """Timings of these rules (none: all that fla-core has as well)."""
    sizes: dict[str, Any] = {"batch": 1, "length": 512, "heads": 4, "width": 64} if quick else {}
    return {rule: compare(rule, **sizes) for rule in rules or PEERS}


def table(timed: dict[str, list[Timing]]) -> Table:
    """For the terminal."""
    from rich.table import Table

    made = Table("rule", "implementation", "forward ms", "backward ms", "error", "allowed")
    for rule, rows in timed.items():
        for row in rows:
            error = f"{row.error:.1e}" if row.allowed else ""
            allowed = f"{row.allowed:.1e}" if row.allowed else ""
            made.add_row(rule, row.name, f"{row.forward:.3f}", f"{row.backward:.3f}", error, allowed)
    return made


def write(timed: dict[str, list[Timing]], out: Path) -> Path:
    """``out/bench_gpu.json``, with the GPU and the versions."""
    rows = {rule: [asdict(row) for row in found] for rule, found in timed.items()}
    path = out / "bench_gpu.json"
    out.mkdir(parents=True, exist_ok=True)
    write_json(path, {"gpu": torch.cuda.get_device_name(), "versions": versions(), "rules": rows})
    return path


def _milliseconds(call: Callable[..., Tensor], inputs: dict[str, Tensor]) -> tuple[float, float]:
    """(forward, backward), each with a cold cache."""
    from triton.testing import do_bench

    leaves = {n: x.detach().requires_grad_() for n, x in inputs.items()}
    with torch.no_grad():
        forward = do_bench(lambda: call(**inputs), return_mode="median")
    o = call(**leaves)
    grad, wanted = torch.randn_like(o), list(leaves.values())
    backward = do_bench(
        lambda: torch.autograd.grad(o, wanted, grad, retain_graph=True, allow_unused=True),
        return_mode="median",
    )
    return forward, backward
