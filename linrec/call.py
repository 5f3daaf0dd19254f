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
