"""The converter of equations: each rule by existing, and what it must get right one by one."""

import re
import unicodedata

import pytest

from docs.generate.latex import EquationError, display, equation_lines, to_latex, to_mathml
from linrec.rules import RULES

CASES = {
    "S_t = e^{g_t} S_{t-1}": r"S_{t} = e^{g_{t}} S_{t-1}",
    "β_tr k_trᵀ": r"\beta _{tr} k_{tr}^{\top}",  # two indices
    "K̃_t, Ā, ĩ": r"\tilde{K}_{t}, \bar{A}, \tilde{i}",  # combined or composed
    "(H + Diag(λ))⁻¹ q": r"(H + \text{Diag}(\lambda ))^{-1} q",
    "|k|²": r"|k|^{2}",
    "k_t²ᵀ": r"(k_{t}^{2})^{\top}",  # no second superscript
    "e^{h_t}ᵀ": r"(e^{h_{t}})^{\top}",
    "√(1 - |λ|²) x": r"\sqrt{1 - |\lambda |^{2}} x",
    "Σ_{j≤t} softmax_j(q_t·k_j) v_j": r"\sum _{j\le t} \,\text{softmax}_{j}(q_{t}\cdot k_{j}) v_{j}",
    "(Σ_j x_j) / 2": r"\left(\sum _{j} x_{j}\right) / 2",
    "g = -s constant per head": r"g = -s \;\text{constant per head}",
    "after a chunk W ← W": r"\text{after a chunk}\; W \leftarrow W",
    "dt_t A": r"\text{dt}_{t} A",
    "l=j..t": r"l=j\dots t",
    "C ∈ ℂ^{N×D}": r"C \in \mathbb{C}^{N\times D}",
    "f'": "f'",
    "½ ∇": r"\tfrac{1}{2} \nabla",
    "{a, b}": r"\{a, b\}",
}


@pytest.mark.parametrize("text", CASES)
def test_pieces(text):
    assert to_latex(text) == CASES[text]


def test_lines_are_aligned_at_their_first_relation_outside_of_brackets():
    assert equation_lines("a = b,  c = d") == ["a = b", "c = d"]
    assert display("a = b") == "a = b"
    assert display("Σ_{l=1} x = b,  W ← c") == (
        r"\begin{align*} \sum _{l=1} x &= b \\ W &\leftarrow c \end{align*}"
    )
    assert r"\\ & n \;\text{likewise}" in display("a = b,  n likewise")


def test_what_cannot_be_set_is_said():
    with pytest.raises(EquationError, match="no LaTeX is known for '☃'"):
        to_latex("a ☃ b")
    with pytest.raises(EquationError, match="nothing that could be an index"):
        to_latex("a_ = b")
    with pytest.raises(EquationError, match=r"no '}' closes"):
        to_latex("e^{a")
    with pytest.raises(EquationError, match="keeps LaTeX"):
        to_mathml(r"\nosuchcommand x")


@pytest.mark.parametrize("name", sorted(RULES))
def test_every_equation_becomes_mathml_and_loses_nothing(name):
    equation = RULES[name].equation
    made = to_mathml(display(equation), block=True)
    shown = re.sub(r"<[^>]+>|&[#\w]+;|\W", "", made)
    written = re.sub(r"[^A-Za-z0-9]", "", unicodedata.normalize("NFKD", re.sub("[ΣΠᵀℂ]", "", equation)))
    for letter in set(written):  # MathML holds every letter and digit, as often as the equation does
        assert shown.count(letter) == written.count(letter), letter
