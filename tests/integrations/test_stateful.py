"""Models of transformers with a state that is a value: forked, stacked with others, streamed, evaluated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from linrec.errors import CheckpointError
from linrec.integrations.transformers.stateful import StatefulModel
from linrec.state import map_tensors, named_tensors, select_rows, stack_rows
from linrec.stream import Session
from tests.integrations.families import FAMILIES, small_model, spread

OTHERS = {
    "rwkv",
    "xlstm",
    "recurrent_gemma",
    "minimax",
    "glm5_next",
    "qwen4_exp",
}  # their state lies elsewhere
KNOWN = [family for family in FAMILIES if family not in OTHERS]
LENGTHS = (5, 37, 1, 20)


def texts(more: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randint(3, 97, (length + more,), generator=generator) for length in LENGTHS]


def made(family: str) -> Any:
    """In double precision, but for what transformers itself computes in single."""
    if family != "windows":
        model: Any = small_model(family)
        model.config._experts_implementation = "eager"  # grouped products know no float64
        return model.double()
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = MistralForCausalLM(MistralConfig(vocab_size=97, num_key_value_heads=2, sliding_window=6, **sizes))
    spread(model)
    return model.double().eval()


@torch.no_grad()
@pytest.mark.parametrize("family", [*KNOWN, "windows"])
def test_rows_of_all_lengths_side_by_side_are_each_alone(family: str) -> None:
    rows = texts(more=9)
    reference = made(family)
    right = [reference(input_ids=row[None], use_cache=False).logits[0] for row in rows]
    model = StatefulModel(made(family))
    states, got = [], []
    for row, length in zip(rows, LENGTHS, strict=True):
        h, state = model.hidden(row[None, :length])
        states.append(state)
        got.append([model.logits(h)[0]])
    held = map_tensors(torch.clone, states[1])
    state = stack_rows(states)
    mask = torch.arange(6) < torch.tensor([6, 2, 4, 5])[:, None]  # rows that end early, padding behind
    tokens = torch.stack([row[length : length + 6] for row, length in zip(rows, LENGTHS, strict=True)])
    h, state = model.hidden(tokens.where(mask, 0), state, attention_mask=mask)
    for n, real in enumerate(mask.sum(1).tolist()):
        got[n].append(model.logits(h[n, :real]))
    order = torch.tensor([2, 0, 3, 1])
    state = select_rows(state, order)
    for step in range(3):
        tokens = torch.stack([rows[n][LENGTHS[n] + int(mask[n].sum()) + step] for n in order])[:, None]
        logits, state = model.step(tokens, state)
        for place, n in enumerate(order.tolist()):
            got[n].append(logits[place])
    alone = int(mask.sum(1).argmin())  # goes on by itself, from a state as wide as the others' were
    state = select_rows(state, order.tolist().index(alone) * torch.ones(1, dtype=torch.long))
    seen = LENGTHS[alone] + int(mask[alone].sum()) + 3
    h, state = model.hidden(rows[alone][None, seen : seen + 3], state)
    got[alone].append(model.logits(h)[0])
    for pieces, whole in zip(got, right, strict=True):
        found = torch.cat(pieces)
        torch.testing.assert_close(found, whole[: len(found)], rtol=2e-6, atol=2e-6)
    for (_, x), (_, y) in zip(named_tensors(held), named_tensors(states[1]), strict=True):
        assert torch.equal(x, y)  # nothing was written over what is held


@torch.no_grad()
@pytest.mark.parametrize("family", ["mamba2", "qwen3_5", "falcon_h1"])
def test_a_session_streams_as_generate_does(family: str) -> None:
    prompt = texts(0)[1]
    reference: Any = small_model(family)
    want = reference.generate(prompt[None], max_new_tokens=12, do_sample=False)[0, len(prompt) :]
    session = Session(StatefulModel(small_model(family)))
    session.feed(prompt)
    fork = session.fork()
    assert list(session.stream(max_tokens=12, temperature=0)) == want.tolist()
    assert list(fork.stream(max_tokens=12, temperature=0)) == want.tolist()


@pytest.mark.parametrize("family", sorted(OTHERS))
def test_a_state_that_lies_elsewhere_is_refused_by_name(family: str) -> None:
    with pytest.raises(CheckpointError, match=r"its state lies in|expected a model that takes"):
        StatefulModel(small_model(family))
