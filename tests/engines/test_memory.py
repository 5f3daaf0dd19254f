"""Large tensors come from blocks that are used again, and never while anything still reads them."""

import sys

import pytest
import torch

from linrec import rules
from linrec.engines.numerics import memory
from linrec.testing import example_inputs

pytestmark = pytest.mark.skipif(not memory._SUPPORTED, reason="no huge pages to ask for on this system")

SIZE = memory.LARGE // 4  # float32 numbers


@pytest.fixture(autouse=True)
def own_blocks(monkeypatch):
    blocks = memory.Blocks(3 * memory.LARGE)
    monkeypatch.setattr(memory, "_BLOCKS", blocks)
    return blocks


def fresh(count=SIZE):
    return memory.fresh(torch.empty(0), (count,), torch.float32)


def test_a_block_is_used_again_when_the_last_view_of_it_is_gone(own_blocks):
    x = fresh()
    x.fill_(3)
    address, view = x.data_ptr(), x[5:].view(-1)
    del x
    other = fresh()
    assert other.data_ptr() != address
    assert (view == 3).all()
    del view
    assert own_blocks.size == memory.LARGE
    assert fresh().data_ptr() == address


def test_blocks_that_wait_are_bounded(own_blocks):
    tensors = [fresh(SIZE + 1024 * n) for n in range(5)]
    assert own_blocks.size == 0
    del tensors
    assert 0 < own_blocks.size <= own_blocks.limit
    assert own_blocks.size == sum(len(block) for block in own_blocks.waiting.values())


def test_a_block_that_comes_back_while_another_is_looked_for_is_given_up(own_blocks):
    x = fresh()
    with own_blocks.lock:
        del x
        y = fresh()
    assert own_blocks.size == 0
    del y
    assert own_blocks.size == memory.LARGE


def test_small_tensors_and_tensors_without_values_are_ordinary(own_blocks):
    assert fresh(8).untyped_storage().resizable()
    assert memory.fresh(torch.empty(0, device="meta"), (SIZE,), torch.float32).is_meta
    assert own_blocks.size == 0


@pytest.mark.skipif(sys.platform != "linux", reason="counts blocks")
def test_gradients_outlive_what_made_them(own_blocks, monkeypatch):
    """With every tensor in such blocks: results of one call do not change while others are made."""
    monkeypatch.setattr(memory, "LARGE", 1)
    x = {n: t.requires_grad_() for n, t in example_inputs(rules.gated_delta_net, T=130).items()}

    def results():
        out = rules.gated_delta_net(**x)
        return (
            out.o,
            out.state,
            *torch.autograd.grad(out.o.square().sum() + out.state.sum(), list(x.values())),
        )

    first = results()
    kept = [t.detach().clone() for t in first]
    again = results()
    for a, b, c in zip(first, kept, again, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)
