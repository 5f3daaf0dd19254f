"""The HTML reports: one file, nothing linked, text escaped, pictures embedded."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import pytest

from linrec.evals.pages.report import PNG, Report, cell_text, report_files

matplotlib.use("Agg")


class Page(HTMLParser):
    """Tags with their attributes, and the cells of the tables."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("td", "th") and data.strip():
            self.cells.append(data)


def test_a_report_is_one_file_that_opens_offline(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    figure.savefig(tmp_path / "x.png")
    report = Report("A & B <script>", "sub").heading("One").text("x < y").command("linrec eval a && b")
    report.picture(figure, 'a "curve"').picture(tmp_path / "x.png", "file").versions({"torch": "2"})
    report.table(("rule", "n", "acc"), [("<gla>", 1234567, 0.123456), ("b", None, 12345.6)], "cap")
    report.write(tmp_path / "deep" / "report.html")
    html = (tmp_path / "deep" / "report.html").read_text("utf-8")
    page = Page(html)
    assert page.cells == ["rule", "n", "acc", "<gla>", "1,234,567", "0.1235", "b", "12,346"]
    assert "<script>" not in html and "A &amp; B &lt;script&gt;" in html
    pictures = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(pictures) == 2
    for source in pictures:
        assert base64.b64decode(source.removeprefix("data:image/png;base64,")).startswith(PNG)
    assert not re.search(r'(href|src)="(?!data:)', html) and "http" not in html
    numbers = [a for tag, a in page.tags if tag == "td" and a.get("class") == "number"]
    assert len(numbers) == 4, "columns of numbers stand to the right, those of names do not"


def test_wrong_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="2 cells"):
        Report("x").table(("a", "b"), [(1,)])
    with pytest.raises(ValueError, match="PNG"):
        Report("x").picture(b"GIF89a", "moving")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.5, "0.5"),
        (1.0, "1"),
        (True, "True"),
        (1e-7, "1e-07"),
        (float("nan"), "nan"),
        ("a", "a"),
        (-7, "-7"),
    ],
)
def test_cells(value: object, text: str) -> None:
    assert cell_text(value) == text


@pytest.mark.parametrize(
    ("out", "name"),
    [("a", "a"), ("a.json", "a"), ("a.html", "a"), ("run.1", "run.1"), ("new/deep/b", "new/deep/b")],
)
def test_the_files_of_a_report(tmp_path: Path, out: str, name: str) -> None:
    """No part of a name is taken for an ending, so that run.1 and run.2 are two reports."""
    found = report_files(tmp_path / out)
    assert found == (tmp_path / f"{name}.json", tmp_path / f"{name}.html")
    assert list(tmp_path.iterdir()) == []
    assert report_files(None) is None
