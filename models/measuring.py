"""How well a model predicts text: bits a byte, whatever its tokens are."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from rich.progress import Progress
from torch import Tensor
from torch.nn import functional as F

from linrec.errors import ConfigError
from linrec.models.corpus import Document, text_ids
from linrec.models.language_model import LanguageModel
from linrec.models.tokenizer import ByteTokenizer, Tokenizer
from linrec.models.training import check_vocabulary, progress_bar
from linrec.state import State


@torch.no_grad()
def bits_per_byte(
    model: LanguageModel,
    documents: Sequence[Document],
    *,
    tokenizer: Tokenizer | None = None,
    chunk: int = 512,
    batch_size: int = 8,
    max_bytes: int | None = None,
    progress: Progress | bool = False,
) -> float:
    """Mean of -log2 p(token | all tokens of the document before it) over bytes, the state carried through each
    document.

    ``tokenizer`` is the model's (default: bytes). The first token follows the id that starts a document. ``max_bytes``
    reads only that much of each document. Raises ConfigError when there is nothing to measure, and for a tokenizer
    that names no token to start with.
    """
    tokenizer = tokenizer or ByteTokenizer()
    check_vocabulary(model, tokenizer)
    if tokenizer.start is None:
        raise ConfigError(
            "bits_per_byte: expected a tokenizer with a bos_token or an eos_token, which starts a text"
        )
    texts = [t for d in documents if (t := d.text[:max_bytes])]
    total = sum(map(len, texts))
    if not total:
        raise ConfigError("bits_per_byte: expected documents with at least one byte, got none")
    rows = sorted((text_ids(text, tokenizer) for text in texts), key=len)
    model.eval()
    nats = 0.0
    with progress_bar(progress) as bar:
        task = bar.add_task("bits per byte", total=sum(map(len, rows)), note="")
        for first in range(0, len(rows), batch_size):
            batch = rows[first : first + batch_size]
            nats += _nats(model, batch, tokenizer.start, chunk)
            bar.update(task, advance=sum(map(len, batch)))
    return nats / math.log(2) / total


def _nats(model: LanguageModel, rows: list[Tensor], begin: int, chunk: int) -> float:
    """Rows follow ``begin`` and are padded at the end: predictions of a causal model do not see the padding behind."""
    device, longest = model.device, max(map(len, rows))
    tokens = torch.full((len(rows), longest + 1), begin, dtype=torch.long)
    targets = torch.full((len(rows), longest), -100, dtype=torch.long)
    for i, row in enumerate(rows):
        tokens[i, 1 : row.numel() + 1] = row
        targets[i, : row.numel()] = row
    state: State = None
    total = 0.0
    for start in range(0, longest, chunk):
        stop = min(start + chunk, longest)
        output = model(tokens[:, start:stop].to(device), state)
        state = output.state
        logits, goal = output.logits.flatten(0, 1).float(), targets[:, start:stop].flatten().to(device)
        total += float(F.cross_entropy(logits, goal, ignore_index=-100, reduction="sum"))
    return total
