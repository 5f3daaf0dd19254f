"""Files of launch rows: what they may hold, and which rows a launch takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from linrec.errors import ConfigError, LinrecError, UnknownNameError
from linrec.evals.kernels.cases import record
from linrec.kernels.matrix import launches
from linrec.kernels.matrix.launch_file import read
from linrec.kernels.matrix.launch_table import CHUNK
from tests.kernels.tuning import ROW, SCAN, WIDE, written

pytestmark = pytest.mark.usefixtures("no_launch_file")


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
