"""The suites' data, by definitions of their own; a run is kept, resumed and drawn."""

import itertools
import json
from dataclasses import replace

import pytest
import torch

from linrec.errors import ConfigError, RecordError, UnknownNameError
from linrec.evals.records import fingerprint
from linrec.evals.suites.groups import GROUPS, Words, elements
from linrec.evals.suites.mqar import Mqar
from linrec.evals.suites.parity import Parity
from linrec.evals.suites.runner import SIZES, SUITES, jobs, make_suite, run_suite, with_rules
from linrec.evals.suites.suite import IGNORED

pytest.importorskip("matplotlib")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", SUITES)
def test_every_source_is_seeded_and_asks_something(name, size):
    for problem in make_suite(name, size).problems[:6]:
        source = problem.train[0]
        first, again, other = (source.draw(3, generator(seed)) for seed in (0, 0, 1))
        assert torch.equal(first.tokens, again.tokens) and torch.equal(first.labels, again.labels)
        assert not torch.equal(first.tokens, other.tokens)
        assert first.tokens.shape == first.labels.shape and first.tokens.max() < source.vocab_size
        assert (first.labels != IGNORED).any(1).all() and 0 < source.chance < 1


def test_parity_is_the_sum_of_the_bits_up_to_the_label():
    tokens, labels = Parity(3, 12).draw(50, generator())
    for row, answers in zip(tokens.tolist(), labels.tolist(), strict=True):
        (where,) = (i for i, y in enumerate(answers) if y != IGNORED)
        assert where >= 2 and answers[where] == sum(row[: where + 1]) % 2


@pytest.mark.parametrize("group", ["S3", "A4", "A5"])
def test_words_are_products_of_permutation_matrices(group):
    listed = elements(group)
    assert len(listed) == {"S3": 6, "A4": 12, "A5": 60}[group] and group in GROUPS
    matrices = [torch.eye(len(p))[list(p)] for p in listed]  # row i has its one at p[i]
    tokens, labels = Words(group, 9).draw(4, generator())
    for row, answers in zip(tokens.tolist(), labels.tolist(), strict=True):
        products = itertools.accumulate((matrices[t] for t in row), torch.matmul)
        assert all(torch.equal(product, matrices[y]) for product, y in zip(products, answers, strict=True))


def test_mqar_asks_every_key_once_for_its_value():
    source = Mqar(64, 8, 64)
    tokens, labels = source.draw(20, generator())
    for row, answers in zip(tokens.tolist(), labels.tolist(), strict=True):
        pairs = dict(zip(row[0:16:2], row[1:16:2], strict=True))
        asked = {row[i]: y for i, y in enumerate(answers) if y != IGNORED}
        assert len(pairs) == 8 and asked == pairs
        assert all(0 < k < 32 <= v < 64 for k, v in pairs.items())
    with pytest.raises(ConfigError, match="even length"):
        Mqar(63, 4)


@pytest.mark.slow
def test_a_suite_is_resumed_and_drawn(tmp_path):
    suite = with_rules(make_suite("parity", "small"), ["delta_net:allow_neg_eigval=true,conv_size=0"])
    suite = replace(suite, settings=replace(suite.settings, steps=4, batch_size=4))
    records = run_suite(suite, tmp_path, seeds=[0], progress=False)
    lines = (tmp_path / "parity.jsonl").read_text().splitlines()
    assert len(records) == len(lines) == 1 and json.loads(lines[0])["seed"] == 0
    assert (tmp_path / "parity.png").stat().st_size > 0
    assert "data:image/png;base64," in (tmp_path / "parity.html").read_text()
    run_suite(suite, tmp_path, seeds=[0, 1], progress=False)
    assert (tmp_path / "parity.jsonl").read_text().splitlines()[:1] == lines
    with pytest.raises(UnknownNameError, match="no suite"):
        make_suite("nothing", "small")


def test_records_that_lack_a_field_are_named(tmp_path):
    """Their id is that of a run, so that it is not made again."""
    suite = with_rules(make_suite("parity", "small"), ["delta_net"])
    path = tmp_path / "parity.jsonl"
    ids = [fingerprint(job.describe()) for job in jobs(suite, [0])]
    found: tuple[dict[str, object], ...] = ({}, {"candidate": 3}, {"candidate": None, "scores": []})
    for record in found:
        path.write_text("".join(json.dumps({"id": id, **record}) + "\n" for id in ids))
        with pytest.raises(RecordError, match=r"parity\.jsonl: a record does not hold what its page shows"):
            run_suite(suite, tmp_path, seeds=[0], progress=False)
