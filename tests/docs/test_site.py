"""The written pages run as they stand, and the whole site builds with warnings as errors."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
WRITTEN = [
    DOCS / "index.md",
    *sorted((DOCS / "tutorials").glob("*.md")),
    *sorted((DOCS / "algorithms").glob("*.md")),
]


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: page.stem)
def test_python_blocks_run_in_order(page):
    """Blocks of one page share their names, as for a reader who pastes them from top to bottom."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    assert blocks
    scope: dict[str, object] = {"__name__": page.stem}
    for block in blocks:
        exec(compile(block, str(page), "exec"), scope)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_needs_no_network(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {
        path.relative_to(tmp_path).as_posix(): path.read_text("utf-8") for path in tmp_path.rglob("*.html")
    }
    assert "rules/gated_delta_net/index.html" in pages and "algorithms/chunkwise/index.html" in pages
    for name, text in pages.items():
        loaded = re.findall(
            r'<(?:script|img|link rel="(?:stylesheet|preload)")[^>]*(?:src|href)="(https?:[^"]+)', text
        )
        assert not loaded, f"{name} loads {loaded}"
        assert "arithmatex" not in text and "\\begin" not in re.sub(
            r"<code.*?</code>|<pre.*?</pre>", "", text, flags=re.S
        )
    assert (tmp_path / "rules" / "s4d.png").stat().st_size > 5000
