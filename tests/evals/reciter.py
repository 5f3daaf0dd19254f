"""A model that recites one text, whatever it is given, and requests as lm-eval makes them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from linrec.evals.small import byte_config


def instances(*arguments: tuple[Any, ...]) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=a) for a in arguments]


class Reciter:
    """A model that continues with fixed bytes, whatever it read; its state is the place in them."""

    def __init__(self, text: bytes) -> None:
        self.text, self.steps = text, 0
        self.config = byte_config(("gla",))

    def eval(self) -> Reciter:
        return self

    def to(self, **kwargs: Any) -> Reciter:
        return self

    def parameters(self) -> Any:
        return iter([torch.zeros(1)])

    def hidden(self, tokens: torch.Tensor, state: Any, attention_mask: Any = None) -> Any:
        return torch.zeros(*tokens.shape, 1), (torch.zeros(len(tokens), dtype=torch.long),)

    def logits(self, h: torch.Tensor) -> torch.Tensor:
        following = torch.tensor([*self.text, 256])[h[..., 0].long()]
        return 10.0 * torch.eye(257)[following]

    def step(self, tokens: torch.Tensor, state: Any) -> Any:
        self.steps += 1
        place = state[0] + 1
        return SimpleNamespace(logits=self.logits(place[:, None, None]), state=(place,))
