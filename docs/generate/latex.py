"""Equations as the rules write them (Unicode text) to LaTeX, and LaTeX to MathML, which browsers show by themselves.

The text is read from left to right. ``_`` and ``^`` take a group in braces or the letters that follow (``β_tr`` has two
indices), superscript characters join them, a run of letters is an upright word, a single letter is a variable.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache

SYMBOLS = dict(
    pair.split(" ", 1)
    for pair in (
        *(f"{c} \\{unicodedata.name(c).split()[-1].lower()} " for c in "αβγδζηθκμνπρστχψωΓΔΘΞΦΨΩ"),
        *("λ \\lambda ", "Λ \\Lambda ", "ε \\varepsilon ", "φ \\varphi ", "Σ \\sum ", "Π \\prod "),
        *("⊙ \\odot ", "⊗ \\otimes ", "· \\cdot ", "× \\times ", "≤ \\le ", "≥ \\ge ", "≠ \\ne ", "∈ \\in "),
        *("← \\leftarrow ", "→ \\to ", "< \\lt ", "> \\gt ", "≈ \\approx ", "… \\dots ", "∇ \\nabla "),
        *("∂ \\partial ", "‖ \\Vert ", "∞ \\infty ", "⌊ \\lfloor ", "⌋ \\rfloor ", "½ \\tfrac{1}{2}"),
        *("ℂ \\mathbb{C}", "ℝ \\mathbb{R}", "{ \\{", "} \\}", "− -", "% \\%", "# \\#", "& \\&"),
    )
)
SUPERSCRIPTS = {"⁻": "-", "⁺": "+", **dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789", strict=True))}
ACCENTS = {"\u0303": "\\tilde", "\u0304": "\\bar", "\u0302": "\\hat", "\u0307": "\\dot"}
# Words that name a function or a number: they stand closer to what follows than words of a sentence.
NAMES = {"Re", "Im", "log", "exp", "tanh", "max", "min", "scale", "dt", "lr"}
WORD = re.compile(r"[A-Za-z]{2,}(?:-[A-Za-z]{2,})*(?![A-Za-z\u0300-\u036f])")
WORDS = re.compile(rf"{WORD.pattern}(?:(?: a)? {WORD.pattern}(?![_^(\[]))*")
BAR = re.compile("<mo(?: stretchy=.false.)?>&#x0007C;</mo>")  # of a norm, not between two things
INDEX = re.compile(r"[0-9A-Za-zα-ωΑ-Ω]+")


class EquationError(ValueError):
    """An equation that cannot be set, and where."""


def equation_lines(equation: str) -> list[str]:
    """The LaTeX of each equation; they are separated by a comma and two spaces."""
    return [to_latex(part) for part in re.split(r"[,;]\s{2,}", equation.strip())]


def display(equation: str) -> str:
    """A whole equation line for display, one equation below the other and aligned at their first relation."""
    lines = equation_lines(equation)
    if len(lines) == 1:
        return lines[0]
    return "\\begin{align*} " + " \\\\ ".join(_aligned(line) for line in lines) + " \\end{align*}"


def _aligned(line: str) -> str:
    depth = 0
    for at, char in enumerate(line):
        depth += (char in "{([") - (char in "})]")
        relation = char == "=" or line.startswith("\\leftarrow", at)
        if relation and depth == 0:
            return f"{line[:at]}&{line[at:]}"
    return f"& {line}"


def to_latex(text: str) -> str:
    """One equation, or a part of one."""
    text = unicodedata.normalize("NFD", text).replace("..", "…")
    pieces: list[str] = []
    at = 0
    while at < len(text):
        piece, at = _next(text, at)
        if piece.startswith("^") and pieces and pieces[-1].startswith("^"):
            _enclose_power(pieces)
        pieces.append(piece)
    return re.sub(r" +", " ", "".join(pieces)).strip()


def _enclose_power(pieces: list[str]) -> None:
    """Brackets around the power at the end, so that it can be raised again: LaTeX takes no second superscript."""
    start = len(pieces) - 1
    while start > 0 and pieces[start][0] in "^_":
        start -= 1
    pieces[start:] = [f"({''.join(pieces[start:])})"]


def _next(text: str, at: int) -> tuple[str, int]:
    """What begins at ``at``, and where it ends."""
    char = text[at]
    if char.isspace():
        return " ", at + 1
    if char in "_^":
        inner, at = _attached(text, at + 1)
        return f"{char}{{{inner}}}", at
    if char == "ᵀ":
        return "^{\\top}", at + 1
    if char in SUPERSCRIPTS:
        return _raised(text, at)
    if char == "√":
        inside, at = _bracketed(text, at + 1, "()")
        return f"\\sqrt{{{to_latex(inside)}}}", at
    if char == "(":
        inside, end = _bracketed(text, at, "()")
        if "Σ" in inside or "Π" in inside:  # brackets as tall as the sum between them
            return f"\\left({to_latex(inside)}\\right)", end
    if words := WORDS.match(text, at):
        return _upright(text, words[0], at), words.end()
    if at + 1 < len(text) and text[at + 1] in ACCENTS:
        return f"{ACCENTS[text[at + 1]]}{{{char}}}", at + 2
    return _symbol(char), at + 1


def _symbol(char: str) -> str:
    if char in SYMBOLS:
        return SYMBOLS[char]
    if char.isascii():
        return char
    raise EquationError(f"no LaTeX is known for {char!r} (U+{ord(char):04X}); enter it in SYMBOLS")


def _attached(text: str, at: int) -> tuple[str, int]:
    """The group in braces or the run of letters that an index consists of."""
    if text[at : at + 1] == "{":
        inside, at = _bracketed(text, at, "{}")
        return to_latex(inside), at
    run = INDEX.match(text, at)
    if run is None:
        raise EquationError(f"nothing that could be an index at {text[at:]!r}")
    return "".join(_symbol(char) for char in run[0]).strip(), run.end()


def _raised(text: str, at: int) -> tuple[str, int]:
    """A run of superscript digits and signs."""
    end = at
    while end < len(text) and text[end] in SUPERSCRIPTS:
        end += 1
    return f"^{{{''.join(SUPERSCRIPTS[char] for char in text[at:end])}}}", end


def _bracketed(text: str, at: int, pair: str) -> tuple[str, int]:
    """What stands between the bracket at ``at`` and its partner, and where that ends."""
    depth = 0
    for end in range(at, len(text)):
        depth += (text[end] == pair[0]) - (text[end] == pair[1])
        if depth == 0:
            return text[at + 1 : end], end + 1
    raise EquationError(f"no {pair[1]!r} closes {text[at:]!r}")


def _upright(text: str, words: str, at: int) -> str:
    """Words, with a space where they stand beside variables; a function keeps closer to its arguments."""
    before, after = text[:at], text[at + len(words) :]
    space = "\\," if words in NAMES or after[:1] in ("(", "_", "^", "[") else "\\;"
    neighbour = before.rstrip()[-1:]
    touches = before.endswith(" ") and (neighbour.isalnum() or neighbour in ")}]ᵀ" or neighbour in ACCENTS)
    return f"{space if touches and neighbour else ''}\\text{{{words}}}{space if after[:1] == ' ' else ''}"


@cache
def to_mathml(latex: str, block: bool = False) -> str:
    """MathML of LaTeX; EquationError where latex2mathml does not know a command (it would show it as text)."""
    from latex2mathml.converter import convert

    made = convert(latex.strip(), display="block" if block else "inline")
    if "\\" in made or "<mi>&</mi>" in made:
        raise EquationError(f"MathML of {latex!r} keeps LaTeX: {made}")
    return BAR.sub('<mo lspace="0" rspace="0" stretchy="false">&#x0007C;</mo>', made)
