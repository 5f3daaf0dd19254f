"""Tuning: what is searched and kept, files of rows, and which rows a launch takes. Times are handed in."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

pytest.importorskip("triton")

from linrec.cli import app
from linrec.errors import BackendError, ConfigError, LinrecError, UnknownNameError
from linrec.evals.bench import gpu_times
from linrec.evals.kernels import tune_gpu
from linrec.evals.kernels.capture import recording
from linrec.evals.kernels.cases import record
from linrec.evals.kernels.targets import GPUS
from linrec.evals.kernels.tune import SPACES, Job, Lost, candidates, search, sizes, stages_of, tune
from linrec.kernels.matrix import launches
from linrec.kernels.matrix.launch_file import listed, read
from linrec.kernels.matrix.launch_table import CHUNK, LAUNCHES, At, Launch, Rows
from linrec.rules import RULES

SCAN = At("forward_scan", "sm_90", "shared delta", 128, 2)
WIDE = Launch(0, 64, 8, 3)
ROW = {**SCAN._asdict(), **WIDE._asdict()}


@pytest.fixture(autouse=True)
def _nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(launches.FILE, raising=False)
    monkeypatch.setattr(launches, "_asked", None)


def written(path: Path, *rows: Any) -> Path:
    path.write_text(json.dumps({"rows": rows}))
    return path


# The search


OLD, FAST, SLOW = Launch(0, 16, 4, 1), Launch(0, 32, 4, 2), Launch(0, 64, 8, 3)


def accepting(one: Any) -> None:
    pass


def times(found: dict[Any, Any]) -> Any:
    def measure(one: Any) -> float:
        if isinstance(found[one], Exception):
            raise found[one]
        return found[one]

    return measure


def test_the_fastest_is_kept() -> None:
    found = search(OLD, [SLOW, OLD, FAST], times({OLD: 2.0, FAST: 1.0, SLOW: 3.0}), accepting)
    assert (found.best, found.before, found.after, found.refused) == (FAST, 2.0, 1.0, {})


def test_the_current_one_stays_where_nothing_is_clearly_faster() -> None:
    found = search(OLD, [FAST, SLOW], times({OLD: 2.0, FAST: 1.99, SLOW: 3.0}), accepting)
    assert (found.best, found.before, found.after) == (OLD, 2.0, 2.0)


def test_a_candidate_that_was_fast_once_only_is_not_kept() -> None:
    taken: dict[Any, Any] = {OLD: iter([2.0, 2.0, 2.0]), FAST: iter([1.0, 2.1]), SLOW: iter([1.5, 1.6])}
    found = search(OLD, [FAST, SLOW], lambda one: next(taken[one]), accepting)
    assert (found.best, found.before, found.after) == (SLOW, 2.0, 1.6)


def test_candidates_that_fail_are_refused_with_the_reason() -> None:
    broken = {OLD: 2.0, FAST: RuntimeError("%0 = some code\nout of shared memory\n"), SLOW: 1.5}
    found = search(OLD, [FAST, SLOW], times(broken), accepting)
    assert found.best == SLOW and found.refused == {FAST: "RuntimeError: out of shared memory"}


def test_what_works_stands_in_for_what_does_not() -> None:
    found = search(OLD, [SLOW], times({OLD: RuntimeError("does not fit"), SLOW: 5.0}), accepting)
    assert (found.best, found.before, found.after) == (SLOW, None, 5.0) and OLD in found.refused
    nothing = search(OLD, [], times({OLD: RuntimeError("does not fit")}), accepting)
    assert (nothing.best, nothing.before, nothing.after) == (OLD, None, None)


def test_another_shape_can_refuse_the_fastest() -> None:
    def confirm(one: Any) -> None:
        if one == FAST:
            raise BackendError("the result is off")

    found = search(OLD, [FAST, SLOW], times({OLD: 2.0, FAST: 1.0, SLOW: 1.5}), confirm)
    assert found.best == SLOW and found.refused == {FAST: "BackendError: the result is off"}


def test_a_lost_gpu_ends_the_search() -> None:
    with pytest.raises(Lost):
        search(OLD, [FAST], times({OLD: 2.0, FAST: Lost("gone")}), accepting)


def test_every_stage_has_candidates_that_a_file_may_hold(tmp_path: Path) -> None:
    assert SPACES.keys() == LAUNCHES.keys()
    for stage in (*SPACES, CHUNK):
        at = SCAN._replace(stage=stage, width=64)
        tried = candidates(at)
        assert len(tried) == len(set(tried)) > 2
        assert stage == CHUNK or all(max(one[:2]) <= 64 for one in tried)  # type: ignore[index]
        for one in tried:
            assert read(written(tmp_path / "rows.json", *listed({at: one}))) == {at: one}


# A whole run

START: Rows = {
    At(stage, "sm_90", path, width, 2): Launch(32, 32, 4, 1)
    for stage in LAUNCHES
    for path in ("shared delta", "channel additive")
    for width in (64, 128)
}
START |= {At(CHUNK, "sm_90", "shared delta", 64, 2): 16}


class Clock:
    """A bench: each stage takes a millisecond, or half of one with eight warps; chunks are best at 32."""

    architecture = "sm_90"

    def __init__(self) -> None:
        self.confirmed: list[Job] = []

    def milliseconds(self, job: Job) -> float:
        at = ("sm_90", "channel additive" if job.rule == "gla" else "shared delta", job.width, 2)
        if job.part == "both":
            return abs(launches.chunk_length(*at) - 32) + 1.0
        found = [launches.launch_for(stage, *at) for stage in LAUNCHES]
        if any(one.stages == 3 for one in found):
            raise RuntimeError("out of shared memory")
        return sum(0.5 if one.warps == 8 else 1.0 for one in found)

    def confirm(self, job: Job) -> None:
        self.confirmed.append(job)


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
    rows = START | {other: FAST, SCAN: Launch(0, 16, 8, 1)}
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
    for run in (bench.milliseconds, bench.confirm):
        with pytest.raises(BackendError, match="gated_delta_net: the result is off"):
            run(job)
    step = tune_gpu._step
    monkeypatch.setattr(tune_gpu, "_step", lambda *given: [1.1 * x for x in step(*given)])
    for run in (bench.milliseconds, bench.confirm):  # what torch makes of it is known from before
        with pytest.raises(BackendError, match="gated_delta_net: the result is off"):
            run(job._replace(part="step"))


# Files and precedence


def test_rows_of_a_file_stand_before_the_table_for_what_they_were_timed_at(tmp_path: Path) -> None:
    place = ("sm_90", "shared delta", 128, 2)
    table, chunk = launches.launch_for("forward_scan", *place), launches.chunk_length(*place)
    tokens = 16 if chunk != 16 else 32
    chunks = {**SCAN._replace(stage=CHUNK)._asdict(), "tokens": tokens}
    consumer = {**ROW, "architecture": "sm_86"}
    launches.use(written(tmp_path / "rows.json", ROW, chunks, consumer))
    assert launches.launch_for("forward_scan", *place) == WIDE != table
    assert launches.chunk_length(*place) == tokens != chunk
    assert launches.launch_for("forward_scan", "sm_90", "shared delta", 65, 2) == WIDE  # padded to 128
    assert launches.launch_for("forward_scan", "sm_86", *place[1:]) == WIDE
    others = [
        ("entry_states", *place),
        ("forward_scan", "sm_89", *place[1:]),
        ("forward_scan", "sm_90", "channel delta", 128, 2),
        ("forward_scan", "sm_90", "shared delta", 64, 2),
        ("forward_scan", "sm_90", "shared delta", 129, 2),
        ("forward_scan", "sm_90", "shared delta", 128, 4),
    ]
    with_file = [launches.launch_for(*other) for other in others]
    launches.use(None)
    assert with_file == [launches.launch_for(*other) for other in others] and WIDE not in with_file
    assert launches.launch_for("forward_scan", *place) == table and launches.chunk_length(*place) == chunk


def test_a_row_reaches_the_launch(tmp_path: Path) -> None:
    tokens = 16 if launches.chunk_length(*SCAN[1:]) != 16 else 32
    chunks = {**SCAN._replace(stage=CHUNK)._asdict(), "tokens": tokens}
    plain = record("delta", 128, "sm_90")
    launches.use(written(tmp_path / "rows.json", ROW, chunks))
    tuned = record("delta", 128, "sm_90")
    for before, after in zip(plain, tuned, strict=True):
        for old, new in zip(before.recording.launches, after.recording.launches, strict=True):
            options = new.kwargs["num_warps"], new.kwargs["num_stages"]
            assert new.name == old.name and new.arguments["C"] == tokens != old.arguments["C"]
            if new.name == "forward_scan":
                assert (new.arguments["VB"], *options) == WIDE[1:4]
            else:
                assert options == (old.kwargs["num_warps"], old.kwargs["num_stages"])


def test_the_environment_names_a_file_that_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "rows.json", ROW)
    monkeypatch.setenv(launches.FILE, str(path))
    assert launches.launch_for(*SCAN) == WIDE
    written(path)
    assert launches.launch_for(*SCAN) == WIDE
    launches.use(path)
    assert launches.launch_for(*SCAN) != WIDE


def test_a_wrong_file_in_the_environment_is_an_error_every_time(tmp_path: Path) -> None:
    code = (
        "from linrec.kernels.matrix.launches import chunk_length\n"
        "from linrec.errors import ConfigError\n"
        "for _ in range(2):\n"
        "    try: chunk_length('sm_90', 'shared delta', 64, 2)\n"
        "    except ConfigError as error: print(error)\n"
    )
    missing = tmp_path / "missing.json"
    environment = {
        **os.environ,
        launches.FILE: str(missing),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(f"launch configurations in {missing}: expected a JSON file") == 2


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("{", ConfigError, "expected a JSON file"),
        ("[]", ConfigError, 'an object with a list of "rows"'),
        ('{"rows": {}}', ConfigError, 'an object with a list of "rows"'),
        ('{"rows": [3]}', ConfigError, "row 1: expected an object, got 3"),
        ({"stage": "forward"}, UnknownNameError, "row 1: unknown stage 'forward'; one of scores, "),
        ({"stage": ["scores"]}, UnknownNameError, "unknown stage"),
        ({"path": "shared"}, UnknownNameError, "unknown path 'shared'; one of channel additive, "),
        ({"architecture": "H100"}, ConfigError, "as sm_90 or gfx942, got 'H100'"),
        ({"architecture": "sm_*"}, ConfigError, "as sm_90 or gfx942"),
        ({"width": 100}, ConfigError, r"width must be one of \(16, 32, 64, 128, 256\), got 100"),
        ({"size": 8}, ConfigError, "size must be one of"),
        ({"values": 24}, ConfigError, "values must be one of .* got 24"),
        ({"values": "32"}, ConfigError, "values must be one of .* got '32'"),
        ({"keys": False}, ConfigError, "keys must be one of .* got False"),
        ({"warps": 3}, ConfigError, "warps must be one of"),
        ({"stages": 0}, ConfigError, "stages must be 1 to 8, got 0"),
        ({"tile": 16}, ConfigError, "no such field: tile"),
        ({"stages": None}, ConfigError, "stages must be"),
        ({"stage": "chunk"}, ConfigError, "row 1: tokens missing"),
        ({"tokens": 32}, ConfigError, "no such field: tokens"),
    ],
)
def test_wrong_files(tmp_path: Path, text: Any, error: type[LinrecError], says: str) -> None:
    path = tmp_path / "rows.json"
    path.write_text(text if isinstance(text, str) else json.dumps({"rows": [{**ROW, **text}]}))
    launches.use(None)
    with pytest.raises(error, match=says) as caught:
        launches.use(path)
    assert str(path) in str(caught.value)
    assert launches.launch_for(*SCAN) != WIDE


def test_missing_and_repeated_rows(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="row 1: warps missing"):
        read(written(tmp_path / "rows.json", {n: x for n, x in ROW.items() if n != "warps"}))
    with pytest.raises(
        ConfigError, match="row 2: an earlier row is for the same, forward_scan sm_90 shared delta"
    ):
        read(written(tmp_path / "rows.json", ROW, ROW))


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
    assert again.exit_code == 0 and again.stdout.count(" the same ") == 2 * len(LAUNCHES)
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
