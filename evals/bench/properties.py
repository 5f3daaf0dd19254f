"""What a rule's speed is held against besides peers: the machine, its own length, precision and memory."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import torch
from torch import Tensor

from linrec import rules
from linrec.evals.bench.cases import delta_inputs
from linrec.evals.bench.measure import gradients, interleaved, matrix_peak, peak_memory

CHUNK = 64


def chunk_flops(length: int, heads: int, key: int, value: int) -> tuple[int, int]:
    """FLOPs of the gated delta rule's chunk algorithm, (forward, forward + backward), 2 a multiply-add, C = 64.

    Forward: Q K^T and K K^T (2 C^2 K), solve and P X (2 C^2 V), the products of K, Q and K^T with the state
    (3 C K V). Backward: dP, dL, P^T dO and the transposed solve (4 C^2 V), those of both score matrices with K and Q
    (4 C^2 K), and six products with a state (6 C K V). What the backward pass computes again is not counted.
    """
    square_k, square_v, state = CHUNK * CHUNK * key, CHUNK * CHUNK * value, CHUNK * key * value
    forward = 2 * square_k + 2 * square_v + 3 * state
    backward = 4 * square_k + 4 * square_v + 6 * state
    chunks = heads * -(-length // CHUNK)
    return 2 * forward * chunks, 2 * (forward + backward) * chunks


def _passes(inputs: list[Tensor]) -> dict[str, Any]:
    def forward() -> Tensor:
        with torch.no_grad():
            return rules.gated_delta_net(*inputs).o

    return {
        "forward": forward,
        "forward + backward": lambda: gradients(lambda *x: rules.gated_delta_net(*x).o, inputs),
    }


def peak_fraction(length: int, heads: int, width: int, rounds: int) -> dict[str, Any]:
    """Share of the measured matrix-product speed that the gated delta rule reaches."""
    works = _passes(list(delta_inputs(length, heads, width).values()))
    peak = matrix_peak(512 if length < 1024 else 2048)
    times = interleaved(works, rounds)
    peak = max(peak, matrix_peak(512 if length < 1024 else 2048))
    flops = dict(zip(works, chunk_flops(length, heads, width, width), strict=True))
    return {
        "peak_gflops": peak / 1e9,
        "passes": {
            name: {"gflop": flops[name] / 1e9, "seconds": t, "fraction": flops[name] / t / peak}
            for name, t in times.items()
        },
    }


def length_ratio(length: int, heads: int, width: int, rounds: int) -> dict[str, float]:
    """Time at eight times the length over the time at the length."""
    short, long = (
        _passes(list(delta_inputs(n, heads, width).values()))["forward"] for n in (length, 8 * length)
    )
    times = interleaved({"short": short, "long": long}, rounds)
    return {"length": length, "seconds": times["short"], "ratio": times["long"] / times["short"]}


def precision_ratio(length: int, heads: int, width: int, rounds: int) -> dict[str, float]:
    """Time with bfloat16 inputs over the time with float32 inputs, forward and forward + backward."""
    wide = list(delta_inputs(length, heads, width).values())
    narrow = [x.bfloat16() for x in wide]
    works = {f"{n} {d}": w for d, x in (("f", wide), ("b", narrow)) for n, w in _passes(x).items()}
    times = interleaved(works, rounds)
    return {name: times[f"{name} b"] / times[f"{name} f"] for name in _passes(wide)}


def extra_memory(length: int, heads: int, width: int) -> dict[str, float]:
    """Peak memory of forward + backward beyond inputs, outputs and gradients, in units of the inputs (Linux)."""
    code = (
        f"from linrec.evals.bench.properties import _extra_memory as f; print(f({length}, {heads}, {width}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    extra, given = (int(n) for n in done.stdout.split())
    return {"extra_bytes": extra, "input_bytes": given, "ratio": extra / given}


def _extra_memory(length: int, heads: int, width: int) -> str:
    inputs = list(delta_inputs(length, heads, width).values())
    small = [x[:, :CHUNK] for x in inputs]
    gradients(lambda *x: rules.gated_delta_net(*x).o, small)  # the libraries' own buffers
    given = sum(x.nbytes for x in inputs)
    outputs = inputs[2].nbytes
    # gradients() holds the output, its gradient and the gradients of the inputs.
    peak = peak_memory(lambda: gradients(lambda *x: rules.gated_delta_net(*x).o, inputs))
    return f"{max(peak - 2 * outputs - given, 0)} {given}"
