"""One picture a suite, drawn from its records alone: accuracy against length or state, as bars, or as a heat map.

Lines are means over seeds, bands and dots the lowest and highest seed, the dotted line is random guessing.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any, NamedTuple

from linrec.evals.pages.pictures import GREY, INK, STYLE, save_png
from linrec.evals.suites.suite import Suite

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = dict[str, Any]
# Okabe and Ito's colours, told apart by people with any colour vision; marks and dashes tell them apart besides.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#8A8A00")
MARKS, DASHES = "osD^vP*X", ("-", "--", "-.")


class Point(NamedTuple):
    """Accuracy over seeds at one x."""

    x: float
    mean: float
    low: float
    high: float


def draw(suite: Suite, records: list[Record], path: Path) -> None:
    """Write the suite's picture as PNG; nothing for no records."""
    if not records:
        return
    from matplotlib import rc_context

    shown = best_rate(records)
    problems = [p.name for p in suite.problems if any(r["problem"]["name"] == p.name for r in shown)]
    with rc_context({**STYLE, "axes.titlepad": 10}):
        if suite.view == "heat":
            figure = _heat(suite, shown, problems)
        elif suite.view == "bars":
            figure = _bars(suite, shown, problems)
        else:
            figure = _lines(suite, shown, problems)
        figure.suptitle(suite.title, x=0.01, ha="left", fontsize=14, fontweight="bold")
        save_png(figure, path)


def best_rate(records: Iterable[Record]) -> list[Record]:
    """Of the runs that differ in the learning rate alone, the one that answers its training distribution best."""
    best: dict[tuple[Any, ...], Record] = {}
    for record in records:
        candidate = record["candidate"]
        key = (record["problem"]["name"], candidate["label"], candidate["width"], record["seed"])
        if key not in best or record["train_accuracy"] > best[key]["train_accuracy"]:
            best[key] = record
    return list(best.values())


def labels(suite: Suite) -> list[str]:
    """Each label once, in the suite's order."""
    return list(dict.fromkeys(candidate.label for candidate in suite.candidates))


def point(x: float, values: list[float]) -> Point:
    """Mean, lowest and highest."""
    return Point(x, mean(values), min(values), max(values))


def by_length(records: Iterable[Record]) -> list[Point]:
    """Accuracy at each test whose name is a length."""
    values: dict[int, list[float]] = {}
    for record in records:
        for test, score in record["scores"].items():
            if test.isdigit():
                values.setdefault(int(test), []).append(score)
    return [point(x, values[x]) for x in sorted(values)]


def by_state(records: Iterable[Record]) -> list[Point]:
    """Accuracy against the floats of the state, a point for each width."""
    values: dict[int, list[float]] = {}
    for record in records:
        for test, score in record["scores"].items():
            values.setdefault(record["state_floats"][test], []).append(score)
    return [point(x, values[x]) for x in sorted(values)]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def _lines(suite: Suite, records: list[Record], problems: list[str]) -> Figure:
    figure = _figure(3.4 + 5.6 * len(problems), 5)
    axes = figure.subplots(1, len(problems), squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        rows = [r for r in records if r["problem"]["name"] == problem]
        _curves(ax, suite, rows)
        ax.axhline(
            mean(rows[0]["chance"].values()), color=GREY, linestyle=":", linewidth=1.6, label="guessing"
        )
        ax.set_ylim(-0.02, 1.03)
        ax.set_ylabel("accuracy")
        if len(problems) > 1:
            ax.set_title(problem)
        if suite.view == "length":
            _length_axis(ax, rows)
        else:
            _state_axis(ax)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", fontsize=10)
    return figure


def _curves(ax: Axes, suite: Suite, rows: list[Record]) -> None:
    view = by_length if suite.view == "length" else by_state
    for n, label in enumerate(labels(suite)):
        points = view(r for r in rows if r["candidate"]["label"] == label)
        if not points:
            continue
        x = [p.x for p in points]
        colour = COLOURS[n % len(COLOURS)]
        ax.plot(
            x,
            [p.mean for p in points],
            color=colour,
            marker=MARKS[n % len(MARKS)],
            markersize=5,
            linestyle=DASHES[n // len(COLOURS) % len(DASHES)],
            linewidth=1.9,
            label=label,
        )
        ax.fill_between(
            x, [p.low for p in points], [p.high for p in points], color=colour, alpha=0.13, linewidth=0
        )


def _length_axis(ax: Axes, rows: list[Record]) -> None:
    lengths = sorted({int(test) for r in rows for test in r["scores"] if test.isdigit()})
    trained = max(source["length"] for source in rows[0]["problem"]["train"])
    ax.set_xscale("log", base=2)
    ax.set_xticks(lengths, [str(n) for n in lengths], fontsize=9)
    ax.minorticks_off()
    ax.axvspan(lengths[0] * 0.9, trained, color="#F1F1F1", zorder=0)
    ax.set_xlim(lengths[0] * 0.9, lengths[-1] * 1.08)
    ax.set_xlabel("tokens tested on (grey: up to the longest in training)")


def _state_axis(ax: Axes) -> None:
    ax.set_xscale("log", base=2)
    low, high = ax.get_xlim()
    ticks = [1 << n for n in range(4, 30) if low <= 1 << n <= high]
    ax.set_xticks(ticks, [f"{n // 1024}k" if n >= 1024 else str(n) for n in ticks], fontsize=9)
    ax.minorticks_off()
    ax.set_xlabel("floats of the state after the sequence")


def _bars(suite: Suite, records: list[Record], problems: list[str]) -> Figure:
    names = [n for n in labels(suite) if any(r["candidate"]["label"] == n for r in records)][::-1]
    figure = _figure(2.5 + 6 * len(problems), 1.6 + 0.42 * len(names))
    axes = figure.subplots(1, len(problems), squeeze=False)
    for ax, problem in zip(axes[0], problems, strict=True):
        rows = [r for r in records if r["problem"]["name"] == problem]
        for y, name in enumerate(names):
            values = [s for r in rows if r["candidate"]["label"] == name for s in r["scores"].values()]
            ax.barh(y, mean(values), color=COLOURS[0], height=0.6)
            ax.plot(values, [y] * len(values), "o", color=INK, markersize=4)
            ax.text(max(values) + 0.015, y, f"{mean(values):.2f}", va="center", fontsize=10)
        ax.axvline(mean(rows[0]["chance"].values()), color=GREY, linestyle=":", linewidth=1.8)
        ax.set_yticks(range(len(names)), names)
        ax.set_xlim(0, 1.1)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("accuracy (dots: seeds, dotted: guessing)")
        ax.set_title(problem)
    return figure


def _heat(suite: Suite, records: list[Record], problems: list[str]) -> Figure:
    names = [n for n in labels(suite) if any(r["candidate"]["label"] == n for r in records)]
    table = [[_cell(records, name, problem) for problem in problems] for name in names]
    chances = [_chance(records, problem) for problem in problems]
    figure = _figure(3 + 1.5 * len(problems), 2.2 + 0.45 * len(names))
    ax = figure.subplots()
    image = ax.imshow(table, cmap="viridis", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(table):
        for x, value in enumerate(row):
            ax.text(x, y, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else INK)
    ticks = [f"{p.replace(' ', chr(10))}\nguess {c:.2f}" for p, c in zip(problems, chances, strict=True)]
    ax.set_xticks(range(len(problems)), ticks, fontsize=10)
    ax.set_yticks(range(len(names)), names)
    ax.grid(False)
    ax.tick_params(length=0)
    figure.colorbar(image, label="accuracy", shrink=0.8)
    return figure


def _cell(records: list[Record], label: str, problem: str) -> float:
    found = [
        score
        for r in records
        if r["candidate"]["label"] == label and r["problem"]["name"] == problem
        for score in r["scores"].values()
    ]
    return mean(found) if found else float("nan")


def _chance(records: list[Record], problem: str) -> float:
    return mean(next(r for r in records if r["problem"]["name"] == problem)["chance"].values())
