"""MAD's in-context recall: plain, noisy, and fuzzy with keys and values of several tokens
(Poli et al. 2024, arXiv:2403.17844)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from linrec.errors import ConfigError
from linrec.evals.suites.suite import IGNORED, Batch, Source


@dataclass(frozen=True)
class Recall(Source):
    """``length / 2`` pairs of a uniform key and its value, which is drawn where the key first comes in the sequence.

    The value is asked for wherever a key comes again; the last key is one that came before. ``noise_share`` of the
    pairs, but one that is spared, are two tokens of a noise vocabulary instead. ``dense`` labels every next token
    instead, as in training. The last value is the label of the last key and is not read. Ids: keys, values, noise.
    """

    length: int = 128
    vocab_size: int = 16
    noise_vocab: int = 0
    noise_share: float = 0.0
    dense: bool = False

    def __post_init__(self) -> None:
        known = self.vocab_size - self.noise_vocab
        if (
            self.length % 2
            or self.length < 4
            or known < 4
            or (self.noise_share > 0) != (self.noise_vocab > 0)
        ):
            raise ConfigError(
                f"recall: expected an even length >= 4, four tokens besides noise, and noise_share > 0 "
                f"with noise_vocab > 0, got {self}"
            )

    @property
    def _keys(self) -> int:
        return (self.vocab_size - self.noise_vocab) // 2

    @property
    def chance(self) -> float:
        """One of the values."""
        return 1 / (self.vocab_size - self.noise_vocab - self._keys)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """See the class."""
        pairs, known = self.length // 2, self.vocab_size - self.noise_vocab
        keys = torch.randint(self._keys, (count, pairs), generator=generator)
        value_of = torch.randint(self._keys, known, (count, self._keys), generator=generator)
        real = self._real(count, pairs, generator)
        keys[:, -1] = _one_of(_presented(keys[:, :-1], real[:, :-1], self._keys), generator)
        values = value_of.gather(1, keys)
        again = real & _seen_before(keys, real)
        if self.noise_vocab:
            noise = torch.randint(known, self.vocab_size, (2, count, pairs), generator=generator)
            keys, values = torch.where(real, keys, noise[0]), torch.where(real, values, noise[1])
        tokens = torch.stack([keys, values], dim=2).flatten(1)
        if self.dense:
            return Batch(tokens[:, :-1], tokens[:, 1:])
        labels = torch.full((count, pairs, 2), IGNORED)
        labels[:, :, 0] = torch.where(again, values, IGNORED)
        return Batch(tokens[:, :-1], labels.flatten(1)[:, :-1])

    def _real(self, count: int, pairs: int, generator: torch.Generator) -> Tensor:
        """Which pairs are no noise: the last, one at random, and the others by their share."""
        real = torch.rand(count, pairs, generator=generator) >= self.noise_share
        spared = torch.randint(pairs - 1, (count, 1), generator=generator)
        real.scatter_(1, spared, True)
        real[:, -1] = True
        return real


def _presented(keys: Tensor, real: Tensor, number: int) -> Tensor:
    """``[N, number]`` bool: the keys that come in real pairs."""
    found = torch.zeros(keys.shape[0], number, dtype=torch.long)
    return found.scatter_add_(1, keys, real.long()) > 0


def _one_of(allowed: Tensor, generator: torch.Generator) -> Tensor:
    """A uniform index among the True ones of each row."""
    return torch.multinomial(allowed.double(), 1, generator=generator).squeeze(1)


def _seen_before(keys: Tensor, real: Tensor) -> Tensor:
    """``[N, n]`` bool: the same key in an earlier real pair."""
    same = (keys[:, :, None] == keys[:, None, :]) & real[:, None, :]
    return same.tril(-1).any(2)


@dataclass(frozen=True)
class FuzzyRecall(Source):
    """Recall of values of 1 .. ``motif`` tokens under keys of 1 .. ``motif`` tokens, without repeated tokens in one.

    Pairs with sizes and content drawn uniformly follow each other until less than the room of a largest pair and of
    the probe is left; the probe is a pair put in at a random place, whose key and value also end the sequence. Values
    are asked for where a key comes again. In front it is padded to ``length``. ``training``: keys of all sizes and
    every next token as a label; otherwise keys have the largest size. Ids: keys, values, padding.
    """

    length: int = 128
    vocab_size: int = 16
    motif: int = 3
    training: bool = False

    def __post_init__(self) -> None:
        if (self.vocab_size - 1) // 2 < self.motif or self.motif < 1 or self.length <= 4 * 2 * self.motif:
            raise ConfigError(
                f"fuzzy recall: expected 1 <= motif <= (vocab_size - 1) / 2 and length > 8 motif, got {self}"
            )

    @property
    def chance(self) -> float:
        """One of the tokens of values."""
        return 1 / (self.vocab_size - 1 - (self.vocab_size - 1) // 2)

    def draw(self, count: int, generator: torch.Generator) -> Batch:
        """See the class."""
        split = (self.vocab_size - 1) // 2
        key_table = _motifs(0, split, 1 if self.training else self.motif, self.motif)
        value_table = _motifs(split, self.vocab_size - 1, 1, self.motif)
        pairs = self.length // 2 + 1
        keys = key_table.draw((count, pairs), generator)
        value_of = value_table.draw((count, len(key_table.sizes)), generator)
        probe = key_table.draw((count, 1), generator)
        keys = self._with_probe(keys, probe, value_of, key_table, value_table, generator)
        return self._written(keys, value_of.gather(1, keys), probe, key_table, value_table)

    def _with_probe(
        self,
        keys: Tensor,
        probe: Tensor,
        value_of: Tensor,
        key_table: Motifs,
        value_table: Motifs,
        generator: torch.Generator,
    ) -> Tensor:
        """The probe replaces the first pair that begins at or after a random place, unless it came before it."""
        sizes = key_table.sizes[keys] + value_table.sizes[value_of.gather(1, keys)]
        starts = sizes.cumsum(1) - sizes
        probe_size = key_table.sizes[probe] + value_table.sizes[value_of.gather(1, probe)]
        # The room that pairs can use; a probe beyond it would never be put in.
        room = self.length - probe_size - 2 * self.motif
        place = (torch.rand(probe.shape, generator=generator) * room).long()
        beyond = starts >= torch.minimum(place, room - 1)
        first = beyond.long().argmax(1, keepdim=True)
        last_used = (starts < room).long().sum(1, keepdim=True) - 1
        first = torch.minimum(first, last_used)
        came = ((keys == probe) & (torch.arange(keys.shape[1]) < first)).any(1, keepdim=True)
        return keys.scatter(1, first, torch.where(came, keys.gather(1, first), probe))

    def _written(
        self, keys: Tensor, values: Tensor, probe: Tensor, key_table: Motifs, value_table: Motifs
    ) -> Batch:
        """Pairs in the used room, then the probe, as tokens; the end of every row at the same place."""
        sizes = key_table.sizes[keys] + value_table.sizes[values]
        starts = sizes.cumsum(1) - sizes
        is_probe = keys == probe
        probe_value = values.gather(1, is_probe.long().argmax(1, keepdim=True))
        room = self.length - (key_table.sizes[probe] + value_table.sizes[probe_value]) - 2 * self.motif
        used = starts < room
        again = _seen_before(keys, used) & used
        keys, values = torch.cat([keys, probe], 1), torch.cat([values, probe_value], 1)
        used = torch.cat([used, torch.ones_like(probe, dtype=torch.bool)], 1)
        again = torch.cat([again, torch.ones_like(probe, dtype=torch.bool)], 1)
        asked = again[:, :, None].expand(-1, -1, 2 * self.motif).clone()
        asked[:, :, : self.motif] = False
        text = torch.cat([key_table.tokens[keys], value_table.tokens[values]], dim=2)
        text = torch.where(used[:, :, None], text, -1).flatten(1)
        return self._aligned(text, asked.flatten(1))

    def _aligned(self, text: Tensor, asked: Tensor) -> Batch:
        """Holes (-1) out, padding in front, ``length + 1`` tokens; the label of each is the next one."""
        asked = asked & (text >= 0)  # a hole becomes padding, which is never an answer
        order = (text >= 0).long().argsort(dim=1, stable=True)
        text, asked = text.gather(1, order), asked.gather(1, order)
        text, asked = text[:, -(self.length + 1) :], asked[:, -(self.length + 1) :]
        text = torch.where(text < 0, self.vocab_size - 1, text)
        tokens, following = text[:, :-1], text[:, 1:]
        return Batch(tokens, following if self.training else torch.where(asked[:, 1:], following, IGNORED))


@dataclass(frozen=True)
class Motifs:
    """Every arrangement of tokens of some sizes: ``tokens [M, motif]`` with -1 behind the end, ``sizes [M]``."""

    tokens: Tensor
    sizes: Tensor

    def draw(self, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
        """Indices: a uniform size, then a uniform arrangement of this size."""
        counts = torch.bincount(self.sizes)
        weights = 1.0 / counts[self.sizes].double()
        flat = torch.multinomial(weights, shape[0] * shape[1], replacement=True, generator=generator)
        return flat.view(shape)


def _motifs(low: int, high: int, smallest: int, largest: int) -> Motifs:
    rows = [
        [*p, *[-1] * (largest - size)]
        for size in range(smallest, largest + 1)
        for p in itertools.permutations(range(low, high), size)
    ]
    tokens = torch.tensor(rows)
    return Motifs(tokens, (tokens >= 0).sum(1))
