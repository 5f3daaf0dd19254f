"""The picture of docs/feedback.md: ``python -m linrec.evals.feedback_picture docs/feedback.png``.

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
from linrec.evals.pictures import INK, STYLE
from linrec.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LENGTH, WIDTH, TOPICS = 48, 16, 4


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
    ones = torch.ones(1, LENGTH, 1)
    gate = torch.full((1, LENGTH, 1), -0.02)
    gate[:, LENGTH // 2] = -4.0
    slope = torch.tensor([-0.15])
    how = {"scale": 1.0}
    return [
        Panel(
            "Softmax", "every earlier token of the topic", _read(rules.softmax_attention(q, k, v, **how).o)
        ),
        Panel(
            "ALiBi",
            "constant decay: a bias per token of distance",
            _read(rules.alibi(q, k, v, slope, **how).o),
        ),
        Panel(
            "FoX",
            "decay from the input: a gate closed at 24",
            _read(rules.forgetting_attention(q, k, v, gate, **how).o),
        ),
        Panel(
            "DeltaNet",
            "β = 1: a key is overwritten when it returns",
            _read(rules.delta_net(q, k, v, ones, **how).o),
        ),
        Panel(
            "DeltaFormer",
            "the delta rule in softmax's feature space",
            _read(rules.delta_former(q, k, v, **how).o),
        ),
        Panel(
            "PaTH, w = k", "softmax of DeltaNet's matrix", _read(rules.path_attention(q, k, v, k, **how).o)
        ),
    ]


def _read(o: Tensor) -> Tensor:
    return o[0, :, 0]


def draw(path: str | Path) -> None:
    """Write the picture as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):  # type: ignore[arg-type]
        figure, axes = plt.subplots(2, 3, figsize=(12.5, 9.2), dpi=110)
        for ax, panel in zip(axes.flat, panels(), strict=True):
            _matrix(figure, ax, panel)
        figure.suptitle("What token i takes from token j", x=0.02, ha="left", fontsize=15, fontweight="bold")
        figure.tight_layout(rect=(0, 0, 1, 0.96), h_pad=2.0)
        write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
        plt.close(figure)


def _matrix(figure: Figure, ax: Axes, panel: Panel) -> None:
    """Blue takes, red takes away, white above the diagonal; a root shows small weights beside large ones."""
    shown = panel.matrix.sign() * panel.matrix.abs().sqrt()
    limit = float(shown.abs().quantile(0.995))
    shown = shown.masked_fill(torch.ones_like(shown, dtype=torch.bool).triu(1), float("nan"))
    image = ax.imshow(shown.numpy(), cmap="RdBu", vmin=-limit, vmax=limit, interpolation="nearest")
    ax.set_title(panel.title)
    ax.text(0, 1.02, panel.text, transform=ax.transAxes, fontsize=9.5, color="#555555", va="bottom")
    ax.set_xlabel("from token j")
    ax.set_ylabel("at token i")
    ax.set_xticks(range(0, LENGTH + 1, 12))
    ax.set_yticks(range(0, LENGTH + 1, 12))
    ax.grid(False)
    bar = figure.colorbar(image, ax=ax, shrink=0.8, pad=0.03)
    bar.set_label("sign · √|weight|", color=INK, fontsize=9)


if __name__ == "__main__":
    draw(sys.argv[1] if len(sys.argv) > 1 else "feedback.png")
