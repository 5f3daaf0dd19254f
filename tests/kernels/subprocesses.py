"""Tests in subprocesses that may die: each file's interpreted tests in one, restarted after the test that killed it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

REPORT = "LINREC_INTERPRETER_REPORT"  # set in a subprocess: the file that takes its reports
SILENCE = 300  # seconds a subprocess may take for one test
WORKERS = 2


class Reporter:
    """In the subprocess: one JSON line when a test starts, and one for each report of it."""

    def __init__(self, config: pytest.Config, path: str):
        self.config = config
        self.file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the session

    def _write(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._write({"start": nodeid})

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self._write({"nodeid": report.nodeid, "report": data})


class Children:
    """In the main process: the subprocesses of all files, at most ``WORKERS`` at a time.

    Beside other processes that share the tests among them (pytest-xdist, which gives each whole files), one at a
    time and only those that are asked for.
    """

    def __init__(self, config: pytest.Config, nodeids: list[str]):
        self.config = config
        self.folder = tempfile.TemporaryDirectory(prefix="linrec-kernels-")
        self.running: set[subprocess.Popen] = set()
        self.stopped = False
        shared = "PYTEST_XDIST_WORKER" in os.environ
        self.pool = ThreadPoolExecutor(1 if shared else min(WORKERS, os.cpu_count() or 1))
        self.tests: dict[str, list[str]] = {}
        for nodeid in nodeids:
            self.tests.setdefault(nodeid.split("::")[0], []).append(nodeid)
        self.files: dict[str, Future[dict[str, list[Any]]]] = {}
        for file in () if shared else self.tests:
            self._started(file)

    def _started(self, file: str) -> Future[dict[str, list[Any]]]:
        if file not in self.files:
            self.files[file] = self.pool.submit(self._run_file, len(self.files), self.tests[file])
        return self.files[file]

    def reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        """What happened to this test; waits for its file."""
        for data in self._started(item.nodeid.split("::")[0]).result().get(item.nodeid, []):
            if isinstance(data, str):
                yield pytest.TestReport(item.nodeid, item.location, {}, "failed", data, "call")
            else:
                yield self.config.hook.pytest_report_from_serializable(config=self.config, data=data)

    def stop(self) -> None:
        """End what still runs (after -x, or Ctrl-C)."""
        self.stopped = True
        for process in list(self.running):
            process.kill()
        self.pool.shutdown(cancel_futures=True)
        self.folder.cleanup()

    def _run_file(self, number: int, tests: list[str]) -> dict[str, list[Any]]:
        """Reports by test; a text stands for a test that took its process down."""
        results: dict[str, list[Any]] = {}
        attempt = 0
        while tests and not self.stopped:
            stem = Path(self.folder.name) / f"{number}-{attempt}"
            ended = self._run(stem, tests)
            lines = [json.loads(x) for x in stem.with_suffix(".jsonl").read_text("utf-8").splitlines()]
            for line in lines:
                if "report" in line:
                    results.setdefault(line["nodeid"], []).append(line["report"])
            started = [line["start"] for line in lines if "start" in line]
            left = tests[len(started) :]
            if left or ended:
                # Without any start the files do not even import: all tests fail with what was printed.
                for nodeid in started[-1:] or left:
                    if not _finished(results.get(nodeid, [])):
                        results.setdefault(nodeid, []).append(ended or "the subprocess left out this test")
                left = left if started else []
            tests, attempt = left, attempt + 1
        return results

    def _run(self, stem: Path, tests: list[str]) -> str:
        """Run one subprocess; the text of its death, or "" if it ended in the ordinary way."""
        report, arguments, output = (stem.with_suffix(x) for x in (".jsonl", ".args", ".out"))
        report.touch()
        arguments.write_text("\n".join(tests), encoding="utf-8")
        without = ("-p", "no:cacheprovider", "-p", "no:xdist")
        command = [sys.executable, "-m", "pytest", "-q", *without, f"@{arguments}"]
        environment = {**os.environ, "TRITON_INTERPRET": "1", REPORT: str(report), "OMP_NUM_THREADS": "1"}
        with open(output, "wb") as out:
            process = subprocess.Popen(
                command, cwd=self.config.rootpath, env=environment, stdout=out, stderr=subprocess.STDOUT
            )
        self.running.add(process)
        death = self._wait(process, report)
        self.running.discard(process)
        return death and f"{death}\n{output.read_text('utf-8', 'replace')[-4000:]}"

    def _wait(self, process: subprocess.Popen, report: Path) -> str:
        size = -1
        while True:
            try:
                code = process.wait(SILENCE)
            except subprocess.TimeoutExpired:
                if report.stat().st_size == size:
                    process.kill()
                    process.wait()
                    return f"no sign of life for {SILENCE} seconds"
                size = report.stat().st_size
                continue
            if code < 0:
                return f"killed by {signal.Signals(-code).name} in the interpreter"
            return "" if code in (0, 1) else f"pytest ended with code {code}"


def _finished(reports: list[Any]) -> bool:
    return any(isinstance(data, dict) and data.get("when") == "teardown" for data in reports)
