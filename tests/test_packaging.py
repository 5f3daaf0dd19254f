"""What is installed: the list of packages, folders that hide nobody's, optional packages, the generated table."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.source import MAPPED, OPTIONAL, ROOT


def expected_packages() -> set[str]:
    """Package names of the tree: each folder of Python or YAML files under linrec and the mapped folders."""
    tops = {name: ROOT / name for name in ("linrec", *MAPPED)}
    packages = set()
    for name, top in tops.items():
        prefix = ("linrec",) if name == "linrec" else ("linrec", name)
        for folder, subfolders, files in os.walk(top):
            subfolders[:] = [s for s in subfolders if s != "__pycache__" and not Path(folder, s).is_symlink()]
            if any(file.endswith((".py", ".yaml")) for file in files):
                packages.add(".".join((*prefix, *Path(folder).relative_to(top).parts)))
    return packages


def test_package_list_equals_the_tree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = project["tool"]["setuptools"]["packages"]
    assert len(listed) == len(set(listed))
    assert set(listed) == expected_packages()


@pytest.mark.parametrize("name", MAPPED)
def test_mapped_folders_are_linked_and_hide_no_package_of_that_name(name: str, tmp_path: Path) -> None:
    """With the checkout on sys.path another project's ``import kernels`` finds that project's, ahead of our folder."""
    assert (ROOT / "linrec" / name).resolve() == ROOT / name
    theirs = tmp_path / name / "__init__.py"
    theirs.parent.mkdir()
    theirs.write_text("owner = 'another project'")
    code = f"""
import {name}
assert {name}.owner == 'another project'
import linrec.{name} as ours
print(*ours.__path__)
"""
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert ROOT / name in {Path(place).resolve() for place in found.stdout.split()}


COLD_IMPORT = """
import sys

class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

BLOCKED = sys.argv[1].split(",")
sys.meta_path.insert(0, Block())

import linrec, linrec.rules, linrec.layers, linrec.models, linrec.cli
import linrec.models.language_model
import torch

assert not set(BLOCKED) & {name.split(".")[0] for name in sys.modules}
q = k = v = torch.nn.functional.normalize(torch.randn(1, 5, 2, 4), dim=-1)
g, beta = torch.full((1, 5, 2), -0.1), torch.full((1, 5, 2), 0.5)
o, state = linrec.rules.gated_delta_net(q, k, v, g, beta)
assert o.shape == v.shape and o.isfinite().all()
print("cold import ok")
"""


def test_works_without_the_optional_packages() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COLD_IMPORT, ",".join(OPTIONAL)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "cold import ok" in done.stdout


def test_readme_table_is_the_generated_one() -> None:
    from linrec.table import support_table

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    begin, end = "<!-- rules:begin -->", "<!-- rules:end -->"
    assert readme.count(begin) == readme.count(end) == 1
    table = readme.split(begin)[1].split(end)[0]
    assert table.strip() == support_table().strip(), "regenerate with: linrec rules --markdown"
