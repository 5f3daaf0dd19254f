"""Language models on top of the layers: configuration, one model class, checkpoints, presets, training.

The names below are imported when they are first used, so that this file stays harmless should some
program with the repository root on its path import it as a top-level ``models``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linrec.models.config import Config as Config
    from linrec.models.corpus import ByteTokenizer as ByteTokenizer
    from linrec.models.corpus import Corpus as Corpus
    from linrec.models.corpus import Document as Document
    from linrec.models.corpus import standard_library as standard_library
    from linrec.models.corpus import text_files as text_files
    from linrec.models.language_model import LanguageModel as LanguageModel
    from linrec.models.language_model import ModelOutput as ModelOutput
    from linrec.models.language_model import ModelState as ModelState
    from linrec.models.presets import preset as preset
    from linrec.models.training import TrainConfig as TrainConfig
    from linrec.models.training import TrainResult as TrainResult
    from linrec.models.training import bits_per_byte as bits_per_byte
    from linrec.models.training import train as train

_HOME = {
    "Config": "config",
    "ByteTokenizer": "corpus",
    "Corpus": "corpus",
    "Document": "corpus",
    "standard_library": "corpus",
    "text_files": "corpus",
    "LanguageModel": "language_model",
    "ModelOutput": "language_model",
    "ModelState": "language_model",
    "preset": "presets",
    "TrainConfig": "training",
    "TrainResult": "training",
    "bits_per_byte": "training",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"linrec.models.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
