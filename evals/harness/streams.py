"""Generation from forked prompt states: streams side by side, each with its own end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from lm_eval.models.utils import postprocess_generated_text
from torch import Tensor

from linrec.evals.harness.any_model import Readable
from linrec.evals.harness.generation_options import GenerationOptions
from linrec.evals.harness.prefix_trie import Node, PrefixTrie
from linrec.models.tokenizer import Tokenizer
from linrec.sampling import restrict
from linrec.state import State, select_rows, stack_rows


class PromptStreams:
    """Visits the prompts of a trie and streams on from each; ``finish`` runs those that are still waiting.

    Args:
        tokenizer: gives the text of what is written; its ``ends`` end a stream.
        prompts: token lists, none empty. Equal ones are read once and forked.
        keys: seed the streams, each on its own, so that a sample depends on no neighbour.
        rooms: tokens that each may write at most.
        done: called with the number of a prompt and its text.
    """

    def __init__(
        self,
        model: Readable,
        tokenizer: Tokenizer,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[int],
        rooms: Sequence[int],
        options: GenerationOptions,
        batch_size: int,
        done: Callable[[int, str], None],
    ) -> None:
        self._model, self._keys, self._rooms, self._options = model, keys, rooms, options
        self._batch_size, self._done, self._tokenizer = batch_size, done, tokenizer
        self.trie = PrefixTrie(prompts)
        self.wanted: dict[Node, list[int]] = {}
        for i, node in enumerate(self.trie.ends):
            assert node is not None, "a prompt needs a token"
            self.wanted.setdefault(node, []).append(i)
        self._waiting: list[tuple[int, Tensor, State]] = []
        self.tokens_processed = 0

    def read(self, nodes: Sequence[Node], offset: int, h: Tensor) -> None:
        """Nothing: a stream needs the prompt's end only, and no other ``h [N, T, D]``."""

    def arrived(self, node: Node, h: Tensor, state: State) -> None:
        """From ``h [D]``, see :class:`~linrec.evals.harness.prefix_walk.Visitor`."""
        h = h.clone()  # a view would keep the whole batch alive
        for i in self.wanted[node]:
            self._waiting.append((i, h, state))
            if len(self._waiting) == self._batch_size:
                self.finish()

    def finish(self) -> None:
        """Stream from the prompts that have arrived."""
        if not self._waiting:
            return
        numbers, h, states = (list(column) for column in zip(*self._waiting, strict=True))
        self._waiting = []
        picker = Picker(self._options, [self._keys[i] for i in numbers])
        rooms = [self._rooms[i] for i in numbers]
        streams = self._stream(self._model.logits(torch.stack(h)), stack_rows(states), picker, rooms)
        for i, stream in zip(numbers, streams, strict=True):
            text = self._tokenizer.decode(stream.tokens)
            self._done(i, postprocess_generated_text(text, self._options.stops, think_end_token=None))

    def _stream(self, logits: Tensor, state: State, pick: Picker, rooms: Sequence[int]) -> list[Stream]:
        """What follows each row of ``logits [N, V]`` and ``state``; a row that ends leaves the batch."""
        streams = [Stream(self._tokenizer, self._options.stops) for _ in logits]
        alive = list(range(len(streams)))
        for count in range(1, max(rooms) + 1):
            tokens = pick(logits, alive)
            keep = [
                n for n, t in enumerate(tokens) if streams[alive[n]].extend(t) and count < rooms[alive[n]]
            ]
            if not keep:
                break
            if len(keep) < len(alive):
                state = select_rows(state, torch.tensor(keep, device=logits.device))
            alive = [alive[n] for n in keep]
            step = torch.tensor([[tokens[n]] for n in keep], device=logits.device)
            out = self._model.step(step, state)
            logits, state = out.logits[:, -1], out.state
            self.tokens_processed += len(keep)
        return streams


class Stream:
    """Tokens of one stream, and the end of their text, in which stop strings are looked for."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str]) -> None:
        self.tokens: list[int] = []
        self._ends, self._stops = tokenizer.ends, stops
        self._decoder, self._tail = tokenizer.decoder(), ""
        self._longest = max(map(len, stops), default=0)

    def extend(self, token: int) -> bool:
        """Append a token; False once the stream has ended: at an end of a document, which is left out, or a stop."""
        if token in self._ends:
            return False
        self.tokens.append(token)
        piece = self._decoder.step(token)
        text = self._tail + piece
        self._tail = text[max(len(text) - self._longest, 0) :]
        return not any(stop in text for stop in self._stops)


class Picker:
    """Greedy or sampled next tokens; every stream draws from a generator of its own."""

    def __init__(self, options: GenerationOptions, seeds: Sequence[int]) -> None:
        self._options = options
        self._generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, logits: Tensor, streams: Sequence[int]) -> list[int]:
        """The next token of each row of ``logits [n, V]``, which belong to these streams."""
        temperature, top_k, top_p = self._options.temperature, self._options.top_k, self._options.top_p
        if temperature == 0.0:
            return logits.argmax(-1).tolist()
        chances = [restrict(row, top_k, top_p).softmax(-1) for row in logits.float().cpu() / temperature]
        return [
            int(torch.multinomial(chances[n], 1, generator=self._generators[s]))
            for n, s in enumerate(streams)
        ]
