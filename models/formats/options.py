"""Reading another project's ``config.json``: every option is understood, or named in an error."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from linrec.errors import CheckpointError
from linrec.models.config import shown

# What says nothing about the function that a model computes: how it was trained, first drawn, stored, or is run.
WITHOUT_EFFECT = frozenset(
    (
        *(
            "_name_or_path",
            "architectures",
            "auto_map",
            "model_type",
            "transformers_version",
            "tokenizer_class",
        ),
        *("dtype", "torch_dtype", "use_cache", "output_hidden_states", "output_attentions", "return_dict"),
        *("initializer_range", "rescale_prenorm_residual", "is_encoder_decoder", "chunk_size_feed_forward"),
        *("id2label", "label2id", "problem_type", "residual_in_fp32", "fused_add_norm", "layer_types"),
        *("fuse_norm", "fuse_swiglu", "fuse_cross_entropy", "fuse_linear_cross_entropy", "use_l2warp"),
    )
)
REQUIRED = object()
FLOAT = "__float__"  # how transformers writes what JSON has no number for


# An option of a layer of ours: what it is called there, and what its project assumes where it is not given.
Names = Mapping[str, tuple[str, Any]]


def said(sizes: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """The inverse of :meth:`Options.sizes`; a number without a fraction is an integer."""
    found = {theirs: sizes[ours] for ours, (theirs, _) in names.items()}
    return {n: int(x) if isinstance(x, float) and x.is_integer() else x for n, x in found.items()}


def unmarked(value: Any) -> Any:
    """A value of ``config.json`` with infinities as numbers."""
    if isinstance(value, dict):
        return float(value[FLOAT]) if set(value) == {FLOAT} else {n: unmarked(v) for n, v in value.items()}
    return [unmarked(item) for item in value] if isinstance(value, list) else value


def marked(value: Any) -> Any:
    """The inverse of :func:`unmarked`."""
    if isinstance(value, float) and math.isinf(value):
        return {FLOAT: "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, dict):
        return {name: marked(item) for name, item in value.items()}
    return [marked(item) for item in value] if isinstance(value, list | tuple) else value


class Options:
    """The values of a ``config.json``; each is taken once, and what nobody took is an error.

    Raises CheckpointError, with the file's name and the option's.
    """

    def __init__(self, values: Mapping[str, Any], where: str):
        self.values, self.where = unmarked(dict(values)), where
        self.taken: set[str] = set()

    def take(self, name: str, default: Any = REQUIRED) -> Any:
        """The value of an option, or what its project assumes where it is not given."""
        self.taken.add(name)
        if name not in self.values and default is REQUIRED:
            raise CheckpointError(f"{self.where}: expected the option {name!r}, found none")
        return self.values.get(name, default)

    def whole(self, name: str, default: Any = REQUIRED) -> int:
        """An integer of at least one."""
        value = self.take(name, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(f"{self.where}: {name}: expected an integer >= 1, got {shown(value)}")
        return value

    def sizes(self, names: Names) -> dict[str, Any]:
        """A layer's options, by our names; those whose default is an integer are integers of at least one."""
        return {
            ours: self.whole(theirs, default) if type(default) is int else self.take(theirs, default)
            for ours, (theirs, default) in names.items()
        }

    def only(self, name: str, allowed: Collection[Any], default: Any, why: str = "") -> Any:
        """An option whose other values cannot be expressed here."""
        value = self.take(name, default)
        if value not in allowed:
            known = " or ".join(repr(choice) for choice in allowed)
            raise CheckpointError(
                f"{self.where}: {name} = {shown(value)} cannot be expressed, only {known}{why}"
            )
        return value

    def token(self, name: str, size: int, default: int | None = None) -> int | None:
        """The id of a special token; None where there is none, or it lies outside the vocabulary."""
        value = self.take(name, default)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, list):
            raise CheckpointError(f"{self.where}: {name}: expected one id, got {shown(value)}")
        return value if isinstance(value, int) and 0 <= value < size else None

    def without_effect(self, *names: str) -> None:
        """Options of this project that do not change what a model computes."""
        self.taken |= set(names)

    def finish(self) -> None:
        """Raise for options that nobody took."""
        left = sorted(self.values.keys() - self.taken - WITHOUT_EFFECT)
        if left:
            raise CheckpointError(f"{self.where}: cannot be expressed: {shown(left)[1:-1]}")
