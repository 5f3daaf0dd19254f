"""``linrec bench``: the cases, the table, the JSON file and the pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from linrec.errors import BenchmarkError, UnknownNameError
from linrec.evals.bench import decode, properties, whole_models
from linrec.evals.bench.cases import CASES, Case, delta_inputs
from linrec.evals.bench.choices import choice_rows
from linrec.evals.bench.families import FAMILIES
from linrec.evals.bench.forms import LENGTHS as FORM_LENGTHS
from linrec.evals.bench.forms import form_remarks, form_rows
from linrec.evals.bench.measure import AGREE, Work, gradients, interleaved, side_by_side
from linrec.evals.bench.peers import plain_softmax, softmax
from linrec.evals.records import versions, write_json
from linrec.rules import RULES
from linrec.testing import relative_error

if TYPE_CHECKING:
    from rich.table import Table

LENGTHS = (512, 1024, 2048, 4096, 8192)
CURVES = ("gated_delta_net", "kimi_delta_attention", "gla", "delta_net")
EXTRAS = ("peak", "length", "precision", "memory", "forms", "curves")
USUAL = (*(case.name for case in CASES), "step", "decode", "choices", *EXTRAS)
WHOLE = ("transformers", *(f"transformers:{family}" for family in FAMILIES))  # minutes; only where asked for
NAMES = (*USUAL, *WHOLE)

Report = dict[str, Any]


def run_bench(
    names: Sequence[str] = (), *, quick: bool = False, rounds: int | None = None, threads: int | None = None
) -> Report:
    """Measure the cases of these names (none: all but "transformers"). Raises UnknownNameError and BenchmarkError.

    ``rounds`` None runs each five times, what takes long two or three times.
    """
    unknown = set(names) - set(NAMES)
    if unknown:
        raise UnknownNameError(f"bench: no case {', '.join(sorted(unknown))}; cases are {', '.join(NAMES)}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return _report(set(names or USUAL), quick, rounds)
    finally:
        torch.set_num_threads(before)


def _report(wanted: set[str], quick: bool, rounds: int | None) -> Report:
    several, few = rounds or 5, rounds or 2
    report: Report = {"threads": torch.get_num_threads(), "versions": versions(), "rows": []}
    length, heads, width = (128, 2, 16) if quick else (4096, 16, 128)
    for case in CASES:
        if case.name in wanted:
            report["rows"] += case_rows(case, 128 if quick else case.length, several)
    for name, measure in (("step", decode.step_row), ("decode", decode.model_row)):
        if name in wanted:
            report["rows"].append(measure(quick, several))
    if "choices" in wanted:
        report["rows"] += choice_rows(quick, several)
    chosen = [f for f in FAMILIES if wanted & {"transformers", f"transformers:{f}"}]
    report["rows"] += whole_models.rows(quick, rounds or 3, chosen)
    extras: dict[str, Callable[[], Any]] = {
        "peak": lambda: properties.peak_fraction(length, heads, width, several),
        "length": lambda: properties.length_ratio(length, heads, width, few),
        "precision": lambda: properties.precision_ratio(length, heads, width, several),
        "memory": lambda: properties.extra_memory(length, heads, width),
        "forms": lambda: form_rows(FORM_LENGTHS[: 1 if quick else None], rounds or (2 if quick else 3)),
        "curves": lambda: curves(LENGTHS[:2] if quick else LENGTHS, heads, width, few),
    }
    return report | {name: extra() for name, extra in extras.items() if name in wanted}


def case_rows(case: Case, length: int, rounds: int) -> list[dict[str, Any]]:
    """Forward, and forward + backward: first the comparison, then the times."""
    inputs = list(case.make(length).values())
    if not case.check:
        check_softmax()
    rows = []

    def forward(f: Callable[..., Any]) -> Any:
        with torch.no_grad():
            return f(*inputs)

    def both(f: Callable[..., Any]) -> Any:
        return gradients(f, inputs[:3] if not case.check and f is case.theirs else inputs)

    for name, work in (("forward", forward), ("forward + backward", both)):
        row = {"case": case.name, "shape": f"T={length}, {case.shape}", "pass": name, "peer": case.peer}
        results = zip(_all(work(case.ours)), _all(work(case.theirs)), strict=True) if case.check else ()
        works: dict[str, Work] = {"ours": partial(work, case.ours), "theirs": partial(work, case.theirs)}
        rows.append(side_by_side(row, results, works, rounds))
    return rows


def _all(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def check_softmax() -> None:
    """The fused attention that is timed is causal softmax attention with the usual scale."""
    q, k, v, *_ = delta_inputs(130, 2, 16).values()
    difference = relative_error(softmax(q, k, v), plain_softmax(q, k, v))
    if not difference < AGREE:
        raise BenchmarkError(f"scaled_dot_product_attention differs from its definition by {difference:.1e}")


def curves(lengths: Sequence[int], heads: int, width: int, rounds: int) -> dict[str, Any]:
    """Forward seconds against length, rules and softmax attention in turns."""
    found: dict[str, list[float]] = {}
    for length in lengths:
        inputs = {channel: delta_inputs(length, heads, width, channel) for channel in (False, True)}
        works: dict[str, Callable[[], Any]] = {}
        for name in CURVES:
            given = inputs[name in ("kimi_delta_attention", "gla")]
            own = {n: x for n, x in given.items() if n in RULES[name].arguments}
            works[name] = partial(RULES[name], **own)
        works["softmax"] = partial(softmax, **{n: inputs[False][n] for n in "qkv"})
        with torch.no_grad():
            for name, seconds in interleaved(works, rounds).items():
                found.setdefault(name, []).append(seconds)
    return {"lengths": list(lengths), "seconds": found}


def table(report: Report) -> Table:
    """The rows against peers."""
    from rich.table import Table

    made = Table("case", "pass", "ours", "peer", "peer's", "ratio", "difference", show_lines=True)
    for row in report["rows"]:
        difference = f"{row['difference']:.0e}" if "difference" in row else "another function"
        ours, theirs = (f"{1e3 * row[n]:.4g} ms" for n in ("seconds", "peer_seconds"))
        made.add_row(
            f"{row['case']}\n{row['shape']}",
            row["pass"],
            ours,
            row["peer"],
            theirs,
            f"{row['ratio']:.2f}",
            difference,
        )
    return made


def remarks(report: Report) -> list[str]:
    """The measurements without a peer, a line each."""
    lines = []
    if found := report.get("peak"):
        for name, x in found["passes"].items():
            lines.append(
                f"gated_delta_net {name}: {x['gflop']:.1f} GFLOP in {1e3 * x['seconds']:.0f} ms, "
                f"{x['fraction']:.0%} of the matrix product's {found['peak_gflops']:.0f} GFLOP/s"
            )
    if found := report.get("length"):
        lines.append(
            f"T={8 * found['length']} takes {found['ratio']:.2f} times as long as T={found['length']}"
        )
    for name, ratio in report.get("precision", {}).items():
        lines.append(f"bfloat16 inputs, {name}: {ratio:.2f} times the time of float32")
    if found := report.get("memory"):
        lines.append(
            f"forward + backward holds at most {found['ratio']:.2f} times the inputs "
            f"({found['extra_bytes'] / 1e6:.0f} MB) beyond inputs, outputs and gradients"
        )
    return lines + form_remarks(report.get("forms", []))


def write(report: Report, folder: Path) -> list[Path]:
    """``bench.json`` and, where they were measured, the pictures."""
    from linrec.evals.bench.picture import draw

    write_json(folder / "bench.json", report)
    return [folder / "bench.json", *draw(report, folder)]
