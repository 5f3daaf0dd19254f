"""One language model for every pattern of layers: embeddings, (norm, mixer, norm, MLP) blocks, head."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn

from linrec.engines.numerics.products import wide_products
from linrec.errors import DeviceError, DtypeError, RangeError, ShapeError
from linrec.files import fingerprint
from linrec.layers.base import real_tokens
from linrec.layers.projection import project
from linrec.models.blocks import make_blocks, make_norm
from linrec.models.checkpoint import save_checkpoint
from linrec.models.config import Config
from linrec.models.loading import load_model
from linrec.models.scaling import capped, scaled
from linrec.models.tying import Vocabulary
from linrec.state import State, all_tensors, export_names, map_tensors, named_tensors, own_storage


class ModelState(NamedTuple):
    """The state of every layer, in order."""

    layers: tuple[State, ...]


class ModelOutput(NamedTuple):
    """``logits [B, T, vocab_size]`` and the state after the last token."""

    logits: Tensor
    state: ModelState


export_names()


BlockCall = Callable[..., tuple[Tensor, State]]


class LanguageModel(Vocabulary):
    """A causal language model; its mixing layers are named by ``config.pattern``.

    The state goes in and out explicitly: feeding a sequence in pieces, each with the state of the piece
    before, gives the logits of feeding it at once.
    """

    def __init__(self, config: Config):
        super().__init__(config.vocab_size, config.d_model)
        self.config = config
        self.blocks = make_blocks(config)
        self.norm = make_norm(config)
        self.add_head(config.tie_embeddings)
        initialise(self)

    def forward(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> ModelOutput:
        """Logits of every position. tokens ``[B, T]`` int; attention_mask ``[B, T]``, 1 = real token.

        With ``cu_seqlens [S + 1]`` the batch is one packed row and the state has S rows. Raises ShapeError,
        DtypeError, DeviceError or RangeError for tokens that are not ids of the vocabulary.

        .. code-block:: pycon

            >>> model = LanguageModel(Config(d_model=16)).eval()  # reads bytes
            >>> tokens = torch.tensor([list(b"for i in "), list(b"import os")])
            >>> output = model(tokens)
            >>> output.logits.shape
            torch.Size([2, 9, 257])

            # in pieces, with the state of the piece before
            >>> first = model(tokens[:, :4])
            >>> torch.allclose(model(tokens[:, 4:], first.state).logits, output.logits[:, 4:], atol=1e-5)
            True

            # sequences of different lengths: padding on either side, or one behind the other
            >>> mask = torch.ones(2, 9)
            >>> mask[1, 7:] = 0
            >>> padded = model(tokens, attention_mask=mask).logits
            >>> packed = torch.tensor([list(b"for i in import ")])
            >>> together = model(packed, cu_seqlens=torch.tensor([0, 9, 16])).logits
            >>> torch.allclose(padded[1, :7], together[0, 9:], atol=1e-5)
            True
        """
        h, state = self.hidden(tokens, state, cu_seqlens, attention_mask)
        return ModelOutput(self.logits(h), state)

    def hidden(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
    ) -> tuple[Tensor, ModelState]:
        """What the head reads of tokens ``[B, T]``, ``[B, T, d_model]``, and the state: for callers that need few
        logits."""
        x = self.embedded(tokens)
        attention_mask = _checked_mask(attention_mask, tokens)
        return self.mixed(x, state, cu_seqlens, attention_mask)

    def embedded(self, tokens: Tensor) -> Tensor:
        """``[B, T] -> [B, T, d_model]``, what the first block reads."""
        self._check_tokens(tokens)
        return self.embed(tokens)

    def mixed(
        self,
        x: Tensor,
        state: ModelState | None = None,
        cu_seqlens: Tensor | None = None,
        attention_mask: Tensor | None = None,
        call: BlockCall | None = None,
    ) -> tuple[Tensor, ModelState]:
        """As ``hidden``, of embeddings x ``[B, T, d_model]``.

        ``call(block, x, state, cu_seqlens, attention_mask)`` is called in place of each block.
        """
        rows = x.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
        states = self._layer_states(state, rows)
        x, new_states = scaled(x, self.config.embed_scale), []
        with _products(x):
            for block, layer_state in zip(self.blocks, states, strict=True):
                arguments = (x, layer_state, cu_seqlens, attention_mask)
                x, layer_state = block(*arguments) if call is None else call(block, *arguments)
                new_states.append(layer_state)
        return self.norm(x[..., : self.config.d_model]), ModelState(tuple(new_states))

    def logits(self, h: Tensor) -> Tensor:
        """``[..., d_model] -> [..., vocab_size]``."""
        self.tie()
        with _products(h):
            logits = scaled(project(self.head, h), self.config.logit_scale)
        return capped(logits, self.config.logit_cap)

    def prefill(
        self,
        tokens: Tensor,
        state: ModelState | None = None,
        attention_mask: Tensor | None = None,
        chunk: int = 2048,
    ) -> ModelOutput:
        """Read a prompt, tokens ``[B, T]``, ``chunk`` at a time; logits ``[B, 1, vocab_size]`` of each row's last
        token.

        Activations take the memory of one chunk whatever T is. Padding may stand on either side, the last
        real token counts. Raises ShapeError for an empty prompt and for a row without a real token.
        """
        self._check_tokens(tokens)
        attention_mask = _checked_mask(attention_mask, tokens)
        _check_prompt(tokens, attention_mask, chunk)
        last: Tensor | None = None
        for start in range(0, tokens.shape[1], chunk):
            part = slice(start, start + chunk)
            mask = None if attention_mask is None else attention_mask[:, part]
            h, state = self.hidden(tokens[:, part], state, attention_mask=mask)
            last, state = _last_real(h, mask, last), map_tensors(own_storage, state)
        assert last is not None
        assert state is not None
        return ModelOutput(self.logits(last), state)

    def step(self, tokens: Tensor, state: ModelState) -> ModelOutput:
        """One token a row, tokens ``[B, 1]``: logits ``[B, 1, vocab_size]`` and the next state.

        Inside :func:`linrec.rule.donation` the next state may be written over the one that is given.
        """
        if tokens.dim() != 2 or tokens.shape[1] != 1:
            raise ShapeError(f"step: expected tokens of shape [B, 1], got {list(tokens.shape)}")
        return self.forward(tokens, state)

    def init_state(self, batch_size: int = 1) -> ModelState:
        """The empty state for ``batch_size`` rows, on the device and in the dtype of the model."""
        nothing = torch.zeros(batch_size, 0, dtype=torch.long, device=self.device)
        with torch.no_grad():
            return self.hidden(nothing)[1]

    def fingerprint(self) -> str:
        """sha256 over the configuration and every weight: equal exactly when the models are."""
        return fingerprint(self.config.to_dict(), self.state_dict())

    def save(self, folder: str | os.PathLike[str], files: Mapping[str, str | bytes] | None = None) -> None:
        """Write ``model.safetensors`` and ``config.json``, and ``files`` beside them (a tokenizer's), content by name;
        see :mod:`linrec.models.checkpoint`."""
        save_checkpoint(self, folder, files)

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LanguageModel:
        """The model of a checkpoint folder, in evaluation mode; ours, or one of :mod:`linrec.models.formats`.

        Raises CheckpointError where it is neither, or has an option that cannot be expressed.
        """
        return load_model(cls, folder, device, dtype)

    def _check_tokens(self, tokens: Tensor) -> None:
        if not isinstance(tokens, Tensor) or tokens.dtype not in (torch.int64, torch.int32):
            came = getattr(tokens, "dtype", type(tokens).__name__)
            raise DtypeError(f"tokens: expected an int64 or int32 tensor of ids, got {came}")
        if tokens.dim() != 2:
            raise ShapeError(f"tokens: expected shape [B, T], got {list(tokens.shape)}")
        if tokens.device != (device := self.device):
            raise DeviceError(f"tokens are on {tokens.device}, the model is on {device}")
        # Reading values back from a GPU stops its queue, which a prompt can afford and a single step cannot.
        affordable = tokens.device.type == "cpu" or (tokens.is_cuda and tokens.shape[1] > 1)
        if tokens.numel() and affordable and not torch.compiler.is_compiling():
            low, high = (int(t) for t in torch.aminmax(tokens))
            if low < 0 or high >= self.config.vocab_size:
                size = self.config.vocab_size
                raise RangeError(
                    f"tokens: expected ids in [0, vocab_size = {size}), got ids from {low} to {high}"
                )

    def _layer_states(self, state: ModelState | None, rows: int) -> tuple[State, ...]:
        if state is None:
            return (None,) * len(self.blocks)
        layers = getattr(state, "layers", None)
        if not isinstance(layers, tuple) or len(layers) != len(self.blocks):
            came = len(layers) if isinstance(layers, tuple) else type(state).__name__
            raise ShapeError(f"state: expected a ModelState of {len(self.blocks)} layers, got {came}")
        if all_tensors(lambda tensor: tensor.dim() > 0 and tensor.shape[0] == rows, layers):
            return layers
        for path, tensor in named_tensors(state):
            if tensor.shape[:1] != (rows,):
                raise ShapeError(
                    f"state: expected {rows} rows, as the tokens have; {path} is {list(tensor.shape)}"
                )
        return layers


def initialise(model: LanguageModel) -> None:
    """Normal weights; what writes to the residual stream is scaled by 1 / sqrt(2 * layers) (as in GPT-2).

    Parameters that a layer sets itself (decays, time steps, convolutions, biases) stay as the layer set them.
    """
    std = model.config.init_std
    residual = std / math.sqrt(2 * len(model.blocks))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding) and not (module is model.head and model.tied):
            writes = name.rsplit(".", 1)[-1] in ("down", "out_proj", "o_proj", "out")
            nn.init.normal_(module.weight, std=residual if writes else std)


def _checked_mask(mask: Tensor | None, tokens: Tensor) -> Tensor | None:
    if mask is None:
        return None
    if mask.shape != tokens.shape:
        raise ShapeError(
            f"attention_mask: expected {list(tokens.shape)}, as the tokens, got {list(mask.shape)}"
        )
    return real_tokens(mask)


def _check_prompt(tokens: Tensor, mask: Tensor | None, chunk: int) -> None:
    if chunk < 1:
        raise RangeError(f"prefill: expected chunk >= 1, got {chunk}")
    if tokens.shape[1] == 0:
        raise ShapeError(f"prefill: expected at least one token a row, got tokens {list(tokens.shape)}")
    if mask is not None and not bool(mask.bool().any(1).all()):
        empty = (~mask.bool().any(1)).nonzero().flatten().tolist()
        raise ShapeError(f"prefill: expected at least one real token a row, got none in rows {empty}")


def _products(x: Tensor) -> AbstractContextManager[None]:
    """For several tokens read at once without gradients; a training loop covers its backward pass as well."""
    tokens = x.numel() > x.shape[-1] and not torch.is_grad_enabled()
    return wide_products() if tokens and not torch.compiler.is_compiling() else nullcontext()


def _last_real(h: Tensor, mask: Tensor | None, before: Tensor | None) -> Tensor:
    """``[B, 1, D]``: the last real position of each row, or ``before`` where this chunk has none."""
    if mask is None:
        return h[:, -1:]
    positions = torch.arange(h.shape[1], device=h.device)
    real = mask.bool()
    index = torch.where(real, positions, 0).amax(1)
    last = h[torch.arange(h.shape[0], device=h.device), index].unsqueeze(1)
    return last if before is None else torch.where(real.any(1)[:, None, None], last, before)
