"""What is compared: the mixers, the common size, the training and the text; a job is one run of one mixer."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from linrec.errors import ConfigError, UnknownNameError
from linrec.evals.small import byte_config, count_parameters, layer_spec, same_size
from linrec.models.config import Config
from linrec.models.corpus import standard_library
from linrec.models.training import TrainConfig

MIXERS = (
    "softmax_attention",
    "forgetting_attention",
    "linear_attention",
    "retnet",
    "gla",
    "hgrn2",
    "mamba",
    "mamba2",
    "delta_net",
    "gated_delta_net",
    "kimi_delta_attention",
    "rwkv7",
)
NEAR = 0.02  # the largest relative difference in parameters that still counts as equal


@dataclass(frozen=True)
class Setting:
    """The common ground. ``base`` is softmax attention's model: the others get its number of parameters.

    ``documents`` held-out modules of at most ``document_bytes`` are scored; ``context`` is where states are weighed.
    """

    size: str
    base: Config
    training: TrainConfig
    seeds: int
    documents: int
    document_bytes: int
    context: int


def make_setting(size: str, steps: int | None = None) -> Setting:
    """Small: 0.25 M parameters, minutes a seed on one core. Full: 25 M parameters, for a GPU.

    Raises UnknownNameError for another size.
    """
    if size == "small":
        base = byte_config(("softmax_attention",), d_model=96, num_heads=2, num_layers=2)
        training = TrainConfig(steps=200, batch_size=8, seq_len=256, lr=4e-3)
        setting = Setting(size, base, training, 3, 32, 8192, 4096)
    elif size == "full":
        base = byte_config(("softmax_attention",), d_model=512, num_heads=8, num_layers=8)
        training = TrainConfig(steps=4000, batch_size=32, seq_len=1024, lr=1e-3, warmup=200)
        setting = Setting(size, base, training, 3, 256, 65_536, 16_384)
    else:
        raise UnknownNameError(f"no size {size!r}; there are small and full")
    return replace(setting, training=replace(setting.training, steps=steps)) if steps else setting


@cache
def corpus_digest() -> str:
    """Twelve hex digits of all documents: figures on another library's text do not belong in the same table."""
    digest = hashlib.sha256()
    for side in standard_library():
        for document in side:
            digest.update(document.path.encode() + b"\0" + document.text + b"\0")
    return digest.hexdigest()[:12]


@dataclass(frozen=True)
class Job:
    """One run: a mixer's model from one seed."""

    mixer: str
    config: Config
    setting: Setting
    seed: int

    def describe(self) -> dict[str, Any]:
        """All that the bits per byte depend on."""
        return {
            "kind": "run",
            "mixer": self.mixer,
            "seed": self.seed,
            "config": self.config.to_dict(),
            "training": replace(self.setting.training, seed=self.seed).to_dict(),
            "documents": self.setting.documents,
            "document_bytes": self.setting.document_bytes,
            "corpus": corpus_digest(),
        }


def configs(setting: Setting, mixers: Sequence[str]) -> dict[str, Config]:
    """The model of each mixer, ``layer[+layer]:option=value,...``, at the common number of parameters.

    Raises ConfigError for an unknown layer or option, and where the MLP cannot make up the difference.
    """
    target, found = count_parameters(setting.base), {}
    for mixer in mixers:
        pattern, options = layer_spec(mixer)
        found[mixer] = same_size(setting.base, pattern, options)
        count = count_parameters(found[mixer])
        if abs(count - target) > NEAR * target:
            raise ConfigError(f"{mixer}: expected about {target:,} parameters, the nearest is {count:,}")
    return found


def jobs(setting: Setting, models: dict[str, Config], seeds: Sequence[int]) -> Iterator[Job]:
    """Seeds in the outer loop, so that an early end still leaves every mixer with some."""
    for seed in seeds:
        for mixer, config in models.items():
            yield Job(mixer, config, setting, seed)
