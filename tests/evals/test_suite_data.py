"""The suites' examples, answered again from their tokens alone by plain Python."""

from collections import Counter
from itertools import pairwise

import pytest
import torch

from linrec.evals.suites.induction import Induction
from linrec.evals.suites.mad import Compression, Memorization, problems
from linrec.evals.suites.mad_recall import FuzzyRecall, Recall
from linrec.evals.suites.modular import Modular
from linrec.evals.suites.mqar import Mqar
from linrec.evals.suites.parity import Parity
from linrec.evals.suites.runner import SUITES, make_suite
from linrec.evals.suites.selective_copy import SelectiveCopy
from linrec.evals.suites.suite import IGNORED
from linrec.evals.suites.trainer import _stream, batches


def rows(source, count=40, seed=0):
    tokens, labels = source.draw(count, torch.Generator().manual_seed(seed))
    assert tokens.dtype == labels.dtype == torch.int64 and tokens.shape == labels.shape == (
        count,
        tokens.shape[1],
    )
    assert tokens.min() >= 0 and max(tokens.max(), labels.max()) < source.vocab_size
    return list(zip(tokens.tolist(), labels.tolist(), strict=True))


def asked(labels):
    return {i: y for i, y in enumerate(labels) if y != IGNORED}


@pytest.mark.parametrize("name", SUITES)
def test_training_and_test_examples_are_drawn_apart(name):
    for problem in make_suite(name, "small").problems[:3]:
        source = next(iter(problem.tests.values()))
        test = source.draw(4, _stream(f"test {next(iter(problem.tests))}", 0))
        same = source.draw(4, _stream(f"test {next(iter(problem.tests))}", 0))
        assert torch.equal(test.tokens, same.tokens) and torch.equal(test.labels, same.labels)
        for other in (
            _stream("train", 0),
            _stream("check", 0),
            _stream(f"test {next(iter(problem.tests))}", 1),
        ):
            assert not torch.equal(test.tokens, source.draw(4, other).tokens)


def test_a_fixed_training_set_is_gone_through_once_an_epoch():
    problem = problems(2)[5]
    drawn = batches(problem, 6400, _stream("train", 0))
    epochs = [Counter(tuple(r) for _ in range(2) for r in next(drawn).tokens.tolist()) for _ in range(2)]
    assert epochs[0] == epochs[1] and epochs[0].total() == 12_800


def test_mqar_asks_early_places_more_often_and_fills_the_rest_at_random():
    source = Mqar(256, 16)
    places: Counter[int] = Counter()
    filler: list[int] = []
    for tokens, labels in rows(source, 300):
        answers = asked(labels)
        assert len(answers) == 16 and all(i >= 32 and i % 2 == 0 for i in answers)
        assert all(0 < k < 4096 for k in tokens[:32:2]) and all(v >= 4096 for v in tokens[1:32:2])
        places.update((i - 32) // 2 for i in answers)
        filler += [t for i, t in enumerate(tokens) if i >= 32 and i not in answers]
    # 112 places; drawing 16 in turn by weights near 1 / s leaves the first ones out rarely and the last often.
    assert places[0] > 290 and sum(places[i] for i in range(56, 112)) < 0.4 * 16 * 300
    assert min(filler) < 50 and max(filler) > 8140 and 4000 < sum(filler) / len(filler) < 4200


@pytest.mark.parametrize("source", [Modular(3, 40), Modular(40, 256), Modular(40, 40, 7)])
def test_modular_expressions_are_evaluated_by_python(source):
    lengths: set[int] = set()
    operators: Counter[str] = Counter()
    symbols = [*map(str, range(source.modulus)), "+", "-", "*"]
    for tokens, labels in rows(source, 200):
        ((end, answer),) = asked(labels).items()
        text = "".join(symbols[t] for t in tokens[:end])
        assert tokens[end] == source.vocab_size - 1 and source.shortest <= end + 1 <= source.length
        assert answer == eval(text, {}) % source.modulus
        assert all(c.isdigit() for c in text[::2]) and not any(c.isdigit() for c in text[1::2])
        operators.update(text[1::2])
        lengths.add(end + 1)
    assert set(operators) == set("+-*") and max(operators.values()) < 1.3 * min(operators.values())
    assert lengths <= set(range(4, source.length + 1, 2)) and (len(lengths) > 15 or source.shortest == 40)


def test_parity_lengths_cover_the_range():
    ends = Counter(next(iter(asked(labels))) + 1 for _, labels in rows(Parity(3, 40), 1000))
    assert set(ends) == set(range(3, 41))
    assert all(next(iter(asked(labels))) == 255 for _, labels in rows(Parity(256, 256)))


def test_induction_asks_for_the_token_behind_the_mark():
    places = set()
    for tokens, labels in rows(Induction(32), 500):
        assert tokens.count(15) == 2 and tokens[-1] == 15
        assert asked(labels) == {31: tokens[tokens.index(15) + 1]}
        places.add(tokens.index(15))
    assert places == set(range(30))  # the answer is never the second mark itself


@pytest.mark.parametrize(
    "source", [SelectiveCopy(24, 6), SelectiveCopy(239, 16, slots=True), SelectiveCopy(4096)]
)
def test_selective_copying_asks_for_the_data_in_order(source):
    first = set()
    for tokens, labels in rows(source, 60):
        context, rest = tokens[: source.context], tokens[source.context :]
        data = [t for t in context if t != 14]
        assert len(data) == source.items and max(data) < 14
        assert rest == [15] + [14] * source.items
        assert asked(labels) == {source.context + 1 + i: t for i, t in enumerate(data)}
        assert not source.slots or context[-1] != 14  # noise stands before data only
        first.add(context.index(data[0]))
    assert len(first) > 8
    assert len(tokens) == source.length


def test_memorization_answers_by_one_map_for_ever():
    known: dict = {}
    for seed in range(
        3
    ):  # training, checks and tests are seeds of the generator; the map does not depend on it
        for tokens, labels in rows(Memorization(), 200, seed):
            assert tokens[1::2] == [255] * 16 and labels[::2] == [IGNORED] * 16
            for key, value in zip(tokens[::2], labels[1::2], strict=True):
                assert key < 127 <= value < 255 and known.setdefault(key, value) == value
    assert len(known) == 127 == len(set(known.values()))


def test_compression_asks_for_the_whole_input_from_its_end():
    seen = set()
    for tokens, labels in rows(Compression()):
        assert labels == tokens and len(tokens) == 32 and tokens[-1] == 15 and 15 not in tokens[:-1]
        seen.update(tokens)
    assert seen == set(range(16)) and Compression.readout == "last"


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"vocab_size": 32, "noise_vocab": 16, "noise_share": 0.2}], ids=["plain", "noisy"]
)
def test_recall_is_answered_by_a_dictionary(options, dense):
    source, noise, pairs = Recall(128, dense=dense, **options), 0, 0
    for tokens, labels in rows(source, 100):
        assert len(tokens) == 127
        memory: dict = {}
        expected: dict = {}
        for i in range(0, 126, 2):
            key, value = tokens[i], tokens[i + 1]
            pairs += 1
            if key >= 16:
                assert value >= 16  # a pair of noise, from its own vocabulary
                noise += 1
                continue
            assert key < 8 <= value < 16 and memory.get(key, value) == value
            if key in memory:
                expected[i] = value
            memory[key] = value
        expected[126] = memory[tokens[126]]  # the last key has been there; its value is the label
        if dense:
            assert labels[:-1] == tokens[1:] and labels[126] == expected[126]
        else:
            assert asked(labels) == expected
    assert noise == 0 if not options else 0.17 < noise / pairs < 0.22


@pytest.mark.parametrize("training", [False, True])
def test_fuzzy_recall_is_decoded_from_its_tokens(training):
    source = FuzzyRecall(training=training)
    sizes: Counter[int] = Counter()
    for tokens, labels in rows(source, 150):
        assert len(tokens) == 128
        whole = [*tokens, labels[-1]]
        start = next(i for i, t in enumerate(whole) if t != 15)
        assert 15 not in whole[start:] and start <= 1 + 2 * 3  # padding in front only, less than one pair
        expected, pairs = decode(whole, start)
        key, value = pairs[-1]
        assert (key, value) in pairs[:-1]  # the probe has been there
        for key, value in pairs:
            assert 1 <= len(value) <= 3 and len(set(value)) == len(value) and len(set(key)) == len(key)
            assert len(key) <= 3 if training else len(key) == 3
            sizes[len(key)] += 1
        if training:
            assert labels == whole[1:]
        else:
            assert asked(labels) == expected
    assert set(sizes) == ({1, 2, 3} if training else {3})


def decode(whole, start):
    """Questions by position and the pairs: keys are runs of tokens below 7, values runs of 7 to 14."""
    bounds = [start, *(i for i in range(start + 1, len(whole)) if whole[i] < 7 <= whole[i - 1]), len(whole)]
    memory: dict = {}
    expected: dict = {}
    pairs: list = []
    for a, b in pairwise(bounds):
        key = tuple(t for t in whole[a:b] if t < 7)
        value = tuple(whole[a + len(key) : b])
        assert min(value) >= 7 and memory.setdefault(key, value) == value
        if key in (k for k, _ in pairs):
            expected.update((a + len(key) - 1 + i, t) for i, t in enumerate(value))
        pairs.append((key, value))
    return expected, pairs


def test_mad_has_the_published_sizes():
    found = {p.name: p for p in problems()}
    assert all(p.train_rows == (12_800,) and p.test_rows == 1280 for p in found.values()) and len(found) == 6
    sizes = {name: (p.tests["test"].length, p.vocab_size) for name, p in found.items()}
    assert sizes == {
        "in-context recall": (128, 16),
        "noisy recall": (128, 32),
        "fuzzy recall": (128, 16),
        "selective copying": (256, 16),
        "compression": (32, 16),
        "memorization": (32, 256),
    }
