"""Memory for the chunks of recurrences with one decay a head, which every chunk of the same length uses again.

The R value heads of a group share q and k. What is multiplied with rows of q or k lies by group, ``[B H, ., R V]``, so
that one product serves all heads of a group; what is multiplied with scores lies by head, ``[B H R, ., V]``. Gates
scale either through a view ``[B, H, R, C, .]``. The rows that read, those of k and those of q, are multiplied
together; J = 2 says that there are both, J = 1 that only q reads.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from linrec.engines.numerics.scans import exact
from linrec.engines.numerics.triangular import BlockSystems


class Sizes(NamedTuple):
    """B, H, R, J, C, K, V."""

    batch: int
    heads: int
    repeat: int
    readers: int
    rows: int
    width: int
    values: int

    def by_group(self, like: Tensor, stacked: bool = True) -> tuple[Tensor, Tensor]:
        """Memory ``[B H, J C, R V]`` and its view ``[B, H, R, J, C, V]``; without ``stacked`` J is 1 and no axis."""
        readers = self.readers if stacked else 1
        memory = like.new_empty(self.batch * self.heads, readers * self.rows, self.repeat * self.values)
        parts = memory.view(self.batch, self.heads, readers, self.rows, self.repeat, self.values)
        view = parts.permute(0, 1, 4, 2, 3, 5)
        return memory, view if stacked else view[:, :, :, 0]

    def by_head(self, like: Tensor, width: int, stacked: bool = False) -> tuple[Tensor, Tensor]:
        """Memory ``[B H R, J C, width]`` and its view ``[B, H, R, J, C, width]``, as in :meth:`by_group`."""
        rows = (self.readers, self.rows) if stacked else (self.rows,)
        memory = like.new_empty(*self.of_heads, *rows, width)
        return memory.view(-1, memory.shape[3] * self.rows if stacked else self.rows, width), memory

    def pairs(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Memory ``[J, B H R, C, C]``, where what one reader needs is contiguous, and ``[B, H, R, J, C, C]``."""
        memory = like.new_empty(self.readers, *self.of_heads, self.rows, self.rows)
        return memory.flatten(1, 3), memory.permute(1, 2, 3, 0, 4, 5)

    @property
    def of_heads(self) -> tuple[int, int, int]:
        """B, H, R."""
        return self.batch, self.heads, self.repeat


class Forward:
    """What the forward pass fills; the names of views by head end in ``_h``. ``alike``: all readers see one decay."""

    def __init__(self, s: Sizes, like: Tensor, alike: bool):
        groups = s.batch * s.heads
        self.keys = like.new_empty(groups, s.rows, s.width)
        self.reads = like.new_empty(groups, s.readers * s.rows, s.width)
        self.keys_h = self.keys.view(s.batch, s.heads, s.rows, s.width)
        self.reads_h = self.reads.view(s.batch, s.heads, s.readers, s.rows, s.width)
        self.reads_a, self.reads_q = self.reads_h[:, :, 0], self.reads_h[:, :, -1]
        self.grams = like.new_empty(groups, s.readers * s.rows, s.rows)
        self.grams_h = self.grams.view(s.batch, s.heads, 1, s.readers, s.rows, s.rows)
        self.own_grams = self.grams_h[:, :, :, 0].diagonal(dim1=-2, dim2=-1)
        _, self.decay_h = (s._replace(readers=1) if alike else s).pairs(like)
        self.weights, self.weights_h = s.pairs(like)
        self.A_qk = self.weights[-1]
        self.decay_a, self.decay_q = self.decay_h[:, :, :, 0], self.decay_h[:, :, :, -1]
        self.gram_h = self.weights_h[:, :, :, 0]
        self.seen, self.seen_h = s.by_group(like)
        self.seen_a, self.seen_q = self.seen_h[:, :, :, 0], self.seen_h[:, :, :, -1]
        # What k sees where q is not asked, in the same memory.
        alone = self.seen.view(-1)[: groups * s.rows * s.repeat * s.values]
        self.alone = alone.view(groups, s.rows, -1)
        self.alone_h = alone.view(s.batch, s.heads, s.rows, s.repeat, -1).transpose(2, 3)
        self.kept, self.kept_h = s.by_group(like, stacked=False)
        self.right, self.right_h = s.by_head(like, s.values)
        self.product, self.product_h = s.by_head(like, s.values)
        self.v_new, self.v_new_h = self.right, self.right_h
        if s.readers == 2:
            self.v_new, self.v_new_h = s.by_head(like, s.values)
            self.systems = BlockSystems(like, groups * s.repeat, s.rows)
            self.matrices_h = self.systems.matrices.unflatten(0, s.of_heads)


class Backward:
    """What the backward pass fills besides."""

    def __init__(self, s: Sizes, like: Tensor):
        groups = s.batch * s.heads
        self.outer, self.outer_h = s.by_head(like, s.values, stacked=True)
        self.asked, self.asked_h = self.outer[:, -s.rows :], self.outer_h[:, :, :, -1]
        self.left, self.left_h = s.by_group(like, stacked=False)
        self.dv_new, self.dv_new_h = s.by_head(like, s.values)
        self.dright, self.dright_h = self.dv_new, self.dv_new_h
        if s.readers == 2:
            self.dright, self.dright_h = self.outer[:, : s.rows], self.outer_h[:, :, :, 0]
        self.pulls, self.pulls_h = s.by_group(like)
        self.pulls_q = self.pulls_h[:, :, :, -1]
        self.paired, self.paired_h = s.by_head(like, s.rows, stacked=True)
        self.paired_a = self.paired_h[:, :, :, 0]
        self.own_paired = self.paired_a.diagonal(dim1=-2, dim2=-1)
        self.dreads = like.new_empty(groups, s.readers * s.rows, s.width)
        dreads_h = self.dreads.view(s.batch, s.heads, s.readers, s.rows, s.width)
        self.dreads_a, self.dreads_q = dreads_h[:, :, 0], dreads_h[:, :, -1]
        self.dkeys = like.new_empty(groups, s.rows, s.width)
        self.dkeys_h = self.dkeys.view(s.batch, s.heads, s.rows, s.width)
        _, self.value_dots = s.by_head(like, s.values)
        _, self.crossing = s.by_head(like, s.rows, stacked=True)
        self.crossing_a, self.crossing_q = self.crossing[:, :, :, 0], self.crossing[:, :, :, -1]
        _, self.precise = s.by_head(exact(like[:0]), s.rows)
