"""What one rule becomes in a limit of its arguments: both sides as code, which tests/docs compares in float64.

The names are the arguments of the first rule (``example_inputs`` of it), and ``rules``, ``torch``, ``F`` and ``scale``
(K^-1/2). A page shows the identities in which its rule stands on either side.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from docs.generate.facts import inputs_of
from linrec import rules

FILE = Path(__file__).with_name("identities.toml")


class Identity(NamedTuple):
    """``left`` equals ``right``; ``given`` are statements that run before, ``sizes`` override the example's."""

    rule: str
    says: str
    left: str
    right: str
    given: str = ""
    sizes: dict[str, int] = {}  # noqa: RUF012  (a default that nobody writes to)

    @property
    def rules(self) -> set[str]:
        """The rules of both sides."""
        return {self.rule, *re.findall(r"rules\.(\w+?)(?:_decay)?\(", self.left + self.right)}


IDENTITIES = [Identity(**entry) for entry in tomllib.loads(FILE.read_text(encoding="utf-8"))["identity"]]


def identities_of(name: str) -> list[Identity]:
    """The identities in which this rule stands, its own first."""
    found = [identity for identity in IDENTITIES if name in identity.rules]
    return sorted(found, key=lambda identity: identity.rule != name)


def sides(identity: Identity) -> tuple[Tensor, Tensor]:
    """Both sides, computed from the example inputs of the identity's rule."""
    names = inputs_of(rules.get_rule(identity.rule), **{"T": 33, **identity.sizes})
    scope: dict[str, Any] = {"rules": rules, "torch": torch, "F": F, **names}
    if "q" in names:
        scope["scale"] = names["q"].shape[-1] ** -0.5
    exec(identity.given, scope)
    left, right = eval(identity.left, scope), eval(identity.right, scope)
    return getattr(left, "o", left), getattr(right, "o", right)
