"""Check what the wheel and the source archive in a folder contain: ``check_archives.py FOLDER``."""

from __future__ import annotations

import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def source_folder(package: str) -> Path:
    """Through the links inside linrec, every package stands where its name says."""
    return ROOT.joinpath(*package.split("."))


def expected_files() -> set[str]:
    """Every .py and .yaml file of every listed package, by its path in the wheel, and py.typed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    files = {"linrec/py.typed"}
    for package in project["tool"]["setuptools"]["packages"]:
        for path in source_folder(package).iterdir():
            if path.suffix in {".py", ".yaml"}:
                files.add(f"{package.replace('.', '/')}/{path.name}")
    return files


def check_wheel(wheel: Path) -> None:
    """Everything is in it, all of it under linrec."""
    names = set(zipfile.ZipFile(wheel).namelist())
    tops = {name.split("/")[0] for name in names}
    strangers = {top for top in tops if top != "linrec" and not top.endswith(".dist-info")}
    assert not strangers, f"{wheel.name} has top-level {sorted(strangers)}"
    missing = expected_files() - names
    assert not missing, f"{wheel.name} lacks {sorted(missing)}"
    assert any(name.startswith("linrec/evals/harness/tasks/") and name.endswith(".yaml") for name in names)
    print(f"{wheel.name}: {len(names)} files, everything under linrec")


def check_sdist(sdist: Path) -> None:
    """What it takes to build and to test is in it."""
    with tarfile.open(sdist) as archive:
        names = {"/".join(name.split("/")[1:]) for name in archive.getnames()}
    wanted = {
        "pyproject.toml",
        "LICENSE",
        "README.md",
        "Makefile",
        "evals/demo.py",
    }
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").rglob("*.py")}
    assert wanted <= names, f"{sdist.name} lacks {sorted(wanted - names)}"
    print(f"{sdist.name}: {len(names)} files")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    (wheel,) = folder.glob("*.whl")
    (sdist,) = folder.glob("*.tar.gz")
    check_wheel(wheel)
    check_sdist(sdist)
