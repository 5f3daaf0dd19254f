"""A call: what is asked for beside the arguments, and what of it an engine gets to see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypedDict

from torch import Tensor

from linrec.errors import BackendError, ShapeError, UnknownNameError
from linrec.packing import check_cu_seqlens
from linrec.state import State

FORMS = ("parallel", "chunkwise", "recurrent", "step")
BACKENDS = ("auto", "torch", "triton")


class Options(TypedDict, total=False):
    """What every form of every rule takes beside its arguments, by name; rules end in ``**options: Unpack[Options]``.

    ``state`` continues a sequence (None: the empty state), ``scale`` replaces the default factor on q, ``cu_seqlens``
    ``[S + 1]`` bounds S packed sequences, ``chunk_size`` are the tokens of a chunk, ``backend`` is ``auto``, ``torch``
    or ``triton``, or the name of an algorithm of the rule's engine.

    .. code-block:: pycon

        >>> import torch
        >>> from einops import rearrange
        >>> from linrec import rules
        >>> from linrec.testing import example_inputs
        >>> inputs = example_inputs(rules.gla, T=8)  # q, k, v and g
        >>> {name: tuple(x.shape) for name, x in inputs.items()}
        {'q': (2, 8, 2, 8), 'k': (2, 8, 2, 8), 'v': (2, 8, 4, 6), 'g': (2, 8, 4, 8)}
        >>> o, last = rules.gla(**inputs)
        >>> o.shape, last.shape
        (torch.Size([2, 8, 4, 6]), torch.Size([2, 4, 8, 6]))

        # state: five tokens, and then the rest from where they ended
        >>> first, rest = ({n: x[:, part] for n, x in inputs.items()} for part in (slice(5), slice(5, None)))
        >>> half = rules.gla(**first)
        >>> torch.allclose(rules.gla(**rest, state=half.state).o, o[:, 5:])
        True

        # scale: gla's own is K^-1/2
        >>> torch.allclose(rules.gla(**inputs, scale=8**-0.5).o, o)
        True

        # cu_seqlens: the two sequences one behind the other, with a row of the state for each
        >>> packed = {n: rearrange(x, "B T ... -> 1 (B T) ...") for n, x in inputs.items()}
        >>> both = rules.gla(**packed, cu_seqlens=torch.tensor([0, 8, 16]))
        >>> torch.allclose(rearrange(both.o, "1 (B T) ... -> B T ...", B=2), o), both.state.shape
        (True, torch.Size([2, 4, 8, 6]))

        # chunk_size: how it is computed, not what
        >>> torch.allclose(rules.gla(**inputs, chunk_size=3).o, o)
        True

        # backend: what is asked for by name runs, or says why it cannot
        >>> rules.gla(**inputs, backend="tritn")
        Traceback (most recent call last):
        linrec.errors.UnknownNameError: gla: unknown backend 'tritn'; one of auto, torch, triton, ...
    """

    state: State
    scale: float | None
    cu_seqlens: Tensor | None
    chunk_size: int | None
    backend: str


class Call(NamedTuple):
    """How an engine is asked to run: the form, and what does not depend on the mechanism."""

    form: str
    scale: float
    bounds: list[int] | None
    chunk_size: int | None
    backend: str


class Choice(NamedTuple):
    """The algorithm that computes a call, and why it is this one."""

    algorithm: str
    reason: str


def made_call(
    form: str,
    options: Mapping[str, Any],
    dims: Mapping[str, int],
    own_scale: Callable[[Mapping[str, int]], float],
    algorithms: Iterable[str],
    who: str,
) -> Call:
    """The call of this form with these options, on arguments of these dimensions; the engine's ``algorithms``.

    Raises ShapeError, DtypeError or UnknownNameError for options that are none or do not fit.
    """
    cu_seqlens, chunk, scale = (options.get(n) for n in ("cu_seqlens", "chunk_size", "scale"))
    bounds = None if cu_seqlens is None else check_cu_seqlens(cu_seqlens, dims["B"], dims["T"], who)
    if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
        raise ShapeError(f"{who}: chunk_size must be a positive integer, got {chunk!r}")
    backend = options.get("backend") or "auto"
    known = dict.fromkeys((*BACKENDS, *algorithms))
    if backend not in known:
        raise UnknownNameError(f"{who}: unknown backend {backend!r}; one of {', '.join(known)}")
    return Call(form, own_scale(dims) if scale is None else float(scale), bounds, chunk, backend)


def check_backend(call: Call, who: str, reason: str) -> None:
    """BackendError when Triton is asked for explicitly and ``reason`` says why it cannot run."""
    if call.backend == "triton":
        raise BackendError(f"{who}: backend='triton' cannot run: {reason}")
