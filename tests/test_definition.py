"""Citation, equation and default scale of a rule: stated once, in the rule's own text."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.definition import citation, equation, size_formula
from linrec.engines.matrix import MATRIX, MatrixTerms
from linrec.errors import DefinitionError
from linrec.rule import Key, Options, Query, Unpack, Value, rule
from linrec.rules import RULES
from linrec.testing import example_inputs

ROOT = Path(__file__).resolve().parents[1]
DOCSTRING = """A rule: of a kind (the second one)
(Author 2023, arXiv:2301.00001; Other,
Other 2024, arXiv:2412.06464), said in passing.

.. code-block:: text

    S_t = a S_{t-1} + k_t v_tᵀ,
    z_t = 1,  o_t = S_tᵀ q_t

    more about a

Prose (1999), and

.. code-block:: text

    another block
"""


@pytest.fixture(autouse=True)
def _registry():
    """Rules of these tests leave the registry as it was."""
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


def test_a_docstring_says_who_and_what() -> None:
    assert citation(DOCSTRING, "r") == "Author 2023, arXiv:2301.00001; Other, Other 2024, arXiv:2412.06464"
    assert equation(DOCSTRING, "r") == "S_t = a S_{t-1} + k_t v_tᵀ,  z_t = 1,  o_t = S_tᵀ q_t"
    indented = "\n".join(f"    {line}".rstrip() for line in DOCSTRING.splitlines())
    assert equation(indented, "r") == equation(DOCSTRING, "r")


@pytest.mark.parametrize("text", [None, "", "No brackets.", "Some (brackets).\n\nLater (Author 2024)."])
def test_a_docstring_without_citation_is_refused(text: str | None) -> None:
    with pytest.raises(
        DefinitionError, match="my_rule: the first paragraph of the docstring must say in brackets"
    ):
        citation(text, "my_rule")


@pytest.mark.parametrize(
    "text", [None, "No block.", "::\n\n    o = q", ".. code-block:: text\n\nnot indented"]
)
def test_a_docstring_without_equation_is_refused(text: str | None) -> None:
    with pytest.raises(DefinitionError, match="my_rule: the docstring must hold the equation in a block"):
        equation(text, "my_rule")


def test_a_rule_without_either_is_refused_where_it_is_defined() -> None:
    def silent(q: Query, k: Key, v: Value, **options: Unpack[Options]) -> MatrixTerms:
        return MatrixTerms(q, k, v)

    with pytest.raises(DefinitionError, match="silent: the first paragraph"):
        rule(engine=MATRIX)(silent)
    with pytest.raises(DefinitionError, match="silent: the docstring must hold the equation"):
        rule(engine=MATRIX, cite="nobody")(silent)
    assert "silent" not in RULES
    made = rule(engine=MATRIX, cite="nobody", equation="o_t = q_t")(silent)
    assert (made.cite, made.equation) == ("nobody", "o_t = q_t")


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_of_the_kit_states_each_once(name: str) -> None:
    file = Path(inspect.getsourcefile(RULES[name].lower) or "")
    source = " ".join(file.read_text(encoding="utf-8").split())
    assert source.count(RULES[name].cite) == 1
    for part in RULES[name].equation.split(",  "):
        assert source.count(" ".join(part.split())) == 1, part
    docstring = " ".join((RULES[name].__doc__ or "").split())
    assert RULES[name].cite in docstring
    assert "cite=" not in source and "equation=" not in source


@pytest.mark.parametrize("name", sorted(RULES))
def test_a_rule_declares_the_options_and_shows_them(name: str) -> None:
    last = list(inspect.signature(RULES[name].lower).parameters.values())[-1]
    assert last.kind is last.VAR_KEYWORD and last.annotation == Unpack[Options]
    shown = inspect.signature(RULES[name]).parameters
    assert list(shown)[-5:] == ["state", "scale", "cu_seqlens", "chunk_size", "backend"]
    assert [shown[n].default for n in list(shown)[-5:]] == [None, None, None, None, "auto"]
    assert "options" not in shown and set(RULES[name].arguments) <= set(shown)


def test_rules_are_there_without_docstrings() -> None:
    command = "from linrec import rules; print(len(rules.RULES), rules.gla.cite == '', rules.gla.__doc__)"
    out = subprocess.run(
        [sys.executable, "-OO", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert out.stdout.split() == [str(len(RULES)), "True", "None"]


@pytest.mark.parametrize(
    ("formula", "value"),
    [
        ("1", 1.0),
        ("K^-1/2", 0.25),
        ("(K+R)^-1/2", 0.2),
        ("(R*K)^-1/2", 1 / 12),
        ("2*K^-1/2", 0.5),
        ("K^-1", 1 / 16),
    ],
)
def test_scales_are_formulas_in_the_legend(formula: str, value: float) -> None:
    made = size_formula(formula, {"K", "R", "T"}, "r")({"K": 16, "R": 9, "T": 3})
    assert type(made) is float and made == pytest.approx(value, abs=1e-15)


def test_a_dimension_that_is_left_out_is_zero() -> None:
    assert size_formula("(K+R)^-1/2", {"K", "R"}, "r")({"K": 16}) == 0.25


@pytest.mark.parametrize(
    "formula", ["", "K^", "__import__('os')", "K.real", "K if K else 1", "'1'", "[K]", "K and 1"]
)
def test_what_is_no_arithmetic_is_refused(formula: str) -> None:
    with pytest.raises(DefinitionError, match=r"r: .* is no arithmetic with numbers and the legend's names"):
        size_formula(formula, {"K"}, "r")


def test_a_scale_in_dimensions_of_no_argument_is_refused() -> None:
    def plain(q: Query, k: Key, v: Value, **options: Unpack[Options]) -> MatrixTerms:
        return MatrixTerms(q, k, v)

    with pytest.raises(
        DefinitionError, match=r"plain: 'N\^-1/2' has N, but the dimensions .* are B, H, HV, K, T, V"
    ):
        rule(engine=MATRIX, cite="nobody", equation="o_t = q_t", scale="N^-1/2")(plain)


Memories = Annotated[Tensor, Arg("B T H R K")]


@pytest.mark.parametrize(
    ("scale", "factor"), [("K^-1/2", 8**-0.5), ("(R*K)^-1/2", 32**-0.5), ("1", 1.0), ("R^-1/2", 0.5)]
)
@pytest.mark.parametrize("form", ["parallel", "chunkwise", "recurrent"])
def test_a_widened_q_states_its_own_scale(scale: str, factor: float, form: str) -> None:
    """Several memories beside each other: q is R times as wide as the legend's K."""

    def several(q: Memories, k: Memories, v: Value, **options: Unpack[Options]) -> MatrixTerms:
        return MatrixTerms(q.flatten(3), k.flatten(3), v)

    made: Any = rule(engine=MATRIX, cite="nobody", equation="o_t = S_tᵀ q_t", scale=scale, state="R*K*V")(
        several
    )
    x = example_inputs(made, T=9, B=1, H=1, HV=1)
    scores = torch.einsum("bthrk,bshrk->bts", x["q"], x["k"]).tril() * factor
    torch.testing.assert_close(
        made.form(form)(**x).o[:, :, 0], scores @ x["v"][:, :, 0], rtol=1e-12, atol=1e-12
    )
    token = {n: t[:, :1] for n, t in x.items()}
    torch.testing.assert_close(made.step(**token).o, made.form(form)(**token).o)


def test_attention_over_rotated_parts_takes_the_width_of_both() -> None:
    from linrec import rules

    x = example_inputs(rules.shared_kv_attention, T=6)
    both = rules.shared_kv_attention(**x)
    torch.testing.assert_close(both.o, rules.shared_kv_attention(**x, scale=12**-0.5).o)  # K = 8, R = 4
    q, shared = x["q"], x["shared"]
    torch.testing.assert_close(
        rules.shared_kv_attention(q, shared).o, rules.softmax_attention(q, shared, shared).o
    )
