"""Kernel tests: on the CPU in Triton's interpreter, in a subprocess; on a GPU as they are.

A test that asks for the fixture ``device`` runs twice: ``[cpu]`` in the interpreter and ``[cuda]`` on a GPU
(marked ``gpu``, skipped where there is none). Interpreted tests of one file run in one subprocess with
``TRITON_INTERPRET=1``, because that variable counts when a kernel is defined and because a bad address is a
segmentation fault there: it fails the test that made it, and the rest go on in a fresh process.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from tests.kernels.subprocesses import REPORT, Children, Reporter

INTERPRETED = REPORT in os.environ  # this process is such a subprocess
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # deterministic algorithms on a GPU ask for it

children = pytest.StashKey[Children]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "interpreted: runs in Triton's interpreter, in a subprocess")
    if INTERPRETED:
        from tests.kernels import interpreter

        interpreter.install()
        config.pluginmanager.register(Reporter(config, os.environ[REPORT]))


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """In the main process an interpreted test is not run: its subprocess is asked for the result."""
    if INTERPRETED or not item.get_closest_marker("interpreted"):
        return None
    stash = item.session.stash
    if children not in stash:
        wanted = [x for x in item.session.items if x.get_closest_marker("interpreted")]
        stash[children] = Children(item.config, [x.nodeid for x in wanted])
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for report in stash[children].reports(item):
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # A test of this file that ran here left open what this one might have used.
    item.session._setupstate.teardown_exact(nextitem)
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    if children in session.stash:
        session.stash[children].stop()


@pytest.fixture
def no_launch_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file of launch rows, from wherever the tests are run."""
    from linrec.kernels.matrix import launches

    monkeypatch.delenv(launches.FILE, raising=False)
    monkeypatch.setattr(launches, "_asked", None)


@pytest.fixture(
    params=[
        pytest.param("cpu", marks=pytest.mark.interpreted),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    """Where the kernels run: ``cpu`` means the interpreter."""
    pytest.importorskip("triton")
    return request.param


@pytest.fixture(autouse=True)
def _poisoned_allocations() -> Iterator[None]:
    """torch.empty and its kind give NaN (or the largest integer): a result must not depend on them."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(before)
