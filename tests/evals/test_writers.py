"""Every writer of the kit, killed at every line of the code that writes: the old file or the new, nothing beside it."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from linrec import files, models
from linrec.errors import ConfigError, FileError, LinrecError
from linrec.evals.bench import gpu_times
from linrec.evals.bench import run as bench
from linrec.evals.pages.report import Report
from linrec.evals.records import write_json
from linrec.kernels.matrix import launch_file
from linrec.stream import Session
from tests.crashes import killed_everywhere

ROOT = Path(__file__).resolve().parents[2]


def picture(path: Path, turn: int) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    from linrec.evals.pages.pictures import save_png

    save_png(Figure(figsize=(1, turn)), path)


def baseline(path: Path, turn: int) -> None:
    pytest.importorskip("triton")
    from linrec.evals.kernels.report import Row, save

    save([Row("case", turn, "sm_90")], path)


def launches(path: Path, turn: int) -> None:
    from linrec.evals.kernels.tune_gpu import write

    write({}, [], path)
    if turn == 2:
        write_json(path, {"rows": []})


def session(path: Path, turn: int) -> None:
    torch.manual_seed(0)
    model = models.LanguageModel(models.Config(vocab_size=5, d_model=8, num_heads=1, pattern=("gla",)))
    Session(model, seed=0).feed([turn]).save(path)


def gpu_report(path: Path, turn: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "get_device_name", lambda: f"GPU {turn}")
        gpu_times.write({}, path.parent)


WRITERS: dict[str, Callable[[Path, int], Any]] = {
    "report.json": lambda path, turn: write_json(path, {"turn": turn}),
    "report.html": lambda path, turn: Report("Title", f"turn {turn}").write(path),
    "picture.png": picture,
    "bench.json": lambda path, turn: bench.write({"rows": [], "turn": turn}, path.parent),
    "bench_gpu.json": gpu_report,
    "baseline.json": baseline,
    "launches.json": launches,
    "session": session,
}


def held(path: Path) -> object:
    """What a file holds; safetensors writes its metadata in any order."""
    if path.name != "session":
        return path.read_bytes()
    with safe_open(path, framework="pt") as file:
        return file.metadata()["sha256"]


@pytest.mark.parametrize("name", WRITERS)
def test_killed_anywhere(name: str, tmp_path: Path) -> None:
    path, write = tmp_path / name, WRITERS[name]
    write(path, 2)
    new = held(path)
    write(path, 1)
    old, whole = held(path), path.read_bytes()
    assert old != new
    seen = set()
    for _ in killed_everywhere(lambda: write(path, 2), [files], step=4):
        seen.add(held(path))
        path.write_bytes(whole)
    assert seen == {old, new}
    write(path, 1)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_what_cannot_be_written_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(FileError, match=f"{name}: could not be written"):
        WRITERS[name](tmp_path / name, 1)
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_nothing_else_opens_a_file_to_write() -> None:
    """Whatever the kit keeps goes through files.py or records.py. The exceptions write no file that is kept."""
    allowed = {
        "files.py", "records.py",
        "measure.py",  # resets a counter of the kernel
        "ruler.py",  # a tokenizer in the system's temporary folder
        "machine_code.py",  # the same, for a disassembler
        "task_loading.py",  # the null device
    }  # fmt: skip
    calls = {
        "write_text",
        "write_bytes",
        "save_file",
        "save_pretrained",
        "savetxt",
        "dump",
        "NamedTemporaryFile",
    }
    found = []
    for path in (
        p for folder in ("linrec", "models", "evals", "kernels") for p in (ROOT / folder).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            mode = [
                a.value
                for a in [*node.args, *(k.value for k in node.keywords)]
                if isinstance(a, ast.Constant)
            ]
            opens = name == "open" and any(
                isinstance(m, str) and set(m) & set("wax+") and len(m) < 4 for m in mode
            )
            plain = name in calls and isinstance(node.func, ast.Attribute)
            if (opens or plain) and path.name not in allowed:
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {name}")
    assert not found


def test_readers_of_figures_name_what_they_cannot_read(tmp_path: Path) -> None:
    from linrec.evals.kernels.report import load

    path = tmp_path / "x.json"
    odd = [
        "",
        "{",
        "[" * 10**5,
        "9" * 5000,
        '{"rows": [], "rows": []}',
        "[]",
        "3",
        "{}",
        '{"rows": 3}',
        '{"rows": [3]}',
    ]
    rows = ['{"triton": "", "rows": [{}]}', '{"triton": "", "rows": [{"compiled": 3}]}']
    for text in [*odd, *rows]:
        path.write_text(text)
        for read in (load, launch_file.read):
            with pytest.raises(LinrecError, match=str(path)):
                read(path)
    path.write_bytes(b"\xff")
    for read in (load, launch_file.read):
        with pytest.raises(ConfigError, match="decode"):
            read(path)
        with pytest.raises(ConfigError, match="found a folder"):
            read(tmp_path)
