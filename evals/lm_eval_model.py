"""``linrec`` as an lm-eval model: a context is encoded once, its state forked for every continuation.

A state is a value here, never a buffer, so a fork is nothing but another reference to it. That is what
makes the three request kinds cheap for recurrent layers, and it is exact for a KV cache too:

* continuations: contexts are encoded once each, then every choice starts from a copy of the state;
* rolling likelihood: the state is carried through the whole document, there are no windows;
* generation: equal prompts are encoded once, and every stream steps on from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from torch import Tensor
from tqdm import tqdm

from linrec.errors import ConfigError
from linrec.models.language_model import LanguageModel
from linrec.state import State, select_rows
from linrec.stream import restrict

Request = tuple[tuple[str, str], list[int], list[int]]
Score = tuple[float, bool]


@register_model("linrec")
class LinrecLM(TemplateLM):
    """A linrec checkpoint behind lm-eval's interface; text is its UTF-8 bytes.

    Args:
        pretrained: a checkpoint folder, or a model in memory.
        device, dtype: where and in what precision to run; None keeps what the checkpoint has.
        batch_size: contexts, documents or streams processed side by side ("auto" means 8).
        max_gen_toks: bytes to generate where a task does not say.
        prefill_chunk: tokens per forward call, bounding memory on long contexts and documents.
        rolling_window: None carries the state through a whole document. A number scores documents in
            windows of that many bytes which overlap by half, every byte with at least half a window of
            context: the fairer protocol for softmax models run past the length they were trained on.
        seed: of sampled generation.

    Raises:
        CheckpointError: ``pretrained`` is not a checkpoint.
        ConfigError: the model has no end-of-document token, so an empty context cannot be scored.
    """

    def __init__(
        self,
        pretrained: str | Path | LanguageModel,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_gen_toks: int = 256,
        prefill_chunk: int = 1024,
        rolling_window: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        precision = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        if isinstance(pretrained, str | Path):
            self.model = LanguageModel.load(pretrained, device=device, dtype=precision)
        else:
            self.model = pretrained.to(device=device, dtype=precision)
        self.model.eval()
        self._device = next(self.model.parameters()).device
        end = self.model.config.eos_token_id
        if end is None or end < 256:
            raise ConfigError(
                f"scoring text by bytes expects an eos_token_id beyond the 256 bytes, got {end}; "
                "train with the byte tokenizer (vocab_size 257, eos_token_id 256)"
            )
        if rolling_window is not None and rolling_window < 2:
            raise ConfigError(f"rolling_window expects at least 2 bytes, got {rolling_window}")
        self._end = int(end)
        self.batch_size = 8 if batch_size in (None, "auto") else int(batch_size)
        self.max_gen_toks = max_gen_toks
        self.prefill_chunk = prefill_chunk
        self.rolling_window = rolling_window
        self.seed = seed
        self.tokens_processed = 0

    # ---------------------------------------------------------------- text and tokens

    @property
    def eot_token_id(self) -> int:
        """The end-of-document token; it stands in for an empty context."""
        return self._end

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, as lm-eval's request cache keys on it."""
        return "linrec-bytes"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """UTF-8 bytes of the string; lone surrogates, which some data sets hold, pass through."""
        return list(string.encode("utf-8", "surrogatepass"))

    def tok_decode(self, tokens: Iterable[int]) -> str:
        """Text of the byte tokens; special tokens are dropped, invalid UTF-8 is replaced."""
        return bytes(t for t in tokens if t < 256).decode("utf-8", "replace")

    # ---------------------------------------------------------------- model calls

    def _pad(self, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Rows of different lengths as (tokens, mask), both [B, T], padded on the right."""
        width = max(len(row) for row in rows)
        tokens = torch.full((len(rows), width), self._end, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.bool)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = torch.tensor(list(row), dtype=torch.long)
            mask[i, : len(row)] = True
        return tokens.to(self._device), mask.to(self._device)

    def _encode(self, contexts: Sequence[Sequence[int]]) -> tuple[Tensor, State]:
        """Next-token logits [B, V] after each context, and the states."""
        tokens, mask = self._pad(contexts)
        self.tokens_processed += int(mask.sum())
        ragged = None if bool(mask.all()) else mask
        out = self.model.prefill(tokens, attention_mask=ragged, chunk=self.prefill_chunk)
        return out.logits[:, -1], out.state

    # ---------------------------------------------------------------- continuations

    @torch.inference_mode()
    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[Score]:
        """(log-probability, is greedy) of every continuation; each distinct context is encoded once."""
        groups: dict[tuple[int, ...], list[int]] = {}
        for i, (_, context, _) in enumerate(requests):
            groups.setdefault(tuple(context) or (self._end,), []).append(i)
        contexts = sorted(groups, key=len, reverse=True)
        scores: list[Score] = [(0.0, True)] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="Scoring continuations")
        for batch in _batches(contexts, self.batch_size):
            first, state = self._encode(batch)
            members = [(row, i) for row, context in enumerate(batch) for i in groups[context]]
            # As many forks at a time as there are contexts side by side: hellaswag has 4, some sets 100.
            for part in _batches(members, 4 * self.batch_size):
                rows = torch.tensor([row for row, _ in part], device=self._device)
                fork = select_rows(state, rows)
                answers = self._score(first[rows], fork, [requests[i][2] for _, i in part])
                for (_, i), score in zip(part, answers, strict=True):
                    scores[i] = score
                    if requests[i][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], score)
                bar.update(len(part))
        bar.close()
        return scores

    def _score(self, first: Tensor, state: State, continuations: list[list[int]]) -> list[Score]:
        """Score continuations from forked states; ``first`` [N, V] predicts the first token of each.

        Padding needs no mask: it lies to the right, and a causal model's earlier logits do not see it.
        """
        if not max((len(c) for c in continuations), default=0):
            return [(0.0, True)] * len(continuations)
        logits = first[:, None]
        if max(len(c) for c in continuations) > 1:
            tokens, mask = self._pad([c[:-1] for c in continuations])
            self.tokens_processed += int(mask.sum())
            logits = torch.cat([logits, self.model(tokens, state).logits], dim=1)
        targets, mask = self._pad(continuations)
        logp = logits.float().log_softmax(-1)
        picked = logp.gather(-1, targets[..., None]).squeeze(-1).double().masked_fill(~mask, 0.0)
        greedy = ((logits.argmax(-1) == targets) | ~mask).all(dim=1)
        return list(zip(picked.sum(dim=1).tolist(), greedy.tolist(), strict=True))

    # ---------------------------------------------------------------- whole documents

    @torch.inference_mode()
    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole document after the end-of-document token."""
        texts = [request.args[0] for request in requests]
        documents = [self.tok_encode(text) for text in texts]
        order = sorted(range(len(documents)), key=lambda i: -len(documents[i]))
        totals = [0.0] * len(documents)
        bar = tqdm(total=sum(map(len, documents)), disable=disable_tqdm, desc="Scoring documents", unit="B")
        for batch in _batches(order, self.batch_size):
            chosen = [documents[i] for i in batch]
            windowed = self.rolling_window is not None
            scored = [self._windowed(d) for d in chosen] if windowed else self._carried(chosen)
            for i, total in zip(batch, scored, strict=True):
                totals[i] = total
                self.cache_hook.add_partial("loglikelihood_rolling", (texts[i],), total)
            bar.update(sum(map(len, chosen)))
        bar.close()
        return totals

    def _carried(self, documents: list[list[int]]) -> list[float]:
        """Documents sorted by falling length, side by side; those that have ended leave the batch."""
        inputs = [[self._end, *document] for document in documents]
        totals = torch.zeros(len(documents), dtype=torch.float64, device=self._device)
        state: State = None
        for start in range(0, max(map(len, documents), default=0), self.prefill_chunk):
            alive = sum(len(document) > start for document in documents)
            stop = start + self.prefill_chunk
            # A row that ends inside this chunk is padded on the right and dropped before the next one.
            tokens, _ = self._pad([row[:-1][start:stop] for row in inputs[:alive]])
            targets, mask = self._pad([document[start:stop] for document in documents[:alive]])
            if state is not None:
                state = select_rows(state, torch.arange(alive, device=self._device))
            out = self.model(tokens, state)
            state = out.state
            totals[:alive] += _log_probability(out.logits, targets, mask)
            self.tokens_processed += int(mask.sum())
        return totals.tolist()

    def _windowed(self, document: list[int]) -> float:
        """One document in half-overlapping windows, each from an empty state."""
        assert self.rolling_window is not None
        width, stride = self.rolling_window, self.rolling_window // 2
        inputs = [self._end, *document][:-1] if document else []
        windows = [(0, 0)]  # (first input, first scored target)
        while windows[-1][0] + width < len(document):
            windows.append((windows[-1][0] + stride, windows[-1][0] + width))
        total = 0.0
        for part in _batches(windows, 4 * self.batch_size):
            tokens, _ = self._pad([inputs[a : a + width] or [self._end] for a, _ in part])
            targets, mask = self._pad([document[a : a + width] or [self._end] for a, _ in part])
            for row, (a, scored_from) in enumerate(part):
                mask[row, : scored_from - a] = False
                mask[row, max(0, len(document) - a) :] = False
            self.tokens_processed += tokens.numel()
            total += float(_log_probability(self.model(tokens).logits, targets, mask).sum())
        return total

    # ---------------------------------------------------------------- generation

    @torch.inference_mode()
    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until a stop string, the end token or ``max_gen_toks``."""
        texts = [""] * len(requests)
        bar = tqdm(total=len(requests), disable=disable_tqdm, desc="Generating")
        by_options: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            by_options.setdefault(repr(sorted(request.args[1].items())), []).append(i)
        for members in by_options.values():
            options = requests[members[0]].args[1]
            members.sort(key=lambda i: (-len(requests[i].args[0]), requests[i].args[0], i))
            for batch in _batches(members, self.batch_size):
                prompts = [self.tok_encode(requests[i].args[0]) or [self._end] for i in batch]
                for i, text in zip(batch, self._generate(prompts, options, batch), strict=True):
                    texts[i] = text
                    self.cache_hook.add_partial("generate_until", requests[i].args, text)
                bar.update(len(batch))
        bar.close()
        return texts

    def _generate(self, prompts: list[list[int]], options: dict[str, Any], keys: list[int]) -> list[str]:
        """Streams side by side from forked prompt states; ``keys`` seed each stream on its own."""
        settings = normalize_gen_kwargs(options, self.max_gen_toks)
        stops = handle_stop_sequences(settings.get("until"), eos=None)
        endings = [s.encode("utf-8", "surrogatepass") for s in stops if s]
        temperature = float(settings.get("temperature", 0.0)) if settings.get("do_sample") else 0.0
        pick = _Picker(temperature, settings.get("top_k"), settings.get("top_p"), self.seed, keys)
        distinct = list(dict.fromkeys(map(tuple, prompts)))
        encoded, states = self._encode(distinct)
        rows = torch.tensor([distinct.index(tuple(p)) for p in prompts], device=self._device)
        logits, state = encoded[rows], select_rows(states, rows)
        streams = [bytearray() for _ in prompts]
        alive = list(range(len(prompts)))
        limit = int(settings["max_gen_toks"])
        for count in range(1, limit + 1):
            tokens = pick(logits, alive)
            keep = [n for n, t in enumerate(tokens) if self._extend(streams[alive[n]], t, endings)]
            if not keep or count == limit:
                break
            if len(keep) < len(alive):
                state = select_rows(state, torch.tensor(keep, device=self._device))
            alive = [alive[n] for n in keep]
            step = torch.tensor([[tokens[n]] for n in keep], device=self._device)
            out = self.model.step(step, state)
            logits, state = out.logits[:, -1], out.state
            self.tokens_processed += len(keep)
        return [
            postprocess_generated_text(s.decode("utf-8", "replace"), stops, think_end_token=None)
            for s in streams
        ]

    def _extend(self, stream: bytearray, token: int, endings: list[bytes]) -> bool:
        """Append a token; False once the stream has ended."""
        if token >= 256:
            return False
        stream.append(token)
        return not any(stream.endswith(ending) for ending in endings)


class _Picker:
    """Greedy or sampled next tokens; every stream draws from a generator of its own."""

    def __init__(
        self, temperature: float, top_k: int | None, top_p: float | None, seed: int, keys: list[int]
    ) -> None:
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.generators = [torch.Generator().manual_seed(seed * 1_000_003 + key) for key in keys]

    def __call__(self, logits: Tensor, streams: list[int]) -> list[int]:
        if self.temperature == 0.0:
            return logits.argmax(-1).tolist()
        scaled = logits.float().cpu() / self.temperature
        chances = [restrict(row, self.top_k or None, self.top_p or None).softmax(-1) for row in scaled]
        return [
            int(torch.multinomial(chances[n], 1, generator=self.generators[s])) for n, s in enumerate(streams)
        ]


def _log_probability(logits: Tensor, targets: Tensor, mask: Tensor) -> Tensor:
    """Row sums [B] of the targets' log-probabilities where the mask is set, in float64."""
    logp = logits.float().log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    return logp.double().masked_fill(~mask, 0.0).sum(dim=1)


def _batches(items: Sequence[Any], size: int) -> Iterator[list[Any]]:
    for start in range(0, len(items), size):
        yield list(items[start : start + size])
