"""The configuration of a language model: checked when it is made, and its JSON form."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from linrec.errors import ConfigError
from linrec.layers import LAYERS


@dataclass(frozen=True)
class Config:
    """Sizes and choices of one :class:`~linrec.models.LanguageModel`.

    ``pattern`` names layers of ``linrec.layers.LAYERS`` and is repeated over ``num_layers`` (default: once).
    ``mlp_ratio`` is the width of the SwiGLU block over ``d_model``, rounded up to a multiple of 8; None or 0
    leaves the block out. ``layer_options`` maps a layer's name to further arguments of its constructor.
    Raises ConfigError for an unknown layer or option and for sizes that do not fit.
    """

    vocab_size: int = 257
    d_model: int = 256
    num_layers: int | None = None
    pattern: tuple[str, ...] = ("gated_delta_net",)
    num_heads: int = 4
    mlp_ratio: float | None = 8 / 3
    tie_embeddings: bool = True
    norm_eps: float = 1e-5
    init_std: float = 0.02
    layer_options: dict[str, dict[str, Any]] = field(default_factory=dict)
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.pattern, str):
            raise ConfigError(f"pattern: expected a sequence of layer names, got the string {self.pattern!r}")
        object.__setattr__(self, "pattern", tuple(self.pattern))
        object.__setattr__(self, "layer_options", copy.deepcopy(dict(self.layer_options)))
        if not self.pattern:
            raise ConfigError("pattern: expected at least one layer name, got none")
        if self.num_layers is None:
            object.__setattr__(self, "num_layers", len(self.pattern))
        for name in ("vocab_size", "d_model", "num_layers", "num_heads"):
            _check_count(name, getattr(self, name))
        for name in ("norm_eps", "init_std"):
            _check_positive(name, getattr(self, name))
        if self.mlp_ratio:
            _check_positive("mlp_ratio", self.mlp_ratio)
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            self._check_token_id(name)
        for layer in self.pattern:
            check_name(layer, LAYERS, "pattern: layer")
        self._check_layer_options()

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The layer of each depth: ``pattern`` repeated to ``num_layers`` names."""
        assert self.num_layers is not None
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.num_layers))

    @property
    def mlp_width(self) -> int:
        """Inner width of the SwiGLU block; 0 where there is none."""
        return -(-int(self.d_model * self.mlp_ratio) // 8) * 8 if self.mlp_ratio else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``Config.from_dict`` of it gives an equal configuration."""
        return {**dataclasses.asdict(self), "pattern": list(self.pattern)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Raises ConfigError for a key that is not a field, and for values that do not fit."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"config: expected a mapping of fields, got {type(values).__name__}")
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            check_name(key, names, "config: field")
        return cls(**values)

    def _check_token_id(self, name: str) -> None:
        token = getattr(self, name)
        if token is not None and not (_is_int(token) and 0 <= token < self.vocab_size):
            raise ConfigError(
                f"{name}: expected None or 0 <= id < vocab_size = {self.vocab_size}, got {token!r}"
            )

    def _check_layer_options(self) -> None:
        for layer, options in self.layer_options.items():
            check_name(layer, LAYERS, "layer_options: layer")
            if not isinstance(options, Mapping):
                raise ConfigError(f"layer_options[{layer!r}]: expected a dict, got {type(options).__name__}")
            for option in options:
                check_name(option, layer_arguments(layer), f"layer_options[{layer!r}]: option")


def layer_arguments(layer: str) -> list[str]:
    """Names that the constructor of a layer takes, those it passes on to its base class included."""
    names: list[str] = []
    for cls in LAYERS[layer].__mro__:
        constructor = vars(cls).get("__init__")
        if constructor is None:
            continue
        parameters = inspect.signature(constructor).parameters.values()
        names += [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return sorted(set(names) - {"self", "d_model"})


def check_name(name: str, known: Collection[str], what: str) -> None:
    """Raise ConfigError, with the closest known name, unless ``name`` is known."""
    if name in known:
        return
    close = difflib.get_close_matches(str(name), list(known), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(f"{what} {name!r} does not exist; {hint}known: {', '.join(sorted(known))}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_count(name: str, value: object) -> None:
    if not (isinstance(value, int) and _is_int(value) and value >= 1):
        raise ConfigError(f"{name}: expected an integer >= 1, got {value!r}")


def _check_positive(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigError(f"{name}: expected a finite number > 0, got {value!r}")
