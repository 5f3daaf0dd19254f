"""Tuning: a whole run, the checks of results, the command. Times are handed in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("triton")

from linrec.cli import app
from linrec.errors import BackendError
from linrec.evals.bench import gpu_times
from linrec.evals.kernels import tune_gpu
from linrec.evals.kernels.capture import recording
from linrec.evals.kernels.targets import GPUS
from linrec.evals.kernels.tune import Job, Lost, sizes, stages_of, tune
from linrec.kernels.matrix import launches
from linrec.kernels.matrix.launch_file import listed, read
from linrec.kernels.matrix.launch_table import CHUNK, LAUNCHES, At, Launch
from linrec.rules import RULES
from tests.kernels.tuning import SCAN, START, Clock, written

pytestmark = pytest.mark.usefixtures("no_launch_file")

# A whole run


def test_rows_that_a_rule_looks_up() -> None:
    job = Job("gated_delta_net", 96, torch.bfloat16, "forward")
    at = lambda stage: At(stage, "sm_86", "shared delta", 128, 2)  # noqa: E731
    found = {
        part: stages_of(job._replace(part=part), "sm_86", {})
        for part in ("forward", "backward", "step", "both")
    }
    assert found["forward"] == [at("scores"), at("forward_scan")]
    assert found["backward"] == [at("entry_states"), at("state_gradients"), at("chunk_gradients")]
    assert found["step"] == [at("decode")] and found["both"] == [at("chunk")]
    assert [one.size for one in stages_of(job._replace(dtype=torch.float32), "sm_86", {})] == [4, 4]
    with pytest.raises(BackendError, match="composed of several"):
        stages_of(Job("mlstm", 64, torch.bfloat16, "forward"), "sm_86", {})


def test_a_run_writes_what_is_faster_and_each_row_once(tmp_path: Path) -> None:
    clock, out = Clock(), tmp_path / "launches.json"
    said: list[str] = []
    parts, rules = ("both", "forward", "step"), ("gated_delta_net", "delta_net", "mlstm")
    wanted = [Job(rule, 64, torch.bfloat16, part) for rule in rules for part in parts]
    with launches.using(START):
        done = tune(wanted, clock, lambda rows, found: tune_gpu.write(rows, found, out), said.append)
    assert [one.at.stage for one in done] == ["chunk", "scores", "forward_scan", "decode"]
    assert all(one.changed and one.job.rule == "gated_delta_net" for one in done)
    assert [(one.found.before, one.found.after) for one in done] == [(17, 1), (6, 5.5), (5.5, 5), (5, 4.5)]
    assert len(clock.confirmed) == 4 and sum("left out: BackendError" in line for line in said) == 3
    assert read(out) == START | {one.at: one.found.best for one in done}
    assert [one.found.best[2] for one in done[1:]] == [8, 8, 8]  # type: ignore[index]
    timed = json.loads(out.read_text())["timed"]
    assert (timed[0]["before"], timed[0]["after"]) == ("tokens=16", "tokens=32")
    assert "RuntimeError: out of shared memory" in timed[1]["refused"].values()


def test_a_run_goes_on_from_the_rows_in_use(tmp_path: Path) -> None:
    other = At("decode", "gfx942", "shared additive", 16, 2)
    rows = START | {other: Launch(0, 32, 4, 2), SCAN: Launch(0, 16, 8, 1)}
    launches.use(written(tmp_path / "before.json", *listed(rows)))
    kept: list[Any] = []
    job = Job("gated_delta_net", 128, torch.bfloat16, "forward")
    done = tune([job], Clock(), lambda rows, found: kept.append(dict(rows)), lambda line: None)
    assert [one.changed for one in done] == [True, False] and done[1].current == Launch(0, 16, 8, 1)
    assert kept[-1] == rows | {done[0].at: done[0].found.best}


# The checks


def test_the_check_refuses_other_results() -> None:
    for dtype in (torch.bfloat16, torch.float32):
        x = gpu_times.expected("gla", dtype, "cpu", B=1, T=20, H=1, HV=1, K=16, V=16)
        x.check(gpu_times.caller("gla", x.scale, "torch"), "gla")
        for wrong in (1.1, float("nan")):
            with pytest.raises(BackendError, match="gla: the result is off"):
                x.check(gpu_times.caller("gla", x.scale * wrong, "torch"), "gla")


def test_the_check_of_a_step_sees_output_and_state() -> None:
    step = tune_gpu.expected_step("gated_delta_net", torch.bfloat16, "cpu", B=2, T=5, H=1, HV=1, K=16, V=16)
    assert step.inputs["q"].shape == (2, 1, 1, 16) and step.state.abs().sum() > 0
    good = step.run("torch")
    for index in range(len(good)):
        found = [1.1 * x if n == index else x for n, x in enumerate(good)]
        error, allowed = gpu_times.worst(found, step.reference, step.allowed)
        assert error > allowed
    error, allowed = gpu_times.worst(good, step.reference, step.allowed)
    assert error <= allowed


@pytest.mark.parametrize("rule", ["lightning", "gated_delta_net", "generalized_delta"])
def test_what_is_checked_is_what_is_timed(rule: str) -> None:
    """The same machine code at both shapes; few heads run the kernels that cut sequences."""

    def launched(shape: dict[str, int]) -> dict[str, str]:
        dims = sizes(64, **shape)
        inputs = {
            n: torch.empty(
                [dims[d] for d in arg.shapes[0]], device="meta", dtype=torch.bfloat16, requires_grad=True
            )
            for n, arg in RULES[rule].arguments.items()
        }
        with recording() as found:
            o = gpu_times.caller(rule, 0.125)(**inputs)
            torch.autograd.grad(o, list(inputs.values()), torch.empty_like(o), allow_unused=True)
        return {one.name: one.key(GPUS["sm_90"]) for one in found.launches}

    assert launched(tune_gpu.CHECKED) == launched(tune_gpu.TIMED)
    assert {"segment_maps", "entry_of_segments"} <= launched(tune_gpu.FEW).keys()


def refused(bench: tune_gpu.GpuBench, job: Job) -> None:
    for run in (bench.milliseconds, bench.confirm):
        with pytest.raises(BackendError, match="gated_delta_net: the result is off"):
            run(job)


@pytest.mark.interpreted
def test_jobs_run_and_broken_candidates_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the clock: the interpreter runs the kernels, with the rows that are tried."""
    for name in ("TIMED", "CHECKED", "FEW"):
        monkeypatch.setattr(tune_gpu, name, {"batch": 1, "length": 20, "heads": 1})
    for name, value in (("HEADS", 1), ("MOST", 2)):
        monkeypatch.setattr(tune_gpu, name, value)
    ran: list[str] = []

    def forward(call: Any) -> float:
        call()
        ran.append("forward")
        return 1.0

    def backward(call: Any, inputs: Any) -> float:
        ran.append("backward")
        return 2.0

    monkeypatch.setattr(tune_gpu, "forward_ms", forward)
    monkeypatch.setattr(tune_gpu, "backward_ms", backward)
    bench = tune_gpu.GpuBench("cpu")
    job = Job("gated_delta_net", 16, torch.bfloat16, "both")
    at = SCAN._replace(width=16)
    assert bench.milliseconds(job) == 3.0 and ran == ["forward", "backward"]
    assert bench.milliseconds(job._replace(part="backward")) == 2.0
    bench.confirm(job)
    assert bench.milliseconds(job._replace(part="step")) == 1.0
    bench.confirm(job._replace(part="step"))
    for stage, part in (("forward_scan", "forward"), ("decode", "step"), ("chunk_gradients", "backward")):
        with (
            launches.using({at._replace(stage=stage): Launch(12, 12, 4, 1)}),
            pytest.raises(Exception, match="power"),
        ):
            bench.milliseconds(job._replace(part=part))
    monkeypatch.setattr(tune_gpu, "caller", lambda rule, scale: gpu_times.caller(rule, 1.1 * scale))
    refused(bench, job)
    step = tune_gpu._step
    monkeypatch.setattr(tune_gpu, "_step", lambda *given: [1.1 * x for x in step(*given)])
    refused(bench, job._replace(part="step"))  # what torch makes of it is known from before


# The command


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rules", "gated_deltanet"], "gated_delta_net"),
        (["--widths", "64,wide"], "--widths expects numbers"),
        (["--widths", "512"], "from 1 to 256"),
        (["--dtypes", "float64"], "one of bfloat16, float16, float32"),
        (["--out", "."], "got the folder"),
        ([], "timing kernels needs a GPU, and torch sees none here"),
    ],
)
def test_the_command_says_what_is_wrong(arguments: list[str], says: str, tmp_path: Path) -> None:
    if not arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    out = tmp_path / "launches.json"
    done = CliRunner().invoke(app, ["tune", "--out", str(out), *arguments])
    assert done.exit_code == 1 and done.stderr.startswith("linrec: error: ") and says in done.stderr
    assert not out.exists()
    if not arguments:
        failed = CliRunner().invoke(app, ["--debug", "tune", "--out", str(out)]).exception
        assert isinstance(failed, BackendError)


def test_the_command_writes_a_file_that_the_next_run_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tune_gpu, "need_gpu", lambda: None)
    monkeypatch.setattr(tune_gpu, "GpuBench", Clock)
    first, out = written(tmp_path / "first.json", *listed(START)), tmp_path / "launches.json"
    arguments = ["tune", "--rules", "gated_delta_net,gla", "--widths", "64", "--out", str(out)]
    monkeypatch.setenv(launches.FILE, str(first))
    done = CliRunner().invoke(app, [*arguments, "--chunks"])
    assert done.exit_code == 0, done.output
    assert f"wrote {out}" in done.stdout.replace("\n", "")
    rows = read(out)
    assert rows[At(CHUNK, "sm_90", "shared delta", 64, 2)] == 32
    changed = {at for at in rows if rows[at] != START.get(at)} - {
        At(CHUNK, "sm_90", "channel additive", 64, 2)
    }
    assert len(changed) == 1 + 2 * len(LAUNCHES) and {at.width for at in changed} == {64}
    launches.use(out)
    again = CliRunner().invoke(app, arguments)
    assert again.exit_code == 0 and again.stdout.count("\tthe same\t") == 2 * len(LAUNCHES)
    assert read(out) == rows


def test_a_lost_gpu_says_who_took_it() -> None:
    class Broken(Clock):
        def milliseconds(self, job: Job) -> float:
            if launches.launch_for("scores", "sm_90", "shared delta", 64, 2).warps == 8:
                raise Lost("an illegal address")
            return super().milliseconds(job)

    job = Job("gated_delta_net", 64, torch.bfloat16, "forward")
    with (
        launches.using(START),
        pytest.raises(Lost, match=r"scores sm_90 shared delta 64 2 with Launch\(.*: an illegal"),
    ):
        tune([job], Broken(), lambda rows, found: None, lambda line: None)


def test_what_is_printed() -> None:
    job = Job("gated_delta_net", 64, torch.bfloat16, "forward")
    with launches.using(START):
        done = tune([job], Clock(), lambda rows, found: None, lambda line: None)
    columns = {str(column.header): list(column.cells) for column in tune_gpu.table(done).columns}
    assert columns["stage"] == ["scores", "forward_scan"] and columns["bytes"] == ["2", "2"]
    assert columns["before"] == ["keys=32 values=32 warps=4 stages=1"] * 2
    assert all("warps=8" in str(cell) for cell in columns["after"])
    assert all(line.endswith("RuntimeError: out of shared memory") for line in tune_gpu.refusals(done))


@pytest.mark.gpu
def test_on_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "launches.json"
    wanted = [Job("gla", 64, torch.bfloat16, "step")]
    done = tune(wanted, tune_gpu.GpuBench(), lambda rows, found: tune_gpu.write(rows, found, out), print)
    assert [one.at.stage for one in done] == ["decode"] and len(read(out)) == done[0].changed
    assert done[0].found.before is not None and done[0].found.after is not None
    assert 0 < done[0].found.after <= done[0].found.before
