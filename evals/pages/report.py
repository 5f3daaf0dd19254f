"""A report as one HTML file that opens offline: text, commands, tables and pictures, nothing linked.

    report = Report("Parity", "accuracy past the training length")
    report.command("linrec suite parity --seeds 3")
    report.table(("rule", "accuracy"), [("delta_net", 1.0), ("gla", 0.49)], "length 256, three seeds")
    report.picture(figure, "accuracy against length")  # a matplotlib figure, a PNG file or its bytes
    report.write("runs/parity.html")

Needs jinja2, which torch brings along.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from linrec.errors import ConfigError
from linrec.files import check_writable, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PNG = b"\x89PNG\r\n\x1a\n"

TEMPLATE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 2rem auto; max-width: 68rem;
       padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.subtitle, figcaption, caption { color: #595959; } figcaption, caption { font-size: .9rem; text-align: left; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .9rem .3rem 0; border-bottom: 1px solid #ddd; text-align: left; }
.number { text-align: right; } caption { caption-side: bottom; padding-top: .4rem; }
.wide { overflow-x: auto; } figure { margin: 1.2rem 0; } img { max-width: 100%; height: auto; }
pre { background: #f4f4f4; padding: .7rem 1rem; overflow-x: auto; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
{% if subtitle %}<p class="subtitle">{{ subtitle }}</p>{% endif %}
{% for kind, part in parts %}
{% if kind == "heading" %}<h2>{{ part }}</h2>
{% elif kind == "text" %}<p>{{ part }}</p>
{% elif kind == "command" %}<pre>{{ part }}</pre>
{% elif kind == "picture" %}<figure><img alt="{{ part.caption }}" src="data:image/png;base64,{{ part.data }}">
<figcaption>{{ part.caption }}</figcaption></figure>
{% elif kind == "table" %}<div class="wide"><table>
<thead><tr>{% for name, number in part.columns %}<th{% if number %} class="number"{% endif %}>{{ name }}</th>
{%- endfor %}</tr></thead>
<tbody>
{% for row in part.rows %}<tr>{% for cell, number in row %}<td{% if number %} class="number"{% endif %}>{{ cell }}</td>
{%- endfor %}</tr>
{% endfor %}</tbody>
{% if part.caption %}<caption>{{ part.caption }}</caption>{% endif %}
</table></div>
{% endif %}
{% endfor %}
</body>
</html>
"""


class Report:
    """Parts in the order in which they are added; every method returns the report."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self._parts: list[tuple[str, Any]] = []

    def _add(self, kind: str, part: Any) -> Report:
        self._parts.append((kind, part))
        return self

    def heading(self, text: str) -> Report:
        """A section starts."""
        return self._add("heading", text)

    def text(self, text: str) -> Report:
        """A paragraph of plain text."""
        return self._add("text", text)

    def command(self, text: str) -> Report:
        """A command or its output, in fixed width, as it stands."""
        return self._add("command", text)

    def table(self, headers: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> Report:
        """A table; floats are shown to four significant digits, None as nothing, numbers to the right.

        Raises ValueError for a row of another length than the headers.
        """
        body = [tuple(row) for row in rows]
        for row in body:
            if len(row) != len(headers):
                raise ValueError(f"table: expected {len(headers)} cells as in {tuple(headers)}, got {row}")
        right = [bool(body) and all(_numeric(row[i]) for row in body) for i in range(len(headers))]
        cells = [[(cell_text(value), r) for value, r in zip(row, right, strict=True)] for row in body]
        columns = list(zip(headers, right, strict=True))
        return self._add("table", {"columns": columns, "rows": cells, "caption": caption})

    def versions(self, found: Mapping[str, str]) -> Report:
        """One line: what the figures were measured with."""
        return self.text(
            "Versions: " + ", ".join(f"{name} {version}" for name, version in found.items()) + "."
        )

    def picture(self, picture: Figure | bytes | str | Path, caption: str) -> Report:
        """A picture, embedded as PNG; ``caption`` is also what a screen reader says.

        Raises ValueError for a file or bytes that are not a PNG.
        """
        data = _png(picture)
        if not data.startswith(PNG):
            raise ValueError(f"picture {caption!r}: expected a figure or a PNG, got bytes {data[:8]!r}")
        return self._add("picture", {"caption": caption, "data": base64.b64encode(data).decode()})

    def html(self) -> str:
        """The whole page; text is escaped."""
        from jinja2 import Environment

        page = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(TEMPLATE)
        return page.render(title=self.title, subtitle=self.subtitle, parts=self._parts)

    def write(self, path: str | Path) -> None:
        """Write the page atomically."""
        write_text(path, self.html())


def report_files(out: str | Path | None) -> tuple[Path, Path] | None:
    """The files that a report named ``out`` has, NAME.json and NAME.html, for both of which can be written there.

    NAME is ``out`` without one of these two endings. Raises ConfigError for what names no file, FileError.
    """
    if out is None:
        return None
    path = Path(out)
    if path.name in ("", ".."):
        raise ConfigError(f"out: expected the name of a file for the report, got {str(out)!r}")
    check_writable(path.parent)
    name = path.stem if path.suffix in (".json", ".html") else path.name
    return path.with_name(f"{name}.json"), path.with_name(f"{name}.html")


def cell_text(value: Any) -> str:
    """A value as a table shows it: 1234567 -> "1,234,567", 0.123456 -> "0.1235", None -> ""."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if 1e3 <= abs(value) < 1e15 else f"{value:.4g}"


def _numeric(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _png(picture: Figure | bytes | str | Path) -> bytes:
    if isinstance(picture, bytes):
        return picture
    if isinstance(picture, str | Path):
        return Path(picture).read_bytes()
    buffer = io.BytesIO()
    # bbox "tight" keeps labels that reach beyond the figure; no date, so equal figures give equal files.
    picture.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
