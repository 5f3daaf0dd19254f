"""Session files: every layer's state comes back, and a file that lies is refused by name whatever it holds."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from linrec import models, session_file
from linrec.errors import SessionError
from linrec.layers import LAYERS
from linrec.session_file import read_session, write_session
from linrec.state import named_tensors
from linrec.stream import Session

CPU = torch.device("cpu")


def build(layer: str = "gated_delta_net", dtype: torch.dtype = torch.float32) -> models.LanguageModel:
    torch.manual_seed(0)
    config = models.Config(vocab_size=11, d_model=16, num_heads=2, pattern=(layer,))
    return models.LanguageModel(config).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_state_of_every_layer(layer: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = build(layer, dtype)
    for length in (0, 1, 5):
        with torch.no_grad():
            output = model(torch.arange(length)[None], model.init_state(1))
        logits = output.logits[0, -1] if length else None
        rng = torch.Generator().manual_seed(length).get_state()
        write_session(tmp_path / "s", "model", output.state, logits, rng)
        saved = read_session(tmp_path / "s", "model", model.init_state(1), CPU)
        before, after = dict(named_tensors(output.state)), dict(named_tensors(saved.state))
        assert before.keys() == after.keys() and type(saved.state) is type(output.state)
        assert all(torch.equal(before[name], after[name]) for name in before)
        assert torch.equal(saved.rng, rng)
        assert (logits is None) == (saved.logits is None)
        assert logits is None or torch.equal(torch.as_tensor(saved.logits), logits)


Tensors = dict[str, Tensor]
LIES: dict[str, Callable[[Tensors, dict[str, Any]], Any]] = {
    "no tree": lambda t, m: m.pop("tree"),
    "no JSON": lambda t, m: m.update(tree="{"),
    "deep": lambda t, m: m.update(tree="[" * 10**5),
    "deep children": lambda t, m: m.update(tree='{"type":"ModelState","children":[' * 900 + "]}" * 900),
    "a number": lambda t, m: m.update(tree="3"),
    "null": lambda t, m: m.update(tree="null"),
    "a tensor for the tree": lambda t, m: m.update(tree='"tensor"'),
    "other type": lambda t, m: m.update(tree=m["tree"].replace("HeadsState", "Session")),
    "no children": lambda t, m: m.update(tree='{"type": "ModelState"}'),
    "children no list": lambda t, m: m.update(tree='{"type": "ModelState", "children": 3}'),
    "a value for a tensor": lambda t, m: m.update(tree=m["tree"].replace('"tensor"', '{"value": 3}')),
    "tensor missing": lambda t, m: t.pop("state.layers.0.memory"),
    "tensor too many": lambda t, m: t.update({"state.layers.7": torch.zeros(1)}),
    "other shape": lambda t, m: t.update({"state.layers.0.memory": torch.zeros(1, 2, 8, 9)}),
    "other rank": lambda t, m: t.update({"state.layers.0.memory": torch.zeros(1)}),
    "other dtype": lambda t, m: t.update({"state.layers.0.seen": torch.zeros(1)}),
    "no rng": lambda t, m: t.pop("rng"),
    "short rng": lambda t, m: t.update(rng=torch.zeros(3, dtype=torch.uint8)),
    "float rng": lambda t, m: t.update(rng=torch.zeros(5056)),
    "logits of two rows": lambda t, m: t.update(logits=torch.zeros(2, 11)),
    "integer logits": lambda t, m: t.update(logits=torch.zeros(11, dtype=torch.int64)),
}


@pytest.mark.parametrize("kind", LIES)
def test_a_file_with_a_right_checksum_can_still_lie(kind: str, tmp_path: Path) -> None:
    model, path = build(), tmp_path / "s"
    Session(model).feed([1, 2, 3]).save(path)
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        metadata = dict(file.metadata())
    LIES[kind](tensors, metadata)
    metadata["sha256"] = session_file._digest(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    session = Session(model).feed([4])
    before = session.next_logits.clone()
    with pytest.raises(SessionError, match=str(path)):
        session.restore(path)
    assert torch.equal(session.next_logits, before)


def test_cut_or_changed_anywhere_it_is_refused(tmp_path: Path) -> None:
    model, path, draw = build(), tmp_path / "s", random.Random(0)
    Session(model).feed([1, 2, 3]).save(path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    cuts = [whole[:n] for n in (*range(0, header, 7), *range(header, len(whole), 997))]
    for number in range(300):
        changed = bytearray(whole)
        changed[draw.randrange(header if number % 2 else len(whole))] ^= 1 << draw.randrange(8)
        cuts.append(bytes(changed))
    for content in cuts:
        path.write_bytes(content)
        with pytest.raises(SessionError, match=str(path)):
            Session(model).restore(path)


@pytest.mark.parametrize("kind", ["folder", "loop", "nothing", "empty"])
def test_no_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "s"
    {
        "folder": path.mkdir,
        "loop": lambda: path.symlink_to(path),
        "nothing": lambda: None,
        "empty": path.touch,
    }[kind]()
    with pytest.raises(SessionError, match=str(path)):
        Session(build()).restore(path)
