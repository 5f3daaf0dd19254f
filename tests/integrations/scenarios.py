"""Ways to call a model, and how far its logits are from those of each sequence alone, without padding or cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.integrations.families import VOCABULARY

LENGTHS = (23, 70, 41)  # of one batch; longer and shorter than a chunk


def documents(lengths: tuple[int, ...] = LENGTHS, more: int = 0) -> list[Tensor]:
    """Random sequences ``[length + more]``; the numbers of special tokens do not occur."""
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(3, VOCABULARY, (length + more,), generator=generator) for length in lengths]


def logits(model: nn.Module, ids: Tensor, **said: Any) -> Tensor:
    return model(input_ids=ids, **said).logits


def alone(model: nn.Module, texts: list[Tensor]) -> list[Tensor]:
    """What is right: every sequence by itself, in one call."""
    return [logits(model, text[None], use_cache=False)[0] for text in texts]


def farthest(got: list[Tensor], right: list[Tensor]) -> float:
    return max((a - b).abs().max().item() for a, b in zip(got, right, strict=True))


def positions_of(mask: Tensor) -> Tensor:
    """As ``generate`` makes them."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def padded(texts: list[Tensor], side: str) -> tuple[Tensor, Tensor]:
    """Sequences in one batch, and its mask."""
    longest = max(len(text) for text in texts)
    ids, mask = torch.zeros(2, len(texts), longest, dtype=torch.long)
    for row, text in enumerate(texts):
        place = slice(0, len(text)) if side == "right" else slice(longest - len(text), None)
        ids[row, place], mask[row, place] = text, 1
    return ids, mask


def batch(model: nn.Module, reference: nn.Module) -> float:
    ids = torch.stack(documents((70, 70)))
    return farthest(list(logits(model, ids)), alone(reference, list(ids)))


def one_at_a_time(model: nn.Module, reference: nn.Module) -> float:
    """A prompt, then token by token."""
    ids = torch.stack(documents((30, 30)))
    return _continued(model, reference, ids, [20, *[1] * 10])


def several_at_a_time(model: nn.Module, reference: nn.Module) -> float:
    """A prompt, then several tokens, one, several."""
    ids = torch.stack(documents((30, 30)))
    return _continued(model, reference, ids, [9, 5, 1, 2, 13])


def short_prompt(model: nn.Module, reference: nn.Module) -> float:
    """Shorter than the convolution's window."""
    return _continued(model, reference, torch.stack(documents((9, 9))), [1, 1, 2, 5])


def _continued(model: nn.Module, reference: nn.Module, ids: Tensor, pieces: list[int]) -> float:
    kept, got = empty(model), []
    for piece in ids.split(pieces, dim=1):
        done = model(input_ids=piece, use_cache=True, **kept)
        kept = after(done, kept)
        got.append(done.logits)
    return farthest(list(torch.cat(got, 1)), alone(reference, list(ids)))


def empty(model: Any) -> dict[str, Any]:
    """What a first call gets that others go on from: nothing, but where a model does not return its cache."""
    from transformers import DynamicCache

    return (
        {"cache": DynamicCache(config=model.config)} if model.config.model_type == "recurrent_gemma" else {}
    )


def after(done: Any, kept: dict[str, Any]) -> dict[str, Any]:
    """What the next call gets."""
    returned = {name: done[name] for name in ("cache", "state") if name in done}
    return returned or kept


def left_padding(model: nn.Module, reference: nn.Module) -> float:
    return _padded(model, reference, "left", 0, 0)


def right_padding(model: nn.Module, reference: nn.Module) -> float:
    return _padded(model, reference, "right", 0, 0)


def left_padding_then_one(model: nn.Module, reference: nn.Module) -> float:
    return _padded(model, reference, "left", 3, 1)


def left_padding_then_several(model: nn.Module, reference: nn.Module) -> float:
    return _padded(model, reference, "left", 6, 3)


def right_padding_then_one(model: nn.Module, reference: nn.Module) -> float:
    return _padded(model, reference, "right", 3, 1)


def right_padding_then_several(model: nn.Module, reference: nn.Module) -> float:
    return _padded(model, reference, "right", 6, 3)


def _padded(model: nn.Module, reference: nn.Module, side: str, more: int, step: int) -> float:
    """A padded batch of prompts (one shorter than the convolution's window), then ``more`` tokens by ``step``."""
    lengths = (*LENGTHS, 2)
    texts = documents(lengths, more)
    ids, mask = padded([text[:n] for text, n in zip(texts, lengths, strict=True)], side)
    said = {"attention_mask": mask, "position_ids": positions_of(mask)}
    kept = empty(model) if more else {}
    done = model(input_ids=ids, use_cache=more > 0, **said, **kept)
    rows = [done.logits[row][mask[row] == 1] for row in range(len(texts))]
    for start in range(0, more, step or 1):
        new = torch.stack(
            [text[n + start : n + start + step] for text, n in zip(texts, lengths, strict=True)]
        )
        mask = torch.cat([mask, torch.ones_like(new)], 1)
        positions = positions_of(mask)[:, -step:]
        kept = after(done, kept)
        done = model(input_ids=new, attention_mask=mask, position_ids=positions, use_cache=True, **kept)
        rows = [torch.cat([row, more_logits]) for row, more_logits in zip(rows, done.logits, strict=True)]
    return farthest(rows, alone(reference, texts))


def packed_by_positions(model: nn.Module, reference: nn.Module) -> float:
    return _packed(model, reference, ())


def packed_by_boundaries(model: nn.Module, reference: nn.Module) -> float:
    return _packed(model, reference, ("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"))


def packed_by_numbers(model: nn.Module, reference: nn.Module) -> float:
    return _packed(model, reference, ("seq_idx",))


def _packed(model: nn.Module, reference: nn.Module, also: tuple[str, ...]) -> float:
    """Documents side by side, told as transformers' collator tells it."""
    texts = documents((*LENGTHS, 2, 1))
    said = packing(texts)
    ids = torch.cat(texts)[None]
    given = {name: said[name] for name in ("position_ids", *also)}
    got = logits(model, ids, use_cache=False, **given)[0]
    return farthest(list(got.split([len(text) for text in texts])), alone(reference, texts))


def packing(texts: list[Tensor]) -> dict[str, Any]:
    lengths = torch.tensor([len(text) for text in texts])
    bounds = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).int()
    return {
        "position_ids": torch.cat([torch.arange(n) for n in lengths])[None],
        "seq_idx": torch.repeat_interleave(torch.arange(len(texts)), lengths)[None].int(),
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": int(lengths.max()),
        "max_length_k": int(lengths.max()),
    }


def packed_rows(model: nn.Module, reference: nn.Module) -> float:
    """Several rows, each of several documents."""
    rows = [documents((20, 30)), documents((35, 15))]
    ids = torch.stack([torch.cat(row) for row in rows])
    positions = torch.stack([torch.cat([torch.arange(len(text)) for text in row]) for row in rows])
    got = logits(model, ids, position_ids=positions, use_cache=False)
    pieces = [
        piece for row, texts in zip(got, rows, strict=True) for piece in row.split([len(t) for t in texts])
    ]
    return farthest(pieces, alone(reference, [text for row in rows for text in row]))


Scenario = Callable[[nn.Module, nn.Module], float]
SCENARIOS: dict[str, Scenario] = {
    scenario.__name__: scenario
    for scenario in (
        batch,
        one_at_a_time,
        several_at_a_time,
        short_prompt,
        left_padding,
        right_padding,
        left_padding_then_one,
        left_padding_then_several,
        right_padding_then_one,
        right_padding_then_several,
        packed_by_positions,
        packed_by_boundaries,
        packed_by_numbers,
        packed_rows,
    )
}
