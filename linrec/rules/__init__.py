"""The mechanisms: one file, one equation. ``rules.gated_delta_net(q, k, v, g, beta)`` and so on.

A rule of a file in this folder is ``rules.NAME`` and stands in RULES, because it is there. Type checkers and editors
read the names in ``__init__.pyi``, which ``make stubs`` writes.
"""

import sys
from typing import Any

from linrec.folder import names_in
from linrec.rule import RULES, Rule


def _is_rule(value: Any) -> bool:
    return isinstance(value, Rule)


HOMES = dict.fromkeys(("RULES", "Output", "get_rule", "validation"), "linrec.rule") | names_in(
    __name__, _is_rule
)
globals().update({name: getattr(sys.modules[home], name) for name, home in HOMES.items()})
__all__ = sorted(HOMES)

for _name in sorted(RULES):  # in the order of the alphabet, and not of who imports whom
    RULES[_name] = RULES.pop(_name)


def __dir__() -> list[str]:
    return __all__
