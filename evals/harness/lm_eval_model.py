"""``linrec`` as an lm-eval model: every distinct prefix of a task is read once, and forked from there.

All requests of a call form one trie (:mod:`linrec.evals.harness.prefix_trie`), which the model walks
(:mod:`linrec.evals.harness.prefix_walk`). A state is a value here, never a buffer, so a fork is nothing but another
reference to it; that is what makes the three request kinds cheap, and it is exact for a KV cache too:

* continuations: a context is read once for all its choices, a few-shot prefix once for the whole task;
* rolling likelihood: the state is carried through the whole document, there are no windows;
* generation: equal prompts are read once, and every stream steps on from there.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from linrec.errors import ConfigError
from linrec.evals.harness.any_model import Readable, load_any, stateful
from linrec.evals.harness.generation_options import GenerationOptions
from linrec.evals.harness.model_arguments import at_least, batch_rows, place, precision, refuse
from linrec.evals.harness.prefix_trie import Node, PrefixTrie
from linrec.evals.harness.prefix_walk import PrefixWalk, Visitor
from linrec.evals.harness.scoring import Scorer
from linrec.evals.harness.streams import PromptStreams
from linrec.models.language_model import LanguageModel
from linrec.models.tokenizer import ByteTokenizer, Tokenizer, file_tokenizer, load_tokenizer

Request = tuple[tuple[str, str], list[int], list[int]]
Score = tuple[float, bool]


@register_model("linrec")
class LinrecLM(TemplateLM):
    """A checkpoint behind lm-eval's interface, with the tokenizer that lies beside it, or bytes.

    Args:
        pretrained: a checkpoint folder, of linrec, of a format that it knows, or of another model of transformers that
            has a state to fork; or a model in memory, linrec's or transformers'.
        device, dtype: where and in what precision to run; None (dtype also "auto") keeps what the checkpoint has,
            and a GPU that is not here is the CPU, as lm-eval's command line always names one.
        batch_size: contexts or streams processed side by side ("auto" means 8, or ``max_batch_size`` where that is
            less); of short contexts and continuations up to four times as many, within
            ``batch_size * prefill_chunk`` tokens.
        max_gen_toks: tokens to generate where a task does not say.
        prefill_chunk: tokens of a row per forward call (None: 1024, or 256 on a CPU), bounding memory on long
            contexts and documents.
        max_state_bytes: bound on the states kept for forking. Over it the least recently used go and are
            computed again when they are needed.
        rolling_window: None carries the state through a whole document. A number scores documents in
            windows of that many tokens which overlap by half, every token with at least half a window of
            context: the fairer protocol for softmax models run past the length they were trained on.
        seed: of sampled generation.
        tokenizer: a folder with a ``tokenizer.json``; None is the one of ``pretrained``, or bytes.

    Raises:
        CheckpointError: ``pretrained`` is not a checkpoint.
        ConfigError: the model has no end-of-document token, so an empty context cannot be scored; an argument is
            out of its range, or another wrapper's that means nothing here (``tokenizer``, ``max_length``, ...).
    """

    def __init__(
        self,
        pretrained: str | Path | LanguageModel | Any,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        max_gen_toks: int = 256,
        prefill_chunk: int | None = None,
        max_state_bytes: int = 2**30,
        rolling_window: int | None = None,
        seed: int = 0,
        tokenizer: str | Path | None = None,
        **others: Any,
    ) -> None:
        super().__init__()
        refuse("LinrecLM", others, LinrecLM.__init__)
        self.batch_size = batch_rows(batch_size, max_batch_size)
        self.max_gen_toks = at_least("max_gen_toks", max_gen_toks, 1)
        self.prefill_chunk = None if prefill_chunk is None else at_least("prefill_chunk", prefill_chunk, 1)
        self.max_state_bytes = at_least("max_state_bytes", max_state_bytes, 0)
        self.rolling_window = (
            None if rolling_window is None else at_least("rolling_window", rolling_window, 2)
        )
        self.seed = at_least("seed", seed, 0)
        wanted, device = precision(dtype), place(device)
        if isinstance(pretrained, str | Path):
            self.model: Readable = load_any(pretrained, device, wanted)
        elif hasattr(pretrained, "hidden"):
            self.model = pretrained.to(device=device, dtype=wanted).eval()
        else:
            self.model = stateful(pretrained, device, wanted)
        self._device = next(self.model.parameters()).device
        self.tokenizer, self._start = _tokenizer(pretrained, tokenizer, self.model.config)
        self.tokens_processed = 0
        self.peak_state_bytes = 0

    # ---------------------------------------------------------------- text and tokens

    @property
    def eot_token_id(self) -> int:
        """The token that begins a document, or else the one that ends it; it stands in for an empty context."""
        return self._start

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, as lm-eval's request cache keys on it."""
        return self.tokenizer.name

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Ids of the string; ``left_truncate_len`` keeps the last of them.

        With special tokens as the tokenizer's own rules have them, unless ``add_special_tokens`` is False or the string
        itself begins with the token that begins documents. ConfigError for other arguments.
        """
        refuse("tok_encode", kwargs, LinrecLM.tok_encode)
        if add_special_tokens and isinstance(self.tokenizer, ByteTokenizer):
            raise ConfigError("tok_encode: bytes have no special tokens to add; got add_special_tokens=True")
        special = add_special_tokens is not False
        ids = self.tokenizer.encode(string, special=special)
        if add_special_tokens is None and ids[:2] == [self._start, self._start]:
            ids = self.tokenizer.encode(string)
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def tok_decode(self, tokens: Iterable[int]) -> str:
        """Text of the tokens; special tokens are dropped, invalid UTF-8 is replaced."""
        return self.tokenizer.decode(tokens)

    def apply_chat_template(self, *_: Any, **__: Any) -> str:
        """ConfigError: there is none."""
        raise ConfigError("apply_chat_template: linrec's models are evaluated without a chat template")

    def chat_template(self, chat_template: bool | str | None = False) -> str | None:
        """None, or ConfigError where one is asked for."""
        return self.apply_chat_template() if chat_template else None

    # ---------------------------------------------------------------- the three request kinds

    def _loglikelihood_tokens(
        self, requests: list[Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[Score]:
        """(log-probability, is greedy) of every continuation."""
        refuse("_loglikelihood_tokens", kwargs, LinrecLM._loglikelihood_tokens)
        pairs = [(context or [self._start], continuation) for _, context, continuation in requests]
        scores = self._score(pairs, disable_tqdm)
        for (texts, _, _), score in zip(requests, scores, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, score)
        return scores

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole document after the end-of-document token."""
        owners: list[int] = []
        pairs: list[tuple[list[int], list[int]]] = []
        for i, request in enumerate(requests):
            windows = self._windows(self.tok_encode(request.args[0]))
            owners += [i] * len(windows)
            pairs += windows
        totals = [0.0] * len(requests)
        for i, (score, _) in zip(owners, self._score(pairs, disable_tqdm), strict=True):
            totals[i] += score
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    @torch.inference_mode()
    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """Continue each context until a stop string, the end token or as many tokens as the task allows.

        ConfigError for a generation option that is neither honoured nor without effect, before any text is written.
        """
        texts = [""] * len(requests)
        prompts = [self.tok_encode(context) or [self._start] for context, _ in map(_pair, requests)]
        by_options: dict[GenerationOptions, list[int]] = {}
        for i, request in enumerate(requests):
            options = GenerationOptions.of(request.args[1], self.max_gen_toks)
            options.room(len(prompts[i]))
            by_options.setdefault(options, []).append(i)
        for options, members in by_options.items():
            mine = [prompts[i] for i in members]
            keys = [self.seed * 1_000_003 + i for i in members]
            rooms = [options.room(len(prompt)) for prompt in mine]

            def done(number: int, text: str, members: list[int] = members) -> None:
                texts[members[number]] = text
                self.cache_hook.add_partial("generate_until", requests[members[number]].args, text)

            streams = PromptStreams(
                self.model, self.tokenizer, mine, keys, rooms, options, self.batch_size, done
            )
            self._walk(streams.trie, streams, disable_tqdm, "Generating", streams.wanted)
            streams.finish()
            self.tokens_processed += streams.tokens_processed
        return texts

    # ---------------------------------------------------------------- walking

    @torch.inference_mode()
    def _score(self, pairs: list[tuple[list[int], list[int]]], disable_tqdm: bool) -> list[Score]:
        scorer = Scorer(pairs, self.model)
        self._walk(scorer.trie, scorer, disable_tqdm, "Scoring")
        return scorer.scores()

    def _walk(
        self,
        trie: PrefixTrie,
        visitor: Visitor,
        disable_tqdm: bool,
        what: str,
        wanted: Iterable[Node] = (),
    ) -> None:
        walk = PrefixWalk(self.model, self.batch_size, self.prefill_chunk, self.max_state_bytes)
        with tqdm(total=trie.tokens, disable=disable_tqdm, desc=what, unit="token") as bar:
            for count in walk.run(trie, visitor, set(wanted)):
                bar.update(count)
        self.tokens_processed += walk.tokens_processed
        self.peak_state_bytes = max(self.peak_state_bytes, walk.kept.peak_bytes)

    def _windows(self, document: list[int]) -> list[tuple[list[int], list[int]]]:
        """A document as (context, continuation): whole, or in windows that overlap by half."""
        width = self.rolling_window
        if width is None or len(document) <= width:
            return [([self._start], document)]
        inputs = [self._start, *document]
        windows = [(inputs[:1], document[:width])]
        start, scored = 0, width
        while scored < len(document):
            start += width // 2
            windows.append((inputs[start : scored + 1], document[scored : start + width]))
            scored = start + width
        return windows


def _tokenizer(pretrained: Any, folder: str | Path | None, config: Any) -> tuple[Tokenizer, int]:
    """The tokenizer of the model, or of another folder, and the token that a text without a context is read after."""
    own = pretrained if isinstance(pretrained, str | Path) else None
    found = load_tokenizer(own, config) if folder is None else file_tokenizer(folder, config)
    if found.start is None:
        raise ConfigError("scoring text expects bos_token_id or eos_token_id, and the model names neither")
    return found, found.start


def _pair(request: Any) -> tuple[str, dict[str, Any]]:
    """Context and options of a request. ConfigError for one that holds more: pictures, or sound."""
    if len(request.args) != 2:
        raise ConfigError(
            "generate_until: a model of text expects a context and its options, got a request with "
            f"{len(request.args)} parts; tasks with pictures or sound cannot be run"
        )
    return request.args
