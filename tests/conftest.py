"""What holds for every test: one thread, fixed seeds, and no GPU test where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_configure() -> None:
    # The tensors of the tests are small: threads cost more than they bring, and one thread sums in one order.
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Each test draws the same numbers, whatever ran before it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
