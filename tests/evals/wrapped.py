"""What the tests of the lm-eval model share: small models, one that recites, and scores from full passes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from linrec.evals.harness.lm_eval_model import LinrecLM
from linrec.evals.small import byte_config
from linrec.models.language_model import LanguageModel

PATTERNS = {
    "recurrent": ("gated_delta_net",),
    "hybrid": ("gated_delta_net", "softmax_attention"),
    "mixed": ("mamba2", "gla"),
}
TEXT = "def f(x):\n    return x + 1  # é, 中文\n"


def instances(*arguments: tuple[Any, ...]) -> list[SimpleNamespace]:
    return [SimpleNamespace(args=a) for a in arguments]


@torch.no_grad()
def plain(model: LanguageModel, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    tokens = torch.tensor([context + continuation])
    logits = model(tokens).logits[0].double()
    total, greedy = 0.0, True
    for j, token in enumerate(continuation):
        row = logits[len(context) + j - 1]
        total += float(row[token] - torch.logsumexp(row, 0))
        greedy &= int(row.argmax()) == token
    return total, greedy


def greedy_text(model: LanguageModel, context: list[int], count: int) -> list[int]:
    tokens = list(context)
    with torch.no_grad():
        for _ in range(count):
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    return tokens[len(context) :]


def generate(model: LanguageModel, *requests: tuple[str, dict[str, Any]], **arguments: Any) -> list[str]:
    return LinrecLM(model, **arguments).generate_until(instances(*requests), disable_tqdm=True)


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
