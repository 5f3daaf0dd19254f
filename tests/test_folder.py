"""Files register by being there."""

import sys
from pathlib import Path

import pytest

import linrec
from linrec import layers, rules
from linrec.errors import DefinitionError
from linrec.folder import names_in
from linrec.layers.base import LAYERS, enter
from linrec.rule import RULES, Rule


class Mark:
    """What the files of these tests define."""

    def __init__(self, module: str):
        self.__module__ = module


def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **files: str) -> str:
    folder = tmp_path / "kept"
    folder.mkdir()
    (folder / "__init__.py").touch()
    for name, text in files.items():
        (folder / f"{name}.py").write_text(f"from tests.test_folder import Mark\n{text}\n")
    (folder / "old-copy.py").write_text("raise ImportError('no module has this name')\n")
    (folder / ".#edited.py").write_text("raise ImportError('an editor has this one open')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [n for n in sys.modules if n == "kept" or n.startswith("kept.")]:
        monkeypatch.delitem(sys.modules, name)
    __import__("kept")
    return "kept"


def found(name: str) -> dict[str, str]:
    return names_in(name, lambda value: isinstance(value, Mark) or type(value).__name__ == "Mark")


def test_a_file_gives_what_it_defines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = package(
        tmp_path,
        monkeypatch,
        b="from kept.a import one\ntwo, _hidden, three = Mark(__name__), Mark(__name__), 3",
        a="one = Mark(__name__)",
        c="__all__ = ['four']\nfour, five = 4, Mark(__name__)",
        d="from kept.b import two",
    )
    assert found(name) == {"four": "kept.c", "one": "kept.a", "two": "kept.b"}


def test_two_files_with_one_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = package(tmp_path, monkeypatch, a="one = Mark(__name__)", b="one = Mark(__name__)")
    with pytest.raises(DefinitionError, match=r"kept: one is defined in kept\.a and in kept\.b"):
        found(name)


def test_every_rule_and_layer_is_an_attribute_and_an_entry() -> None:
    assert all(getattr(rules, name) is rule for name, rule in RULES.items())
    assert list(RULES) == sorted(RULES) and list(LAYERS) == sorted(LAYERS)
    assert all(
        getattr(layers, layer.__name__) is layer and layer.rule.name == n for n, layer in LAYERS.items()
    )
    files = {path.stem for path in Path(rules.__path__[0]).glob("*.py")}
    assert files - set(RULES) == {"__init__", "feature_maps"}
    assert vars(rules)["__all__"] == dir(rules) and vars(layers)["__all__"] == dir(layers)


def test_what_there_is_is_shown() -> None:
    assert {"rules", "layers", "models", "evals", "engines", "Session", "wide_products"} <= set(dir(linrec))
    assert all(hasattr(linrec, name) for name in dir(linrec))
    assert {"gated_delta_net", "alibi_decay", "RULES", "get_rule", "Output", "validation"} <= set(dir(rules))
    assert {"GatedDeltaNet", "LAYERS", "Layer"} <= set(dir(layers))
    assert isinstance(rules.abc, Rule)  # and not the file of this name


def test_two_layers_of_one_rule_are_refused() -> None:
    class Second(layers.GLA):
        rule = rules.gla

    with pytest.raises(
        DefinitionError, match=r"additive\.GLA and tests\.test_folder\.Second are both layers of gla"
    ):
        enter(Second)
    assert LAYERS["gla"] is layers.GLA
