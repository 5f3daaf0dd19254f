"""Chunks of every recurrence of the engine, decay by channel and the general path included, with their adjoint.

The decay between any two tokens is formed (:mod:`linrec.engines.matrix.pairwise`); here chunks are cut out of the
arguments, and gradients put in their place.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from linrec.engines.matrix.pairwise import Chunk, chunk_adjoint, chunk_of, read_and_write, solve_chunk
from linrec.engines.matrix.plan import Memory, Plan, Span, Tensors, put_rows, rows
from linrec.engines.matrix.scan import chunkwise
from linrec.engines.matrix.terms import MatrixTerms
from linrec.rule import Call


def chunkwise_general(terms: MatrixTerms, state: Tensor, call: Call) -> tuple[Tensor, Tensor]:
    """Output ``[B, T, HV, V]`` and final state ``[B, HV, K, V]`` of any terms."""
    return chunkwise(GeneralChunks, by_channel(terms.floored()), state, call)


def by_channel(terms: MatrixTerms) -> MatrixTerms:
    """With a decay ``[B, T, HV, 1 or K]``."""
    g = terms.v.new_zeros(terms.v.shape[:3]) if terms.g is None else terms.g
    return replace(terms, g=g if g.dim() == 4 else g[..., None])


class ChunkInputs(NamedTuple):
    """One chunk, heads first ``[N, C, .]``: the tensors q, k, v, g, a, b, where a may be -erase k; the strengths."""

    tensors: dict[str, Tensor | None]
    k: Tensor
    v: Tensor
    g: Tensor
    write: Tensor | None
    erased: Tensor | None  # -erase


class GeneralChunks:
    """See :class:`linrec.engines.matrix.scan.ChunkMethod`; states are ``[N, K, V]``, N = B HV."""

    NAMES: ClassVar[tuple[str, ...]] = ("q", "k", "v", "g", "a", "b", "write", "erase")

    def __init__(self, plan: Plan, tensors: Tensors, dtype: torch.dtype):
        self.plan, self.tensors, self.dtype, self.memory = plan, tensors, dtype, Memory()
        batch, heads = self._batch
        whole = {name: x if x.dim() == 4 else x[..., None] for name, x in tensors.items() if x is not None}
        views = {name: x[0].transpose(0, 1) for name, x in whole.items() if batch == 1}
        self.heads_first = {name: x for name, x in views.items() if len(x) == heads}

    def inner(self, h: Tensor) -> Tensor:
        """``[N, K, V]``."""
        return h.flatten(0, 1)

    def outer(self, h: Tensor) -> Tensor:
        """``[B, HV, K, V]``."""
        return h.unflatten(0, self._batch)

    def gate_gradients(self) -> dict[str, Tensor]:
        """None: every chunk gives all of its own."""
        return {}

    def forward(self, index: int, span: Span, h: Tensor, h_next: Tensor, o: Tensor) -> None:
        """Fills ``h_next`` and the chunk's rows of the output."""
        self._forward(self._load(span), span, h, h_next, o)

    def _forward(self, c: ChunkInputs, span: Span, h: Tensor, h_next: Tensor, o: Tensor) -> None:
        exactly = self._exactly(c)
        solved = solve_chunk(exactly, h)
        put_rows(o, read_and_write(exactly, solved, h, h_next), *span)

    def backward(
        self,
        index: int,
        span: Span,
        h: Tensor,
        do: Tensor,
        dh_next: Tensor,
        grads: dict[str, Tensor],
    ) -> Tensor:
        """The gradient of the entry state; fills the chunk's rows of ``grads``."""
        return self._backward(self._load(span), span, h, do, dh_next, grads)

    def _backward(
        self,
        c: ChunkInputs,
        span: Span,
        h: Tensor,
        do: Tensor,
        dh_next: Tensor,
        grads: dict[str, Tensor],
    ) -> Tensor:
        exactly = self._exactly(c)
        solved = solve_chunk(exactly, h)
        part = rows(do, *span).contiguous()  # an expanded gradient would be multiplied matrix by matrix
        found, dh = chunk_adjoint(exactly, solved, h, part, dh_next, self.plan)
        self._put(c, span, found, {}, grads)
        return dh

    @property
    def _batch(self) -> tuple[int, int]:
        v = self.tensors["v"]
        assert v is not None
        return v.shape[0], v.shape[2]

    def _load(self, span: Span) -> ChunkInputs:
        """Cut one chunk out of the arguments."""

        def cut(name: str) -> Tensor | None:
            x = self.tensors[name]
            if x is None or name in self.heads_first:
                return None if x is None else self.heads_first[name].narrow(1, span[0], span[1] - span[0])
            x = x if x.dim() == 4 else x[..., None]
            return rows(x, *span, self._batch[1] // x.shape[2])

        found = {name: cut(name) for name in self.NAMES}
        write, erase = (
            x if x is None else x.to(self.dtype) for x in (found.pop("write"), found.pop("erase"))
        )
        k, v, g = (found[name] for name in "kvg")
        assert k is not None and v is not None and g is not None
        erased = None if erase is None else -erase
        if erased is not None:
            found["a"] = torch.mul(k, erased, out=self.memory.rows_first("a", erased, *k.shape))
        return ChunkInputs(found, k, v, g, write, erased)

    def _exactly(self, c: ChunkInputs) -> Chunk:
        tensors = {name: None if x is None else x.to(self.dtype) for name, x in c.tensors.items()}
        if c.write is not None:
            tensors["v"] = c.v * c.write
        return chunk_of(tensors, self.plan)

    def _put(
        self,
        c: ChunkInputs,
        span: Span,
        found: dict[str, Tensor],
        places: dict[str, Tensor | None],
        grads: dict[str, Tensor],
    ) -> None:
        """Puts what was found in its place, with the gradients of the strengths, and through them of k and v."""
        if c.erased is not None:
            da = found.pop("a")
            found["erase"] = self._dot(c.k, da).neg_()
            found["k"].addcmul_(da, c.erased)
        if c.write is not None:
            dv, place = found["v"], places.get("v")
            found["write"] = self._dot(c.v, dv)
            found["v"] = torch.mul(dv, c.write, out=dv if place is None else place)
        for name, grad in found.items():
            if name in grads and grad is not places.get(name):
                put_rows(grads[name], grad, *span)

    def _dot(self, x: Tensor, dx: Tensor) -> Tensor:
        """Inner products of the rows, ``[N, C, 1]``."""
        return torch.mul(x, dx, out=self.memory.rows_first(f"dot {x.shape[2]}", dx, *dx.shape)).sum(
            -1, keepdim=True
        )
