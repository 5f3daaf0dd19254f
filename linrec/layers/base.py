"""What every layer is: a sequence mixer with an explicit state, and how padding is kept away from it."""

from __future__ import annotations

from typing import ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn

from linrec.engines.numerics.checks import readable
from linrec.errors import DefinitionError, DtypeError, RangeError, ShapeError
from linrec.packing import check_cu_seqlens
from linrec.rule import Rule
from linrec.state import State, map_tensors


class Layer(nn.Module):
    """A sequence mixer: ``y, state = layer(x, state=None, cu_seqlens=None, attention_mask=None)``.

    x and y ``[B, T, d_model]``. ``state`` None is the empty state; the returned state continues the sequence.
    ``cu_seqlens`` ``[S + 1]`` packs S sequences into a batch of one, the state then has S rows.
    ``attention_mask`` ``[B, T]`` is 1 at real tokens, padding may lie on either side: real tokens get the
    result they would have without it, padded positions get zero, the state is that of the real tokens.
    What a layer has from an earlier one is ``beside`` channels behind those of x, and what it hands on stands behind
    those of y. Raises ShapeError, DtypeError and RangeError.
    """

    rule: ClassVar[Rule]
    state_grows: ClassVar[bool] = False
    d_model: int
    beside: int = 0

    def joins(self, first: Layer) -> None:
        """Told by a model which layer of this kind is its ``first``, for what its layers have in common."""

    def mix(self, x: Tensor, state: State, cu_seqlens: Tensor | None) -> tuple[Tensor, State]:
        """The layer on unpadded tokens; implemented by each layer."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        state: State = None,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """See the class.

        .. code-block:: pycon

            >>> from einops import rearrange
            >>> from linrec.layers import GatedDeltaNet
            >>> layer = GatedDeltaNet(d_model=32, num_heads=2).eval()
            >>> x = torch.randn(2, 10, 32)
            >>> y, state = layer(x)
            >>> y.shape
            torch.Size([2, 10, 32])

            # in pieces: the state continues the sequence, down to single tokens
            >>> _, state = layer(x[:, :9])
            >>> now, state = layer(x[:, 9:], state)
            >>> torch.allclose(now, y[:, 9:], atol=1e-5)
            True

            # padding on either side: real tokens do not see it, and it gets zero
            >>> mask = torch.ones(2, 10)
            >>> mask[1, :4] = 0
            >>> padded, _ = layer(x, attention_mask=mask)
            >>> alone, _ = layer(x[1:, 4:])
            >>> torch.allclose(padded[1:, 4:], alone, atol=1e-5), bool(padded[1, :4].any())
            (True, False)

            # no padding: the sequences one behind the other, with a row of the state for each
            >>> packed = rearrange(x, "B T D -> 1 (B T) D")
            >>> together, state = layer(packed, cu_seqlens=torch.tensor([0, 10, 20]))
            >>> torch.allclose(rearrange(together, "1 (B T) D -> B T D", B=2), y, atol=1e-5)
            True
        """
        who = type(self).__name__
        if x.dim() != 3 or x.shape[2] != self.d_model + self.beside:
            more = f" + {self.beside} of an earlier layer" if self.beside else ""
            raise ShapeError(f"{who}: x must be [B, T, d_model={self.d_model}{more}], got {list(x.shape)}")
        if not x.is_floating_point():
            raise DtypeError(f"{who}: x must be floating point, got {x.dtype}")
        if cu_seqlens is not None and not torch.compiler.is_compiling():  # a graph's rule looks at its values
            check_cu_seqlens(cu_seqlens, x.shape[0], x.shape[1], who)
        if attention_mask is None:
            return self.mix(x, state, cu_seqlens)
        if cu_seqlens is not None or attention_mask.shape != x.shape[:2]:
            raise ShapeError(
                f"{who}: attention_mask must be [B, T] = {list(x.shape[:2])} and excludes cu_seqlens, "
                f"got {list(attention_mask.shape)}"
            )
        return self._without_padding(x, state, real_tokens(attention_mask))

    def _without_padding(self, x: Tensor, state: State, mask: Tensor) -> tuple[Tensor, State]:
        """Pack the real tokens, one segment a row, and put the results back."""
        if torch.compiler.is_compiling():
            return self._with_padding_last(x, state, mask)
        if mask.all():
            return self.mix(x, state, None)
        where = rearrange(mask, "B T -> (B T)").nonzero()[:, 0]
        ends = mask.sum(1).cumsum(0)
        bounds = torch.cat([ends.new_zeros(1), ends])
        real = rearrange(x, "B T D -> (B T) D").index_select(0, where)
        y, state = self.mix(real[None], state, bounds)
        flat = y.new_zeros(mask.numel(), y.shape[2]).index_copy(0, where, y[0])
        return rearrange(flat, "(B T) D -> B T D", B=mask.shape[0], T=mask.shape[1]), state

    def _with_padding_last(self, x: Tensor, state: State, mask: Tensor) -> tuple[Tensor, State]:
        """The same where sizes must not depend on values: padding, made zero, is one more segment behind all others."""
        flat = rearrange(mask, "B T -> (B T)")
        ends = mask.sum(1).cumsum(0)
        bounds = torch.cat([ends.new_zeros(1), ends, ends.new_full((1,), mask.numel())])
        place = torch.where(flat, flat.cumsum(0) - 1, flat.sum() + (~flat).cumsum(0) - 1)
        real = rearrange(x, "B T D -> (B T) D").masked_fill(~flat[:, None], 0)
        packed = torch.zeros_like(real).index_copy(0, place, real)
        more = map_tensors(lambda rows: torch.cat([rows, rows[:1]]), state)
        y, state = self.mix(packed[None], more, bounds)
        y = y[0].index_select(0, place).masked_fill(~flat[:, None], 0)
        y = rearrange(y, "(B T) D -> B T D", B=mask.shape[0], T=mask.shape[1])
        return y, map_tensors(lambda rows: rows[:-1], state)


def real_tokens(mask: Tensor) -> Tensor:
    """An attention mask, mask ``[...]``, as truth values, true at real tokens.

    Raises RangeError for other values than 0 and 1: numbers of documents, or what is added to scores, would be taken
    for something else without a word.
    """
    if mask.dtype is torch.bool:
        return mask
    if readable(mask) and not bool(((mask == 0) | (mask == 1)).all()):
        low, high = mask.min().item(), mask.max().item()
        raise RangeError(
            f"attention_mask: expected 1 at real tokens and 0 at padding, got values from {low:g} to {high:g}"
        )
    return mask.bool()


def segment_count(x: Tensor, cu_seqlens: Tensor | None) -> int:
    """Rows of the state that goes with x ``[B, T, ...]``."""
    return x.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1


def token_positions(x: Tensor, start: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """Position of each token of x ``[B, T, ...]`` in its own sequence ``[B, T]``; ``start [rows]`` are the tokens
    seen."""
    index = torch.arange(x.shape[1], device=x.device)
    if cu_seqlens is None:
        return start[:, None] + index
    segment = torch.searchsorted(cu_seqlens[1:].contiguous(), index.to(cu_seqlens.dtype), right=True)
    return (start[segment] + index - cu_seqlens[segment])[None]


def tokens_seen(start: Tensor, x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """``start [rows]`` advanced by the tokens of x ``[B, T, ...]``."""
    return start + (x.shape[1] if cu_seqlens is None else cu_seqlens.diff())


LAYERS: dict[str, type[Layer]] = {}  # by the name of the rule; filled by the files of this folder


def enter(layer: type[Layer]) -> None:
    """Put a layer into LAYERS; DefinitionError where another one has its rule."""
    other = LAYERS.setdefault(layer.rule.name, layer)
    if other is not layer:
        raise DefinitionError(
            f"{other.__module__}.{other.__name__} and {layer.__module__}.{layer.__name__} are both layers of "
            f"{layer.rule.name}; one whose name begins with an underscore is no entry of LAYERS"
        )
