"""The picture of docs/feedback.md: ``python -m linrec.evals.pages.feedback_picture docs/feedback.png``.

Each panel is a whole T x T matrix of one rule, read off by giving it the identity as values.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec import rules
from linrec.evals.pages.pictures import STYLE, save_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LENGTH, WIDTH, TOPICS = 48, 16, 4
CAPTION = "Blue adds, red takes away. The shade is the root of the weight, each panel on its own scale."


class Panel(NamedTuple):
    """One matrix, what it is, and what it says."""

    title: str
    text: str
    matrix: Tensor


def panels() -> list[Panel]:
    """The matrices, from tokens that return to a few topics in turn; a strong reset lies in the middle."""
    torch.manual_seed(4)
    topic = (torch.arange(LENGTH) // 4) % TOPICS
    centre = F.normalize(torch.randn(TOPICS, WIDTH), dim=-1)
    k = F.normalize(centre[topic] + 0.12 * torch.randn(LENGTH, WIDTH), dim=-1)
    q = 7 * F.normalize(centre[topic] + 0.12 * torch.randn(LENGTH, WIDTH), dim=-1)
    q, k, v = q[None, :, None], k[None, :, None], torch.eye(LENGTH)[None, :, None]
    weak = torch.full((1, LENGTH, 1), 0.15)
    gate = torch.full((1, LENGTH, 1), -0.02)
    gate[:, LENGTH // 2] = -4.0
    slope = torch.tensor([-0.15])
    made = (
        (
            "Softmax",
            "every earlier token of the topic",
            rules.softmax_attention(q, k, v, scale=1.0),
        ),
        ("ALiBi", "constant decay: a bias by distance", rules.alibi(q, k, v, slope, scale=1.0)),
        (
            "FoX",
            "decay from the input: the gate shuts at 24",
            rules.forgetting_attention(q, k, v, gate, scale=1.0),
        ),
        ("DeltaNet", "β = 0.15: what returns replaces what was", rules.delta_net(q, k, v, weak, scale=1.0)),
        ("DeltaFormer", "the delta rule in softmax's features", rules.delta_former(q, k, v, scale=1.0)),
        (
            "PaTH",
            "w = k, β = 0.15: softmax of such a matrix",
            rules.path_attention(q, k, v, k, weak, scale=1.0),
        ),
    )
    return [Panel(title, text, output.o[0, :, 0]) for title, text, output in made]


def draw(path: str | Path) -> None:
    """Write the picture as PNG."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(11, 8.3), dpi=110)
        axes = figure.subplots(2, 3)
        for ax, panel in zip(axes.flat, panels(), strict=True):
            _matrix(ax, panel)
        figure.suptitle("What token i takes from token j", x=0.02, ha="left", fontsize=15, fontweight="bold")
        figure.text(0.02, 0.012, CAPTION, fontsize=9, color="#555555")
        figure.tight_layout(rect=(0, 0.03, 1, 0.99), h_pad=0.5)
        save_png(figure, path)


def _matrix(ax: Axes, panel: Panel) -> None:
    """Blue takes, red takes away, white above the diagonal; a root shows small weights beside large ones."""
    shown = panel.matrix.sign() * panel.matrix.abs().sqrt()
    limit = float(shown.abs().quantile(0.995))
    shown = shown.masked_fill(torch.ones_like(shown, dtype=torch.bool).triu(1), float("nan"))
    ax.imshow(shown.numpy(), cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.set_title(panel.title)
    ax.text(0, 1.02, panel.text, transform=ax.transAxes, fontsize=9.5, color="#555555", va="bottom")
    ax.set_xlabel("from token j")
    ax.set_ylabel("at token i")
    ax.set_xticks(range(0, LENGTH + 1, 12))
    ax.set_yticks(range(0, LENGTH + 1, 12))
    ax.grid(False)


if __name__ == "__main__":
    draw(sys.argv[1] if len(sys.argv) > 1 else "feedback.png")
