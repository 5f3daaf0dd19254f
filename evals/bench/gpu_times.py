"""Times on a GPU, the results checked first: the Triton backend, fla-core's chunk functions, softmax attention.

fla-core's functions take the same layout and the same natural-log decays, but other argument names, orders and default
scales; :data:`PEERS` says which of ours goes where, by name, and every call passes the scale. Its keys and values have
equally many heads.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.errors import BackendError, UnknownNameError
from linrec.evals.records import versions, write_json
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
        """The function; ImportError where fla-core is not installed."""
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
    need_gpu("; without --device cuda the CPU is timed")
    sizes: dict[str, Any] = {"B": batch, "T": length, "H": heads, "HV": heads, "K": width, "V": width}
    x = expected(rule, dtype, "cuda", **sizes)
    calls: dict[str, Callable[..., Tensor]] = {"linrec": caller(rule, x.scale)}
    if peers and rule in PEERS and importlib.util.find_spec("fla"):
        peer, function = PEERS[rule], PEERS[rule].load()
        calls["fla-core"] = lambda **given: function(**peer.keywords(given, x.scale))[0]
    found = []
    for name, call in calls.items():
        error, bound = x.check(call, rule) if name == "linrec" else x.error(call)
        found.append(Timing(name, *_milliseconds(call, x.inputs), error, bound))
    shape = (batch, heads, length, width)
    qkv = {n: torch.randn(shape, device="cuda", dtype=dtype) for n in ("query", "key", "value")}
    attention = lambda **x: F.scaled_dot_product_attention(**x, is_causal=True)  # noqa: E731
    return [*found, Timing("softmax attention", *_milliseconds(attention, qkv), 0.0, 0.0)]


def need_gpu(instead: str = "") -> None:
    """BackendError where torch sees no GPU."""
    if not torch.cuda.is_available():
        raise BackendError(f"timing kernels needs a GPU, and torch sees none here{instead}")


def caller(rule: str, scale: float, backend: str = "triton") -> Callable[..., Tensor]:
    """The output of a rule, as a function of its tensors."""
    from linrec.rules import RULES

    return lambda **x: RULES[rule](**x, scale=scale, backend=backend).o


@dataclass
class Expected:
    """A rule's inputs, and what torch makes of them: the results, and how far off others may be."""

    inputs: dict[str, Tensor]
    scale: float
    reference: list[Tensor | None]
    allowed: list[float]

    def error(self, call: Callable[..., Tensor]) -> tuple[float, float]:
        """(error, allowed) of what is furthest off: the output or a gradient."""
        return worst(_results(call, self.inputs), self.reference, self.allowed)

    def check(self, call: Callable[..., Tensor], who: str) -> tuple[float, float]:
        """The same; BackendError where that is too much."""
        return enough(*self.error(call), who)


def expected(rule: str, dtype: torch.dtype, device: str, **sizes: int) -> Expected:
    """Inputs in ``dtype``, and torch's results in higher precision (see :func:`drawn`)."""
    exact, inputs = drawn(rule, dtype, device, **sizes)
    scale = sizes["K"] ** -0.5
    plain = caller(rule, scale, "torch")
    reference = _results(plain, exact)
    return Expected(inputs, scale, reference, allowances(_results(plain, inputs), reference, dtype))


def drawn(
    rule: str, dtype: torch.dtype, device: str, **sizes: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Example inputs in higher precision (float32, of float32 float64), and the same with tokens in ``dtype``."""
    from linrec.rules import RULES

    higher = torch.float64 if dtype == torch.float32 else torch.float32
    exact = example_inputs(RULES[rule], dtype=higher, device=device, **sizes)
    tokens = {name for name, arg in RULES[rule].arguments.items() if arg.carries_tokens}
    return exact, {n: x.to(dtype if n in tokens else torch.float32) for n, x in exact.items()}


def allowances(
    rough: Sequence[Tensor | None], reference: Sequence[Tensor | None], dtype: torch.dtype
) -> list[float]:
    """What each result may be off, from torch's own in ``dtype``; products of float32 are three of tf32."""
    products = 1e-5 if dtype == torch.float32 else 0.0
    return [
        0.0 if r is None or x is None else budget(r, x, dtype) + products
        for r, x in zip(rough, reference, strict=True)
    ]


def enough(error: float, allowed: float, who: str) -> tuple[float, float]:
    """(error, allowed); BackendError where the error is larger, or not a number."""
    if not error <= allowed:
        raise BackendError(f"{who}: the result is off by {error:.1e}, allowed is {allowed:.1e}")
    return error, allowed


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
    return max(errors, key=lambda pair: math.inf if math.isnan(pair[0]) else pair[0] / pair[1])


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
    write_json(path, {"gpu": torch.cuda.get_device_name(), "versions": versions(), "rules": rows})
    return path


def _milliseconds(call: Callable[..., Tensor], inputs: dict[str, Tensor]) -> tuple[float, float]:
    """(forward, backward), each with a cold cache."""
    return forward_ms(lambda: call(**inputs)), backward_ms(call, inputs)


def forward_ms(call: Callable[[], Any]) -> float:
    """Milliseconds without gradients, the median, with a cold cache."""
    from triton.testing import do_bench

    with torch.no_grad():
        return do_bench(call, return_mode="median")


def backward_ms(call: Callable[..., Tensor], inputs: dict[str, Tensor]) -> float:
    """Milliseconds of the gradients of all inputs, likewise."""
    from triton.testing import do_bench

    leaves = {n: x.detach().requires_grad_() for n, x in inputs.items()}
    o = call(**leaves)
    grad, wanted = torch.randn_like(o), list(leaves.values())
    return do_bench(
        lambda: torch.autograd.grad(o, wanted, grad, retain_graph=True, allow_unused=True),
        return_mode="median",
    )
