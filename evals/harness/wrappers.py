"""One model behind two of lm-eval's interfaces: its stock wrapper of transformers' model, and linrec's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from linrec.evals.harness.any_model import from_transformers, load_any
from linrec.models.checkpoint import MODEL_TYPE, config_values
from linrec.models.language_model import LanguageModel

if TYPE_CHECKING:
    from lm_eval.api.model import LM

UNCUT = 2**20  # without a maximal length the stock wrapper cuts every prompt to its default of 2048 tokens


class Wrapped(NamedTuple):
    """How to make the wrapper, anew for each run, and where the tokens are counted that it reads."""

    make: Callable[[], LM]
    embedding: nn.Module


def wrappers(
    checkpoint: str | Path | LanguageModel, batch_size: int, device: str | None = None
) -> tuple[Any, dict[str, Wrapped]]:
    """The model as linrec reads it, and both wrappers around the same weights: ``hf`` and ``linrec``.

    ``hf`` is transformers' own model where the folder holds one, else linrec's transformers class.
    """
    from linrec.evals.harness.lm_eval_model import LinrecLM

    model: Any = checkpoint if isinstance(checkpoint, LanguageModel) else load_any(checkpoint, device)
    folder = None if isinstance(checkpoint, LanguageModel) or _is_ours(checkpoint) else Path(checkpoint)
    stock = _ours_in_transformers(model) if folder is None else _transformers(folder, device)
    return model, {
        "hf": Wrapped(lambda: _stock(*stock, batch_size), stock[0].get_input_embeddings()),
        "linrec": Wrapped(
            lambda: LinrecLM(model, batch_size=batch_size, tokenizer=folder), _embedding(model)
        ),
    }


def _is_ours(folder: str | Path) -> bool:
    return config_values(folder).get("model_type") == MODEL_TYPE


def _ours_in_transformers(model: LanguageModel) -> tuple[Any, Any]:
    from linrec.models.byte_tokenizer import byte_tokenizer
    from linrec.models.huggingface import LinrecForCausalLM

    return LinrecForCausalLM.from_linrec(model), byte_tokenizer()


def _transformers(folder: Path, device: str | None) -> tuple[Any, Any]:
    from transformers import AutoTokenizer

    return from_transformers(folder).to(device).eval(), AutoTokenizer.from_pretrained(folder)


def _stock(model: Any, tokenizer: Any, batch_size: int) -> LM:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=UNCUT)


def _embedding(model: Any) -> nn.Module:
    return model.embed if isinstance(model, LanguageModel) else model.model.get_input_embeddings()
