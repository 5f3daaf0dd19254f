"""The picture of ``linrec demo``, drawn from ``metrics.json`` alone, so that it can be redrawn.

Colours are Okabe and Ito's, told apart by people with any colour vision; every series has its own
label, line style or hatch besides.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linrec.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#9A9A9A", "#222222"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#888888",
    "axes.titlesize": 12.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 24,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "figure.facecolor": "white",
}


def save_png(figure: Figure, path: str | Path) -> None:
    """Write a figure, atomically."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))


def demo_picture(metrics: dict[str, Any], path: str | Path) -> None:
    """Draw loss, bits per byte and state size of a demo run into a PNG, written atomically."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(17, 5.9), dpi=130)
        axes = figure.subplots(1, 3)
        _loss(axes[0], metrics)
        _bits(axes[1], metrics)
        _memory(axes[2], metrics)
        figure.suptitle(metrics["title"], x=0.012, y=0.975, ha="left", fontsize=15, fontweight="bold")
        figure.text(0.012, 0.015, metrics["caption"], fontsize=9, color="#555555", ha="left", va="bottom")
        figure.tight_layout(rect=(0, 0.05, 1, 0.985), w_pad=3.0)
        save_png(figure, path)


def _subtitle(ax: Axes, text: str) -> None:
    ax.text(0, 1.025, text, transform=ax.transAxes, fontsize=9.5, color="#555555", va="bottom")


def _smooth(values: list[float], decay: float = 0.9) -> list[float]:
    """Exponential average, corrected for its start."""
    mean, weight, out = 0.0, 0.0, []
    for value in values:
        mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        out.append(mean / weight)
    return out


def _loss(ax: Axes, metrics: dict[str, Any]) -> None:
    curves = (("hybrid", BLUE, "-"), ("softmax", ORANGE, "--"))
    for key, colour, line in curves:
        model = metrics["models"][key]
        bits = [loss / math.log(2) for loss in model["losses"]]
        steps = range(1, len(bits) + 1)
        ax.plot(steps, bits, color=colour, alpha=0.18, linewidth=0.8)
        ax.plot(steps, _smooth(bits), color=colour, linestyle=line, linewidth=2.2, label=model["label"])
    ax.set_ylim(0.0, 8.2)
    ax.set_xlim(left=0)
    ax.set_xlabel("training step")
    ax.set_ylabel("training loss (bits per byte)")
    ax.set_title("Learning")
    _subtitle(ax, "thin: every step, thick: running mean")
    ax.legend(loc="upper right")


def _bits(ax: Axes, metrics: dict[str, Any]) -> None:
    bars = metrics["bits_per_byte"]
    colours = {"hybrid": BLUE, "softmax": ORANGE, "compressor": GREY}
    for x, bar in enumerate(bars):
        patches = ax.bar(
            x,
            bar["value"],
            width=0.68,
            color=colours[bar["kind"]],
            hatch={"softmax": "//", "compressor": ".."}.get(bar["kind"]),
            edgecolor="white",
        )
        ax.bar_label(patches, fmt="%.2f", padding=3, fontweight="bold", fontsize=12)
    ax.set_xticks(range(len(bars)), [bar["label"] for bar in bars], fontsize=9.5)
    ax.grid(axis="x", visible=False)
    ax.set_ylim(0, 1.15 * max(bar["value"] for bar in bars))
    ax.set_ylabel("bits per byte (lower is better)")
    ax.set_title("Held-out modules")
    _subtitle(ax, metrics["bits_note"])


def _memory(ax: Axes, metrics: dict[str, Any]) -> None:
    series = metrics["state_bytes"]
    looks = {"softmax": (ORANGE, "--", "s"), "hybrid": (BLUE, "-", "o"), "recurrent": (GREEN, "-.", "^")}
    for key, (colour, line, mark) in looks.items():
        curve = series["curves"][key]
        ax.plot(
            series["context"],
            curve["bytes"],
            color=colour,
            linestyle=line,
            marker=mark,
            linewidth=2.2,
            markersize=5,
        )
        ax.annotate(
            curve["label"],
            (series["context"][-1], curve["bytes"][-1]),
            xytext=(4, -34 if key == "hybrid" else 9),  # below its line, clear of the one above
            textcoords="offset points",
            ha="right",
            color=colour,
            fontweight="bold",
            fontsize=10,
        )
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xticks(series["context"], [_count(n) for n in series["context"]])
    lowest = min(min(c["bytes"]) for c in series["curves"].values())
    highest = max(max(c["bytes"]) for c in series["curves"].values())
    powers = [1 << n for n in range(10, 40, 2) if lowest / 4 <= 1 << n <= highest * 4]
    ax.set_yticks(powers, [_bytes(n) for n in powers])
    ax.minorticks_off()
    ax.set_xlabel("context (bytes of text)")
    ax.set_ylabel("state kept to continue")
    ax.set_title("Memory of one stream")
    _subtitle(ax, "measured, float32; hybrid: 1 softmax layer in 4")


def _count(n: int) -> str:
    return f"{n // 1024}k" if n >= 1024 else str(n)


def _bytes(n: int) -> str:
    return f"{n >> 20} MiB" if n >= 1 << 20 else f"{n >> 10} KiB"


def ratio_figure(labels: list[str], ratios: dict[str, list[float]]) -> Figure:
    """Bars of "times" a label, one a name side by side; the line at 1 is where nothing is gained."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(8.5, 1.2 + 0.8 * len(labels)), dpi=120, layout="constrained")
        ax = figure.subplots()
        height = 0.8 / len(ratios)
        for n, (name, values) in enumerate(ratios.items()):
            places = [i + n * height for i in range(len(labels))]
            bars = ax.barh(places, values, height * 0.9, label=name, color=(BLUE, ORANGE, GREEN)[n % 3])
            ax.bar_label(bars, [f"{value:.1f}x" for value in values], padding=4)
        ax.axvline(1.0, color=INK, linewidth=1)
        ax.set_yticks([i + 0.4 - height / 2 for i in range(len(labels))], labels)
        ax.margins(x=0.12)
        ax.invert_yaxis()
        ax.grid(axis="y", visible=False)
        ax.legend(loc="lower right")
    return figure
