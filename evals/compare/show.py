"""The outcome of a comparison: a row a mixer, the table, the picture and the page, made from the records alone."""

from __future__ import annotations

from statistics import mean
from typing import TYPE_CHECKING, Any

from linrec.evals.compare.setting import Setting
from linrec.evals.pages.pictures import BLUE, GREEN, GREY, ORANGE, STYLE
from linrec.evals.pages.report import Report, cell_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from rich.table import Table

Record = dict[str, Any]
COLUMNS = (
    "mixer",
    "parameters",
    "MLP width",
    "seeds",
    "bits/byte, windows",
    "lowest, highest",
    "bits/byte, carried",
    "train tokens/s",
    "decode tokens/s",
    "state bytes",
)


def summary(records: list[Record]) -> list[Record]:
    """A row a mixer, best bits per byte in windows first; costs are None where they were not measured."""
    costs: dict[str, Any] = next((r["rows"] for r in reversed(records) if r["kind"] == "cost"), {})
    runs: dict[str, list[Record]] = {}
    for record in records:
        if record["kind"] == "run":
            runs.setdefault(record["mixer"], []).append(record)
    rows = []
    for mixer, found in runs.items():
        row: Record = {"mixer": mixer, "parameters": found[0]["parameters"], "seeds": len(found)}
        row["mlp_width"] = -(-int(found[0]["config"]["d_model"] * found[0]["config"]["mlp_ratio"]) // 8) * 8
        for name in ("windows", "carried"):
            row[name] = [r["bits_per_byte"][name] for r in found]
        rows.append({**row, "cost": costs.get(mixer)})
    return sorted(rows, key=lambda row: mean(row["windows"]))


def cells(rows: list[Record]) -> list[tuple[Any, ...]]:
    """The rows as :data:`COLUMNS` names them."""
    found = []
    for row in rows:
        cost = row["cost"] or {}
        low, high = min(row["windows"]), max(row["windows"])
        speeds = [cost.get(f"{name}_tokens_per_second") for name in ("train", "decode")]
        found.append((
            row["mixer"], row["parameters"], row["mlp_width"], row["seeds"],
            f"{mean(row['windows']):.3f}", f"{low:.3f} {high:.3f}", f"{mean(row['carried']):.3f}",
            *(None if speed is None else round(speed) for speed in speeds), cost.get("state_bytes"),
        ))  # fmt: skip
    return found


def table(rows: list[Record], setting: Setting) -> Table:
    """For the terminal."""
    from rich.table import Table

    made = Table(title=title(setting), caption=caption(setting), padding=(0, 0))
    for n, column in enumerate(COLUMNS):
        made.add_column(column, justify="right" if n else "left", no_wrap=n == 0)
    for row in cells(rows):
        made.add_row(*map(cell_text, row))
    return made


def title(setting: Setting) -> str:
    """What was done, in one line."""
    t = setting.training
    return f"Byte models of equal size, {t.steps} steps of {t.batch_size} x {t.seq_len} bytes of Python's library"


def caption(setting: Setting) -> str:
    """How to read the figures."""
    return (
        f"Bits per byte on {setting.documents} held-out modules of at most {setting.document_bytes:,} bytes: in "
        f"windows of {setting.training.seq_len} bytes, and with the state carried through each module. Means over "
        f"seeds. State after {setting.context:,} tokens of one row."
    )


def comparison_figure(rows: list[Record], setting: Setting) -> Figure:
    """Bits per byte with every seed's range, state bytes and training speed, one line a mixer."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({**STYLE, "axes.titlepad": 10}):
        figure = Figure(figsize=(15, 2 + 0.42 * len(rows)), dpi=110, layout="constrained")
        bits, state, speed = figure.subplots(1, 3, sharey=True, width_ratios=(1.5, 1, 1))
        _bits(bits, rows)
        _bars(state, rows, "state_bytes", ORANGE, f"state after {setting.context:,} tokens (bytes)")
        _bars(speed, rows, "train_tokens_per_second", GREEN, "training tokens a second")
        bits.set_yticks(range(len(rows)), [row["mixer"] for row in rows])
        bits.invert_yaxis()
        figure.suptitle(title(setting), x=0.01, ha="left", fontsize=14, fontweight="bold")
    return figure


def _bits(ax: Axes, rows: list[Record]) -> None:
    looks = (
        ("windows", BLUE, "o", -0.12, "windows of the trained length"),
        ("carried", GREY, "D", 0.16, "carried"),
    )
    for name, colour, mark, shift, label in looks:
        x = [mean(row[name]) for row in rows]
        spread = [[m - min(r[name]) for m, r in zip(x, rows, strict=True)],
                  [max(r[name]) - m for m, r in zip(x, rows, strict=True)]]  # fmt: skip
        y = [n + shift for n in range(len(rows))]
        ax.errorbar(x, y, xerr=spread, fmt=mark, color=colour, capsize=3, markersize=6, label=label)
    ax.set_xlabel("bits per byte, held out (mean, lowest and highest seed)")
    ax.legend(loc="upper right", fontsize=9)


def _bars(ax: Axes, rows: list[Record], name: str, colour: str, label: str) -> None:
    shown = [(n, row["cost"][name]) for n, row in enumerate(rows) if row["cost"]]
    if not shown:
        return
    bars = ax.barh([n for n, _ in shown], [value for _, value in shown], height=0.6, color=colour)
    ax.bar_label(bars, [f"{value:,.0f}" for _, value in shown], padding=4, fontsize=9)
    ax.set_xscale("log")
    low, high = min(v for _, v in shown), max(v for _, v in shown)
    ax.set_xlim(low / 3, high * 6)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(label)


def page(rows: list[Record], records: list[Record], setting: Setting, figure: Figure) -> Report:
    """One HTML file with everything."""
    made = Report("Mixers as language models", title(setting))
    made.picture(figure, "Bits per byte, state and speed of each mixer")
    made.table(COLUMNS, cells(rows), caption(setting))
    made.text(
        "The layers around the mixers, the number of parameters (made equal by the width of the MLPs), the order "
        "of the batches and the learning rate are the same for all. The rate was not tuned for any of them."
    )
    made.heading("Runs")
    runs = [r for r in records if r["kind"] == "run"]
    made.table(
        ("mixer", "seed", "train loss (nats)", "windows", "carried", "seconds"),
        [
            (r["mixer"], r["seed"], r["train_loss"], r["bits_per_byte"]["windows"],
             r["bits_per_byte"]["carried"], r["seconds"])
            for r in runs
        ],
    )  # fmt: skip
    for line in dict.fromkeys(r["command"] for r in records):
        made.command(line)
    return made.versions(records[-1]["versions"]) if records else made
