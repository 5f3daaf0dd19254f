"""Drop-in ``nn.Module`` layers around the rules: ``y, state = layer(x, state=None)``.

A layer of a file in this folder, a subclass of Layer that says what its rule is, is ``layers.NAME`` and stands in
LAYERS under the name of its rule, because it is there. Type checkers and editors read the names in ``__init__.pyi``,
which ``make stubs`` writes.
"""

import sys
from typing import Any

from linrec.folder import names_in
from linrec.layers.base import Layer, enter
from linrec.state import export_names


def _is_layer(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Layer) and "rule" in vars(value)


HOMES = dict.fromkeys(("LAYERS", "Layer"), "linrec.layers.base") | names_in(__name__, _is_layer)
_found = {name: getattr(sys.modules[home], name) for name, home in HOMES.items()}
globals().update(_found)
__all__ = sorted(HOMES)

for _layer in sorted(filter(_is_layer, _found.values()), key=lambda layer: layer.rule.name):
    enter(_layer)
export_names()


def __dir__() -> list[str]:
    return __all__
