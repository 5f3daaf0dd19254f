"""The configuration of a language model: checked when it is made, and its JSON form."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import reprlib
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from linrec.errors import ConfigError
from linrec.layers import LAYERS

LARGEST = 2**31 - 1
POSITIVE = (
    "norm_eps",
    "key_eps",
    "eps",
    "rope_base",
    "gate_temperature",
)  # options that no layer can take below zero
CHOICES = {
    "norm": ("rms", "rms_offset", "layer"),
    "mlp": ("swiglu", "geglu", "geglu_tanh", "relu2", "silu", "gelu", "gelu_tanh", "rwkv"),
}
# Written only where they are made: a model that does without has the file and the fingerprint that it always had.
OPTIONAL = (
    *("norm", "norm_bias", "embed_norm", "mlp", "mlp_size", "mlp_bias"),
    *("embed_scale", "residual_scale", "logit_scale", "logit_cap"),
)


@dataclass(frozen=True)
class Config:
    """Sizes and choices of one :class:`~linrec.models.LanguageModel`.

    ``pattern`` names layers of ``linrec.layers.LAYERS`` and is repeated over ``num_layers`` (default: once).
    ``mlp_ratio`` is the width of the MLP over ``d_model``, rounded up to a multiple of 8; None or 0
    leaves the block out. ``layer_options`` maps a layer's name to further arguments of its constructor.
    ``mlp_size`` says that width itself, whatever the ratio is.
    ``norm`` is ``rms``, ``rms_offset`` (its weight is added to one, as in Gemma) or ``layer``, the latter with or
    without biases (``norm_bias``); ``embed_norm`` puts one more behind the embedding. ``mlp`` is one with a gate
    (``swiglu``, ``geglu``, ``geglu_tanh``), one without (``relu2``, ``silu``, ``gelu``, ``gelu_tanh``), these with
    biases where ``mlp_bias`` is set, or ``rwkv``, RWKV-7's channel mixing. Embeddings, what a block adds to the
    stream, and logits are multiplied by ``embed_scale``, ``residual_scale`` and ``logit_scale``; logits l are then
    held within ``logit_cap`` c by c tanh(l / c).
    Options of a layer that is not in the pattern stay beside it, for a configuration made from this one.
    Raises ConfigError for an unknown layer or option, for a value of another type than the field or the option
    has, and for numbers outside their range.
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
    norm: str = "rms"
    norm_bias: bool = True
    embed_norm: bool = False
    mlp: str = "swiglu"
    mlp_size: int | None = None
    mlp_bias: bool = False
    embed_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_cap: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.pattern, str) or not isinstance(self.pattern, Sequence):
            raise ConfigError(f"pattern: expected a sequence of layer names, got {shown(self.pattern)}")
        object.__setattr__(self, "pattern", tuple(self.pattern))
        if not self.pattern:
            raise ConfigError("pattern: expected at least one layer name, got none")
        for layer in self.pattern:
            check_name(layer, LAYERS, "pattern: layer")
        if self.num_layers is None:
            object.__setattr__(self, "num_layers", len(self.pattern))
        for name in ("vocab_size", "d_model", "num_layers", "num_heads"):
            _check_count(name, getattr(self, name))
        for name in ("norm_eps", "init_std"):
            _check_positive(name, getattr(self, name))
        if self.mlp_ratio is not None and (isinstance(self.mlp_ratio, bool) or self.mlp_ratio != 0):
            _check_positive("mlp_ratio", self.mlp_ratio)
            if self.d_model * self.mlp_ratio > LARGEST:
                raise ConfigError(
                    f"mlp_ratio: expected a width of at most {LARGEST:,}, got {self.mlp_ratio:g} d_model"
                )
        for name in ("tie_embeddings", "norm_bias", "embed_norm", "mlp_bias"):
            if not isinstance(value := getattr(self, name), bool):
                raise ConfigError(f"{name}: expected true or false, got {shown(value)}")
        for name, known in CHOICES.items():
            check_name(getattr(self, name), known, name)
        self._check_scales()
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            self._check_token_id(name)
        self._check_layer_options()
        options = {layer: dict(options) for layer, options in self.layer_options.items()}
        object.__setattr__(self, "layer_options", options)

    @property
    def layer_names(self) -> tuple[str, ...]:
        """The layer of each depth: ``pattern`` repeated to ``num_layers`` names."""
        assert self.num_layers is not None
        return tuple(self.pattern[i % len(self.pattern)] for i in range(self.num_layers))

    @property
    def mlp_width(self) -> int:
        """Inner width of the MLP; 0 where there is none."""
        if self.mlp_size is not None:
            return self.mlp_size
        return -(-int(self.d_model * self.mlp_ratio) // 8) * 8 if self.mlp_ratio else 0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; ``Config.from_dict`` of it gives an equal configuration.

        Those of :data:`OPTIONAL` are left out where they have their default.
        """
        values = {**dataclasses.asdict(self), "pattern": list(self.pattern)}
        usual = {f.name: f.default for f in dataclasses.fields(self) if f.name in OPTIONAL}
        return {name: v for name, v in values.items() if name not in usual or v != usual[name]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Config:
        """Raises ConfigError for a key that is not a field, and for values that do not fit."""
        if not isinstance(values, Mapping):
            raise ConfigError(f"config: expected a mapping of fields, got {type(values).__name__}")
        names = [f.name for f in dataclasses.fields(cls)]
        for key in values:
            check_name(key, names, "config: field")
        return cls(**values)

    def _check_scales(self) -> None:
        if self.mlp_size is not None:
            _check_count("mlp_size", self.mlp_size)
        if self.mlp_bias and self.mlp == "rwkv":
            raise ConfigError("mlp_bias: expected false, the MLP 'rwkv' has no biases")
        for name in ("embed_scale", "residual_scale", "logit_scale"):
            _check_positive(name, getattr(self, name))
        if self.logit_cap is not None:
            _check_positive("logit_cap", self.logit_cap)

    def _check_token_id(self, name: str) -> None:
        token = getattr(self, name)
        if token is not None and not (_is_int(token) and 0 <= token < self.vocab_size):
            raise ConfigError(
                f"{name}: expected None or 0 <= id < vocab_size = {self.vocab_size}, got {shown(token)}"
            )

    def _check_layer_options(self) -> None:
        if not isinstance(self.layer_options, Mapping):
            raise ConfigError(f"layer_options: expected a mapping, got {shown(self.layer_options)}")
        for layer, options in self.layer_options.items():
            check_name(layer, LAYERS, "layer_options: layer")
            if not isinstance(options, Mapping):
                raise ConfigError(f"layer_options[{layer!r}]: expected a dict, got {type(options).__name__}")
            known = argument_types(layer)
            for option, value in options.items():
                check_name(option, known, f"layer_options[{layer!r}]: option")
                where = f"layer_options[{layer!r}]: {option}"
                if not _fits(value, known[option]):
                    kinds = " or ".join(_kind_name(kind) for kind in _kinds(known[option]))
                    raise ConfigError(f"{where}: expected {kinds}, got {shown(value)}")
                if option in POSITIVE and value is not None:
                    _check_positive(where, value)


def argument_types(layer: str) -> dict[str, Any]:
    """What the constructor of a layer takes, by name, with the annotations; what it passes on to its base included."""
    return {name: hint for name, (hint, _) in _arguments(layer).items()}


def argument_defaults(layer: str) -> dict[str, Any]:
    """The values of those that the constructor of a layer need not be given."""
    found = {name: parameter.default for name, (_, parameter) in _arguments(layer).items()}
    return {name: value for name, value in found.items() if value is not inspect.Parameter.empty}


def _arguments(layer: str) -> dict[str, tuple[Any, inspect.Parameter]]:
    found: dict[str, tuple[Any, inspect.Parameter]] = {}
    for cls in LAYERS[layer].__mro__:
        constructor = vars(cls).get("__init__")
        if constructor is None:
            continue
        hints = typing.get_type_hints(constructor)
        parameters = inspect.signature(constructor).parameters.values()
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        found = {p.name: (hints.get(p.name, Any), p) for p in named} | found
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return {name: found[name] for name in sorted(found.keys() - {"self", "d_model"})}


def check_name(name: object, known: Collection[str], what: str) -> None:
    """Raise ConfigError, with the closest known name, unless ``name`` is known."""
    if isinstance(name, str) and name in known:
        return
    close = difflib.get_close_matches(name[:80] if isinstance(name, str) else "", list(known), n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ConfigError(f"{what} {shown(name)} does not exist; {hint}known: {', '.join(sorted(known))}")


def shown(value: object) -> str:
    """A value as Python writes it, cut short: it may be anything that a file holds."""
    short = reprlib.Repr()
    short.maxstring = short.maxother = short.maxlong = 80
    try:
        return short.repr(value)
    except (ValueError, RecursionError):  # an integer of more digits than Python writes
        return f"a value of type {type(value).__name__}"


def _kinds(annotation: Any) -> tuple[Any, ...]:
    union = typing.get_origin(annotation) in (typing.Union, types.UnionType)
    return typing.get_args(annotation) if union else (annotation,)


def _kind_name(kind: Any) -> str:
    return {type(None): "None", float: "a finite number", int: "an integer", bool: "true or false"}.get(
        kind, getattr(kind, "__name__", str(kind))
    )


def _fits(value: object, annotation: Any) -> bool:
    """Whether a value is of an annotated type; every integer is a number, and no truth value is either."""
    for kind in _kinds(annotation):
        if kind in (int, float):
            if _is_int(value) and abs(typing.cast(int, value)) <= LARGEST:
                return True
            if kind is float and isinstance(value, float) and math.isfinite(value):
                return True
        elif kind is Any or not isinstance(kind, type) or isinstance(value, kind):
            return True
    return False


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_count(name: str, value: object) -> None:
    if not (isinstance(value, int) and _is_int(value) and value >= 1):
        raise ConfigError(f"{name}: expected an integer >= 1, got {shown(value)}")
    if value > LARGEST:
        raise ConfigError(f"{name}: expected at most {LARGEST:,}, got {shown(value)}")


def _check_positive(name: str, value: object) -> None:
    if not (_fits(value, float) and typing.cast(float, value) > 0):
        raise ConfigError(f"{name}: expected a finite number > 0, got {shown(value)}")
