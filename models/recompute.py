"""Activation checkpointing of one block: its activations are computed again in the backward pass, not kept."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from linrec.models.language_model import BlockCall
from linrec.state import State, map_tensors, named_tensors


def recomputed(
    checkpoint: Callable[..., Any],
    block: nn.Module,
    x: Tensor,
    state: State,
    cu_seqlens: Tensor | None,
    attention_mask: Tensor | None,
) -> tuple[Tensor, State]:
    """``block(x, state, cu_seqlens, attention_mask)``, x ``[B, T, d_model]``, through ``checkpoint``
    (``torch.utils.checkpoint.checkpoint`` with its options).

    Its reentrant kind sees only tensors that are arguments or results themselves, and runs backward only where
    one of them asks for a gradient; so states go in and come out as single tensors, and x always asks.
    """
    structure: list[State] = []

    def run(x: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
        y, new_state = block(x, _filled(state, leaves), cu_seqlens, attention_mask)
        structure[:] = [map_tensors(lambda t: t.new_empty(0), new_state)]
        return (y, *_leaves(new_state))

    y, *leaves = checkpoint(run, x if x.requires_grad else x.detach().requires_grad_(), *_leaves(state))
    return y, _filled(structure[0], leaves)


def _leaves(state: State) -> list[Tensor]:
    return [tensor for _, tensor in named_tensors(state)]


def _filled(state: State, leaves: list[Tensor] | tuple[Tensor, ...]) -> State:
    following = iter(leaves)
    return map_tensors(lambda _: next(following), state)


class Recomputing:
    """``gradient_checkpointing_enable`` of transformers' models; stands before their classes among the bases."""

    gradient_checkpointing = False
    _recomputed_every = 1
    _gradient_checkpointing_func: Callable[..., Any]
    training: bool

    def _block_call(self) -> BlockCall | None:
        """How blocks are called: None is as they are, otherwise some are computed again in the backward pass."""
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return None
        numbers = itertools.count()

        def call(block: nn.Module, *arguments: Any) -> tuple[Tensor, Any]:
            if next(numbers) % self._recomputed_every:
                return block(*arguments)
            return recomputed(self._gradient_checkpointing_func, block, *arguments)

        return call

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: dict[str, Any] | None = None,
        every_n_layers: int = 1,
        **kwargs: Any,
    ) -> None:
        """Keep no activations inside a block in training, and compute them again in the backward pass.

        ``gradient_checkpointing_kwargs`` go to ``torch.utils.checkpoint.checkpoint``; with ``every_n_layers`` one block
        of as many is treated so.
        """
        self._recomputed_every = every_n_layers
        with warnings.catch_warnings():  # transformers is about to rename the method
            warnings.simplefilter("ignore", FutureWarning)
            super().gradient_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)  # type: ignore[misc]

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations again."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            super().gradient_checkpointing_disable()  # type: ignore[misc]

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether activations are computed again."""
        return self.gradient_checkpointing
