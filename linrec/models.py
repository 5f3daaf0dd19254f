"""Language models on top of the layers: configuration, one model class, checkpoints, presets, training.

The names below are imported when they are first used. The modules lie in the folder of this name, which has no
``__init__.py``: with one it would hide other projects' ``models`` from whoever runs Python in the checkout.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linrec.models.config import Config as Config
    from linrec.models.corpus import Corpus as Corpus
    from linrec.models.corpus import Document as Document
    from linrec.models.corpus import standard_library as standard_library
    from linrec.models.corpus import text_files as text_files
    from linrec.models.language_model import LanguageModel as LanguageModel
    from linrec.models.language_model import ModelOutput as ModelOutput
    from linrec.models.language_model import ModelState as ModelState
    from linrec.models.measuring import bits_per_byte as bits_per_byte
    from linrec.models.presets import preset as preset
    from linrec.models.tokenizer import ByteTokenizer as ByteTokenizer
    from linrec.models.training import TrainConfig as TrainConfig
    from linrec.models.training import TrainResult as TrainResult
    from linrec.models.training import train as train

__path__ = [str(Path(__file__).with_suffix(""))]

_HOME = {
    "Config": "config",
    "ByteTokenizer": "tokenizer",
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
    "bits_per_byte": "measuring",
    "train": "training",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"linrec.models.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
