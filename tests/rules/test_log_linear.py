"""Log-linear attention: levels, their weights, and rows that stand at different places."""

import pytest
import torch

from linrec import rules
from linrec.engines.programs.fenwick import LevelState
from tests.rules.identities import FORMS, close, inputs_of
from tests.rules.loops import LOOPS

SCALE = 8**-0.5


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("levels", [2, 4, 9])
def test_equal_level_weights_give_the_rule_below(form, levels):
    x = inputs_of(rules.log_linear_gated_delta, L=levels)
    x["lam"] = torch.ones_like(x["lam"])
    gated = {n: x[n] for n in ("q", "k", "v", "g", "beta")}
    out = rules.log_linear_gated_delta.form(form)(**x)
    want = rules.gated_delta_net(**gated)
    close(out.o, want.o)
    close(out.state.memory.sum(1), want.state)
    del x["beta"], gated["beta"]
    close(rules.log_linear_attention.form(form)(**x).o, rules.gla(**gated).o)


@pytest.mark.parametrize("chunk", [1, 16, 64])
@pytest.mark.parametrize("levels", [1, 3, 9])
@pytest.mark.parametrize("name", ["log_linear_attention", "log_linear_gated_delta"])
def test_rows_at_different_places_merge_their_levels_by_themselves(name, levels, chunk):
    """Row 0 goes on after 3 tokens, row 1 after 24: what the next token sees at which level differs."""
    rule = rules.get_rule(name)
    x = inputs_of(rule, T=70, L=levels)
    alone = []
    for row, before in enumerate((3, 24)):
        mine = {n: t[row : row + 1] for n, t in x.items()}
        state = rule.recurrent(**{n: t[:, :before].flip(1) for n, t in mine.items()}).state
        alone.append((state, LOOPS[name](**mine, state=state)))
    state = LevelState(*(torch.cat(parts) for parts in zip(*(state for state, _ in alone), strict=True)))
    o, last = rule.chunkwise(**x, state=state, chunk_size=chunk)
    for row, (_, (want, after)) in enumerate(alone):
        close(o[row : row + 1], want)
        close(last.memory[row : row + 1], after[0])
        assert last.seen[row] == (3, 24)[row] + 70


def test_level_weights_belong_to_the_query_and_its_buckets():
    """From the article's definition: bit b of t set and j in [t_b, t_b + 2^b), t_b = t with bits b .. 0 cleared."""
    x = inputs_of(rules.log_linear_attention, T=37, B=1, H=1, HV=1)
    weight = torch.zeros(37, 37, dtype=torch.float64)
    for t in range(37):
        weight[t, t] = x["lam"][0, t, 0, 0]
        for b in range(6):
            if t >> b & 1:
                start = (t >> (b + 1)) << (b + 1)
                weight[t, start : start + 2**b] = x["lam"][0, t, 0, 1 + b]
    total = x["g"][0, :, 0].cumsum(0)
    decay = (total[:, None] - total).masked_fill(torch.ones(37, 37).triu(1).bool(), -torch.inf).exp()
    q, k, v = (x[n][0, :, 0] for n in ("q", "k", "v"))
    want = (q @ k.T * SCALE * decay * weight) @ v
    for form in FORMS:
        close(rules.log_linear_attention.form(form)(**x).o[0, :, 0], want)
