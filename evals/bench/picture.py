"""Pictures of a benchmark report: time against length, and the share of the machine that is reached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from linrec.evals.pages.pictures import BLUE, GREEN, GREY, ORANGE, STYLE, save_png

LINES = ((BLUE, "-"), (GREEN, "--"), ("#56B4E9", "-."), ("#CC79A7", ":"), (ORANGE, "-"))


def draw(report: dict[str, Any], folder: Path) -> list[Path]:
    """The pictures that the report has figures for."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    made = []
    for key, name, picture in (("curves", "time.png", _time), ("peak", "peak.png", _peak)):
        if key not in report:
            continue
        with rc_context(STYLE):
            figure = Figure(figsize=(8, 5), dpi=130, layout="tight")
            picture(figure.subplots(), report[key])
            save_png(figure, folder / name)
        made.append(folder / name)
    return made


def _time(ax: Any, found: dict[str, Any]) -> None:
    for (name, seconds), (colour, line) in zip(found["seconds"].items(), LINES, strict=True):
        ax.loglog(found["lengths"], seconds, line, color=colour, label=name, marker="o", ms=4, lw=2)
    ax.set_xticks(found["lengths"], [str(n) for n in found["lengths"]])
    ax.minorticks_off()
    ax.set(title="Time of the forward pass", xlabel="tokens", ylabel="seconds")
    ax.legend()


def _peak(ax: Any, found: dict[str, Any]) -> None:
    names = list(found["passes"])
    shares = [found["passes"][n]["fraction"] for n in names]
    bars = ax.barh(names, shares, color=[BLUE, GREEN], height=0.5)
    ax.bar_label(bars, [f"{s:.0%}" for s in shares], padding=4)
    ax.axvline(1, color=GREY, lw=1.5)
    ax.text(0.99, 0.5, f"matrix product, {found['peak_gflops']:.0f} GFLOP/s", ha="right", color="#555555")
    ax.set(title="Gated delta rule: share of the matrix product's speed", xlabel="share", xlim=(0, 1.05))
    ax.grid(axis="y", visible=False)
