"""Pages of the layers and of the public modules, which mkdocstrings fills from their docstrings."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections import defaultdict

import linrec
import linrec.models
from docs.generate.docstrings import to_markdown
from linrec.layers import LAYERS, Layer

WHOLE = "{show_root_heading: false, show_root_toc_entry: false}"


def layer_pages() -> dict[str, str]:
    """Page name to Markdown: the layers by the file that they stand in."""
    homes: dict[str, dict[str, type[Layer]]] = defaultdict(dict)
    for name, layer in LAYERS.items():
        homes[layer.__module__][name] = layer
    pages = {}
    for home, layers in sorted(homes.items()):
        said = to_markdown(inspect.getdoc(importlib.import_module(home)) or "")
        parts = [f"# {home.rsplit('.', 1)[-1].replace('_', ' ').capitalize()}", said]
        for name, layer in layers.items():
            rule = layer.rule.name
            parts.append(
                f"::: {home}.{layer.__name__}\n    options:\n      heading_level: 2\n      members: [__init__]\n\n"
                f'In a model\'s `pattern`: `"{name}"`. Rule: [`{rule}`](../rules/{rule}.md).'
            )
        pages[home.rsplit(".", 1)[-1]] = "\n\n".join(parts) + "\n"
    return pages


def layer_overview() -> str:
    """All layers, and what they have in common."""
    rows = ["| in `pattern` | layer | from |", "| --- | --- | --- |"]
    for name, layer in sorted(LAYERS.items()):
        home = layer.__module__.rsplit(".", 1)[-1]
        first = " ".join((inspect.getdoc(layer) or "").split("\n\n")[0].split())
        rows.append(
            f"| `{name}` | [`{layer.__name__}`]({home}.md#{layer.__module__}.{layer.__name__}) | {first} |"
        )
    common = (
        "::: linrec.layers.base.Layer\n    options:\n      heading_level: 2\n      members: [forward, mix]"
    )
    heads = "::: linrec.layers.heads.HeadsLayer\n    options:\n      heading_level: 2\n      members: [__init__, gates]"
    return "\n\n".join(["# Layers", "`nn.Module`s around a rule.", "\n".join(rows), common, heads]) + "\n"


def module_pages() -> dict[str, str]:
    """Page name to Markdown: the public modules of linrec, linrec.models and the engines."""
    names = [f"linrec.{m.name}" for m in pkgutil.iter_modules(linrec.__path__) if not m.ispkg]
    names += [f"linrec.models.{m.name}" for m in pkgutil.iter_modules(linrec.models.__path__)]
    return {n.removeprefix("linrec."): f"# {n}\n\n::: {n}\n    options: {WHOLE}\n" for n in sorted(names)}


def command_page() -> str:
    """The commands of ``linrec`` with their options, from the command line's own description."""
    from typer.main import get_command

    from linrec.cli import app

    parts = ["# The linrec command", "`linrec COMMAND --help` says the same."]
    for name, command in sorted(get_command(app).commands.items()):  # type: ignore[attr-defined]
        rows = ["| argument or option | meaning | default |", "| --- | --- | --- |"]
        for option in command.params:
            names = (
                ", ".join(f"`{o}`" for o in option.opts)
                if option.param_type_name == "option"
                else option.name.upper()
            )
            default = "" if option.default in (None, False, "") else f"`{option.default}`"
            meaning = (getattr(option, "help", "") or "").replace("|", "\\|")
            rows.append(f"| {names} | {meaning} | {default} |")
        parts += [f"## linrec {name}", command.help or "", "\n".join(rows) if len(rows) > 2 else ""]
    return "\n\n".join(part for part in parts if part) + "\n"
