"""torch's one setting, wanted by many: whoever comes, goes or is interrupted, it ends as it began."""

import asyncio
import ctypes
import os
import random
import sys
import threading
import time

import pytest
import torch

from linrec.engines.numerics.setting import Setting

MATMUL = getattr(torch.backends.mkldnn, "matmul")  # noqa: B009 (torch's types do not know it)


@pytest.fixture
def setting():
    MATMUL.fp32_precision = "none"
    yield Setting("none", "bf16")
    try:
        assert now() == "none" and torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")
        MATMUL.fp32_precision = "none"


def now():
    return MATMUL.fp32_precision


def test_sections_nest(setting):
    with setting.wanted(True):
        assert now() == "bf16"
        with setting.wanted(True):
            assert now() == "bf16"
            with setting.wanted(False):
                assert now() == "none"
                with setting.wanted(True):
                    assert now() == "bf16"
                assert now() == "none"
            assert now() == "bf16"
        assert now() == "bf16"
    assert now() == "none"
    with setting.wanted(False):
        assert now() == "none"
    with pytest.raises(ZeroDivisionError), setting.wanted(True):
        _ = 1 // 0


def test_the_last_one_out_restores(setting):
    first, second = setting.wanted(True), threading.Event()
    entered = threading.Event()

    def other():
        with setting.wanted(True):
            entered.set()
            second.wait()

    thread = threading.Thread(target=other)
    with first:
        thread.start()
        entered.wait()
    assert now() == "bf16"  # the other one is still inside
    second.set()
    thread.join()
    assert now() == "none"


def test_many_threads(setting):
    barrier = threading.Barrier(8)

    def work(seed):
        draw = random.Random(seed)
        barrier.wait()
        for _ in range(200):
            with setting.wanted(draw.random() < 0.7), setting.wanted(draw.random() < 0.5):
                torch.mm(torch.ones(20, 20), torch.ones(20, 20))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not setting.sections and not setting.changed


def test_tasks_that_wait_inside(setting):
    async def work(seed):
        draw = random.Random(seed)
        for _ in range(20):
            with setting.wanted(True):
                await asyncio.sleep(draw.random() / 2000)
                with setting.wanted(False):
                    await asyncio.sleep(draw.random() / 2000)
            await asyncio.sleep(0)

    async def every():
        tasks = [asyncio.create_task(work(seed)) for seed in range(10)]
        await asyncio.sleep(0.01)
        for task in tasks[::3]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(every())
    assert not setting.sections


@pytest.mark.parametrize("point", range(200))
def test_interrupted_at_any_point(setting, point):
    """A KeyboardInterrupt after so many of the lines that are run inside."""
    left = [point]

    def trace(frame, event, _):
        if "linrec/engines/numerics/setting" in frame.f_code.co_filename and event == "line":
            left[0] -= 1
            if left[0] == -1:
                raise KeyboardInterrupt
        return trace

    def work():
        with setting.wanted(True), setting.wanted(False):
            pass
        with setting.alone(True):
            pass

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    with setting.wanted(True):
        assert now() == "bf16"
    assert not setting.sections


def test_threads_that_are_interrupted(setting):
    def work():
        try:
            while True:
                with setting.wanted(True), setting.wanted(False):
                    pass
        except KeyboardInterrupt:
            pass

    for count in range(40):
        thread = threading.Thread(target=work)
        thread.start()
        time.sleep(0.0005 * (count % 4))
        while thread.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(thread.ident or 0), ctypes.py_object(KeyboardInterrupt)
            )
            thread.join(0.05)
    assert not setting.sections


def test_abandoned_inside(setting):
    """A generator that is dropped where it waits has left."""

    def work():
        with setting.wanted(True):
            yield

    waiting = work()
    next(waiting)
    assert now() == "bf16"
    del waiting


@pytest.mark.parametrize("chosen", ["ieee", "bf16"])
def test_what_the_caller_has_chosen_stays(setting, chosen):
    MATMUL.fp32_precision = chosen
    assert not setting.free()
    with setting.wanted(True):
        assert now() == chosen
        with setting.wanted(False):
            assert now() == chosen
    assert now() == chosen
    MATMUL.fp32_precision = "none"
    with setting.wanted(True):
        MATMUL.fp32_precision = "ieee"
        assert not setting.free()
    assert now() == "ieee"
    MATMUL.fp32_precision = "none"


def test_what_the_caller_chooses_inside_by_the_older_function_stays(setting):
    with setting.wanted(True):
        torch.set_float32_matmul_precision("medium")
    assert now() == "bf16" and torch.get_float32_matmul_precision() == "medium"
    torch.set_float32_matmul_precision("highest")
    MATMUL.fp32_precision = "none"


def test_alone_whoever_wants_it(setting):
    with setting.wanted(True):
        with setting.alone(False):
            assert now() == "none"
        with setting.alone(True), setting.wanted(False):
            assert now() == "none"
        assert now() == "bf16"
    with setting.alone(True):
        assert now() == "bf16"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_child_is_on_its_own(setting):
    """Threads that were inside are not there in it, the one that made it is."""
    inside, leave = threading.Event(), threading.Event()

    def other():
        with setting.wanted(True):
            inside.set()
            leave.wait()

    thread = threading.Thread(target=other)
    thread.start()
    inside.wait()
    with setting.wanted(True):
        child = os.fork()
        if child == 0:
            fine = now() == "bf16"
    if child == 0:
        fine = fine and now() == "none"
        with setting.wanted(True):
            fine = fine and now() == "bf16"
        os._exit(0 if fine and now() == "none" else 1)
    leave.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
