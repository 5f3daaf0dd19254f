"""Every layer on drawn lengths, cuts, masks and packings, against itself on each sequence alone, step by step."""

from __future__ import annotations

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st

from linrec.layers import LAYERS, Layer
from linrec.state import map_tensors, named_tensors, select_rows
from tests.fuzz.cases import differences, strided

SMALL = {"large_chunk_ttt": {"mini_batch": 4}}
lengths = st.sampled_from([0, 1, 2, 5, 9])


def layer_of(data: st.DataObject) -> Layer:
    name = data.draw(st.sampled_from(sorted(LAYERS)))
    torch.manual_seed(data.draw(st.integers(0, 100)))
    return LAYERS[name](8, 2, **SMALL.get(name, {})).double()


def tokens(data: st.DataObject, batch: int, length: int) -> torch.Tensor:
    seed = data.draw(st.integers(0, 100))
    x = torch.randn(batch, length, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return strided(x) if data.draw(st.booleans()) else x


def alone(layer: Layer, x: torch.Tensor, state: object = None) -> tuple[torch.Tensor, object]:
    """Token by token."""
    outputs = [x[:, :0]]
    if not x.shape[1]:
        return layer(x, state)
    for token in x.split(1, dim=1):
        y, state = layer(token, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


def goes_on(layer: Layer, state: object, other: object) -> bool:
    """Whether two states mean the same: what comes next does not differ. (Caches may be padded differently.)"""
    follow = torch.linspace(-1, 1, 16, dtype=torch.float64).view(1, 2, 8)
    return not differences(layer(follow, state)[0], layer(follow, other)[0])


@given(st.data())
def test_pieces_are_single_steps(data: st.DataObject) -> None:
    layer = layer_of(data)
    sizes = data.draw(st.lists(lengths, min_size=1, max_size=4))
    x = tokens(data, data.draw(st.integers(0, 2)), sum(sizes))
    want, last = alone(layer, x)
    state, outputs = None, []
    for piece in x.split(sizes, dim=1):
        y, state = layer(piece, state)
        if data.draw(st.booleans()):
            state = map_tensors(strided, state)
        outputs.append(y)
    assert not differences(torch.cat(outputs, 1), want)
    assert not differences(state, last)


@given(st.data())
def test_packed_segments_are_alone(data: st.DataObject) -> None:
    layer = layer_of(data)
    sizes = data.draw(st.lists(lengths, max_size=5))
    bounds = list(itertools.accumulate(sizes, initial=0))
    x = tokens(data, 1, bounds[-1])
    state = None
    if data.draw(st.booleans()) and sizes:
        state = layer(tokens(data, len(sizes), 3))[1]
    y, after = layer(x, state, cu_seqlens=torch.tensor(bounds))
    assert y.shape == x.shape and all(len(t) == len(sizes) for _, t in named_tensors(after))
    for row, (start, stop) in enumerate(itertools.pairwise(bounds)):
        mine = torch.tensor([row])
        want, end = alone(layer, x[:, start:stop], None if state is None else select_rows(state, mine))
        assert not differences(y[:, start:stop], want), row
        assert goes_on(layer, select_rows(after, mine), end), row


@given(st.data())
def test_padding_on_either_side_is_not_there(data: st.DataObject) -> None:
    """Nor is what stands in it, numbers or not; a row may be all padding."""
    layer, length = layer_of(data), data.draw(st.sampled_from([1, 4, 9]))
    rows = data.draw(st.integers(1, 3))
    real = [sorted(data.draw(st.tuples(*[st.integers(0, length)] * 2))) for _ in range(rows)]
    mask = torch.zeros(rows, length, dtype=torch.long)
    for row, (start, stop) in enumerate(real):
        mask[row, start:stop] = 1
    x = tokens(data, rows, length)
    garbage = data.draw(st.sampled_from([0.0, 1e3, torch.nan]))
    y, after = layer(torch.where(mask[..., None] == 0, garbage, x), attention_mask=mask)
    assert (y[mask == 0] == 0).all()
    for row, (start, stop) in enumerate(real):
        want, end = alone(layer, x[row : row + 1, start:stop])
        assert not differences(y[row : row + 1, start:stop], want), row
        assert goes_on(layer, select_rows(after, torch.tensor([row])), end), row
