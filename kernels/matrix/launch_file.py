"""Launch configurations in a file, as ``linrec tune`` writes them: ``{"rows": [...]}``, each row with named fields.

A row says what it is for (the fields of ``launch_table.At``) and what is launched there: those of
``launch_table.Launch``, or for the stage ``chunk`` the ``tokens`` of a chunk. What stands beside ``rows`` (versions,
times) is for people.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from linrec.errors import ConfigError, UnknownNameError
from linrec.kernels.matrix.launch_table import CHUNK, LAUNCHES, At, Launch, Rows, path_of
from linrec.reading import read_json

STAGES = (*LAUNCHES, CHUNK)
PATHS = sorted({path_of(c, d, g) for c in (False, True) for d in (False, True) for g in (False, True)})
TILES = (16, 32, 64, 128, 256)
TOKENS = (16, 32, 64)
# What a number may be; fields that are not named here: anything from 0 to 255.
NUMBERS: dict[str, Sequence[int]] = {
    "width": TILES,
    "size": (2, 4),
    "tokens": TOKENS,
    "keys": (0, *TILES),
    "values": (0, *TILES),
    "warps": (1, 2, 4, 8, 16),
    "stages": range(1, 9),
}


def read(path: str | Path) -> Rows:
    """The rows of a file.

    ConfigError where there is no such file, or it is not what ``linrec tune`` writes; UnknownNameError for a stage or a
    path that there is not. The message names the row.
    """
    try:
        data = read_json(path, ConfigError)
    except ConfigError as error:
        raise ConfigError(f"launch configurations in {path}: expected a JSON file ({error})") from error
    given = data.get("rows") if isinstance(data, dict) else None
    if not isinstance(given, list):
        raise ConfigError(f'launch configurations in {path}: expected an object with a list of "rows"')
    rows: Rows = {}
    for number, fields in enumerate(given, 1):
        where = f"launch configurations in {path}, row {number}"
        at, found = _row(fields, where)
        if at in rows:
            raise ConfigError(f"{where}: an earlier row is for the same, {' '.join(map(str, at))}")
        rows[at] = found
    return rows


def listed(rows: Rows) -> list[dict[str, Any]]:
    """The rows as a file holds them."""
    return [
        at._asdict() | ({"tokens": found} if isinstance(found, int) else found._asdict())
        for at, found in rows.items()
    ]


def _row(fields: Any, where: str) -> tuple[At, Launch | int]:
    if not isinstance(fields, dict):
        raise ConfigError(f"{where}: expected an object, got {fields!r}")
    for name, known in (("stage", STAGES), ("path", PATHS)):
        if fields.get(name) not in known:
            raise UnknownNameError(f"{where}: unknown {name} {fields.get(name)!r}; one of {', '.join(known)}")
    chunk = fields["stage"] == CHUNK
    values = ("tokens",) if chunk else Launch._fields
    needed = {*At._fields, *values} - Launch._field_defaults.keys()
    if missing := sorted(needed - fields.keys()):
        raise ConfigError(f"{where}: {', '.join(missing)} missing")
    if more := sorted(fields.keys() - {*At._fields, *values}):
        raise ConfigError(f"{where}: no such field: {', '.join(more)}")
    if not re.fullmatch(r"sm_\d+|gfx\w+", str(fields["architecture"])):
        raise ConfigError(f"{where}: architecture must be as sm_90 or gfx942, got {fields['architecture']!r}")
    for name in fields.keys() - {"stage", "architecture", "path"}:
        _check(name, fields[name], where)
    at = At(*(fields[name] for name in At._fields))
    return at, fields["tokens"] if chunk else Launch(**{n: fields[n] for n in values if n in fields})


def _check(name: str, number: Any, where: str) -> None:
    allowed = NUMBERS.get(name, range(256))
    if type(number) is not int or number not in allowed:
        said = f"{allowed[0]} to {allowed[-1]}" if isinstance(allowed, range) else f"one of {allowed}"
        raise ConfigError(f"{where}: {name} must be {said}, got {number!r}")
