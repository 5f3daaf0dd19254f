"""Packed sequences: grouping by length, padding, and putting back."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linrec.packing import by_segment, length_groups


@given(st.lists(st.integers(0, 300), min_size=1, max_size=40))
def test_groups_hold_every_segment_once_and_pad_little(lengths):
    groups = length_groups(lengths)
    assert sorted(n for group in groups for n in group) == list(range(len(lengths)))
    for group in groups:
        inside = [lengths[n] for n in group]
        assert max(inside) < 2 * max(min(inside), 32)
        assert min(inside) > 0 or max(inside) == 0


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_running_sums_by_segment(lengths, seed):
    bounds = torch.tensor([0, *lengths]).cumsum(0).tolist()
    x = torch.randn(1, bounds[-1], 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    start = torch.arange(2.0 * len(lengths), dtype=torch.float64).view(-1, 2)

    def run(tensors, state, real):
        assert (tensors["x"].abs().sum(-1)[torch.arange(tensors["x"].shape[1]) >= real[:, None]] == 0).all()
        return state[:, None] + tensors["x"].cumsum(1), state + tensors["x"].sum(1)

    o, last = by_segment(run, {"x": x}, start, bounds)
    for s, (i, j) in enumerate(itertools.pairwise(bounds)):
        assert torch.allclose(o[0, i:j], start[s] + x[0, i:j].cumsum(0))
        assert torch.allclose(last[s], start[s] + x[0, i:j].sum(0))
