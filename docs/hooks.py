"""What MkDocs asks while it builds: the generated pages, pictures, navigation, and equations as MathML."""

from __future__ import annotations

import html
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402
from mkdocs.structure.files import File, Files  # noqa: E402

from docs.generate import latex, page, picture, reference  # noqa: E402
from docs.generate.font import math_font  # noqa: E402

RESULTS = (
    "../evals/results/"  # pictures of measurements, which the written pages show from where they were made
)
OUTSIDE = {"design.md": "DESIGN.md", "contributing.md": "CONTRIBUTING.md"}
EQUATION = re.compile(r'<(span|div) class="arithmatex">(.*?)</\1>', re.S)


def on_config(config: Any) -> Any:
    """The generated parts of the navigation."""
    torch.set_num_threads(1)  # the tensors of the pictures are small: threads would cost more than they bring
    rules: list[Any] = [{"Overview": "rules/index.md"}]
    rules += [{name: [f"rules/{r.name}.md" for r in members]} for name, members in page.families().items()]
    layers: list[Any] = ["layers/index.md"]
    layers += [{n.replace("_", " ").capitalize(): f"layers/{n}.md"} for n in reference.layer_pages()]
    modules = [{f"linrec.{name}": f"api/{name}.md"} for name in reference.module_pages()]
    made = {"RULES": rules, "LAYERS": layers, "API": [{"The linrec command": "api/command.md"}, *modules]}
    config.nav = [
        {title: made.get(entry, entry) if isinstance(entry, str) else entry}
        for item in config.nav
        for title, entry in item.items()
    ]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Pages of the registry, pictures, the font, and files that stand outside of this folder."""
    texts = {f"rules/{r.name}.md": page.rule_page(r) for rules in page.families().values() for r in rules}
    texts |= {"rules/index.md": page.overview(), "layers/index.md": reference.layer_overview()}
    texts |= {f"layers/{name}.md": text for name, text in reference.layer_pages().items()}
    texts |= {f"api/{name}.md": text for name, text in reference.module_pages().items()}
    texts["api/command.md"] = reference.command_page()
    made: dict[str, str | bytes] = {**texts, "assets/math.woff": math_font()}
    for rules in page.families().values():
        made |= {f"rules/{rule.name}.png": picture.draw(picture.mixing(rule)) for rule in rules}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    for name, source in OUTSIDE.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    for path in sorted((ROOT / "evals" / "results").glob("*.png")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Pictures from outside of this folder were copied into the site."""
    return markdown.replace(f"]({RESULTS}", "](results/")


def on_page_content(html: str, **kwargs: Any) -> str:
    """Every equation that Arithmatex found, as MathML."""
    return EQUATION.sub(_mathml, html)


def _mathml(found: re.Match[str]) -> str:
    text = html.unescape(found[2]).strip()
    block = found[1] == "div"
    made = latex.to_mathml(
        text.removeprefix("\\[" if block else "\\(").removesuffix("\\]" if block else "\\)"), block
    )
    return f'<div class="equation">{made}</div>' if block else made
