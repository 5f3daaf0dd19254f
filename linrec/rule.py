"""What a rule is: the legend of dimensions, the arguments, the call, and the registry.

Legend (nothing else in the kit redefines these):

====  =========================================================================================
B     batch; with ``cu_seqlens`` a batch of one that holds S segments
T     time
H     heads of q and k (for softmax attention: of k and v)
HV    heads of v, a multiple of H: value head h reads q/k head ``h // (HV // H)``
HQ    heads of q in softmax attention, a multiple of H, interleaved the same way
K, V  key width, value width;  P, N: Mamba's names for V and K;  G: Mamba's name for H
D     channels of the elementwise rules;  N there: states a channel
C     chunk length
====  =========================================================================================

Layout is time first: q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, scalar gates ``[B, T, HV]``, channel
gates ``[B, T, HV, K]``, matrix states ``[B, HV, K, V]``. ``g`` is always a *natural-log decay*, ``g <= 0``, and -inf a
full reset, through which no derivative runs; ``beta`` a write strength. B and T may be zero, nothing else. What is not
a number in one token spoils its row from the token's chunk on, but no earlier chunk, no other row and no other packed
segment. States and accumulators are float32, or float64 for float64 inputs; the
output has the dtype of v. ``scale`` multiplies q, or the state as it is read where there is no q.

Patterns of einops name axes by these letters as they stand, ``"B T (H K) -> B T H K"``, and by a letter or a word that
is said beside them where the legend has none.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Generic, NamedTuple, ParamSpec, Protocol, Self, TypedDict
from typing import Unpack as Unpack

import torch
from torch import Tensor

from linrec import definition, operators
from linrec.arguments import Arg, check_arguments, drop_time, gain_time, signature
from linrec.donation import donation as donation
from linrec.errors import BackendError, FormError, ShapeError, UnknownNameError
from linrec.packing import check_cu_seqlens
from linrec.state import State

FORMS = ("parallel", "chunkwise", "recurrent", "step")
BACKENDS = ("auto", "torch", "triton")
REMEMBERED = 64  # sets of shapes and options that a rule has bound

# Arguments that several rules share; mind that softmax attention groups its heads the other way round.
Query = Annotated[Tensor, Arg("B T H K")]
Key = Annotated[Tensor, Arg("B T H K")]
UnitKey = Annotated[Tensor, Arg("B T H K", draw="unit")]
Value = Annotated[Tensor, Arg("B T HV V")]
Decay = Annotated[Tensor, Arg("B T HV", draw="log_decay")]
ChannelDecay = Annotated[Tensor, Arg("B T HV K", draw="log_decay")]
AnyDecay = Annotated[Tensor, Arg("B T HV K", "B T HV", draw="log_decay")]
HeadDecay = Annotated[Tensor, Arg("HV", "B T HV", draw="log_decay")]
Strength = Annotated[Tensor, Arg("B T HV", draw="strength")]
Channels = Annotated[Tensor, Arg("B T D")]
ChannelLogDecay = Annotated[Tensor, Arg("B T D", draw="log_decay")]
ChannelGate = Annotated[Tensor, Arg("B T D", draw="strength")]
ChannelSkip = Annotated[Tensor, Arg("D")]
ChannelStrength = Annotated[Tensor, Arg("B T HV K", draw="strength")]


class Options(TypedDict, total=False):
    """What every form of every rule takes beside its arguments, by name; rules end in ``**options: Unpack[Options]``.

    ``state`` continues a sequence (None: the empty state), ``scale`` replaces the default factor on q, ``cu_seqlens``
    ``[S + 1]`` bounds S packed sequences, ``chunk_size`` are the tokens of a chunk, ``backend`` is ``auto``, ``torch``
    or ``triton``.
    """

    state: State
    scale: float | None
    cu_seqlens: Tensor | None
    chunk_size: int | None
    backend: str


class Output(NamedTuple):
    """What every form of every rule returns."""

    o: Tensor
    state: State


@dataclass
class Terms:
    """A rule's inputs lowered to an engine; each engine defines its own fields. Nobody changes one; that they could
    be changed makes them faster to make, and decoding makes one a token.

    ``finish`` maps the engine's output (in accumulator precision) to the rule's; pointwise in time.
    """

    finish: Callable[[Tensor], Tensor] | None = field(default=None, kw_only=True)

    def over_time(self) -> dict[str, Tensor]:
        """The tensors with a time axis, ``[B, T, ...]``, by field name."""
        raise NotImplementedError

    @property
    def leading(self) -> Tensor:
        """The first of them."""
        return next(iter(self.over_time().values()))

    @property
    def accumulator(self) -> torch.dtype:
        """The dtype of the state and of all sums: at least float32."""
        return torch.promote_types(self.leading.dtype, torch.float32)

    def with_tensors(self, tensors: Mapping[str, Tensor]) -> Self:
        """The same terms with these fields replaced."""
        return replace(self, **tensors)  # type: ignore[arg-type]

    def segments(self, call: Call) -> int:
        """Rows of the state: the batch, or the number of packed segments."""
        if call.bounds is not None:
            return len(call.bounds) - 1
        return self.leading.shape[0]


class Call(NamedTuple):
    """How an engine is asked to run: the form, and what does not depend on the mechanism."""

    form: str
    scale: float
    bounds: list[int] | None
    chunk_size: int | None
    backend: str


class _Known(NamedTuple):
    """What calls of one form, with arguments of the same shapes and dtypes and the same options, have in common."""

    call: Call
    dtype: torch.dtype
    had_time: bool
    casts: list[tuple[str, torch.dtype]]


class Engine(Protocol):
    """One recurrence, in every form."""

    name: str

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype: ...

    def auto_backend(self, device: str) -> str: ...

    def init_state(self, terms: Any, segments: int) -> State: ...

    def run(self, terms: Any, state: State, call: Call, who: str) -> tuple[Tensor, State]: ...


RULES: dict[str, Rule] = {}
P = ParamSpec("P")


class Rule(Generic[P]):
    """A mechanism: one equation, its forms, its state. Made by :func:`rule`; call it like a function.

    P are the arguments and options of a call, as the function that :func:`rule` decorates declares them.
    """

    def __init__(
        self,
        lower: Callable[P, Terms],
        engine: Engine,
        cite: str | None = None,
        equation: str | None = None,
        **facts: Any,
    ):
        self.name = lower.__name__
        self.lower: Callable[..., Terms] = lower
        self.engine = engine
        self.cite = definition.citation(lower.__doc__, self.name) if cite is None else cite
        self.equation = definition.equation(lower.__doc__, self.name) if equation is None else equation
        self.state_floats: str = facts["state"]
        self.default_scale: str = facts["scale"]
        self.reasons: Mapping[str, str] = facts["missing"]
        self.as_is: frozenset[str] = frozenset(facts.get("as_is", ()))
        self.grows = "T" in self.state_floats.split("*")
        hints = typing.get_type_hints(lower, include_extras=True)
        self.arguments: dict[str, Arg] = {
            name: meta for name, hint in hints.items() for meta in _annotations(hint) if isinstance(meta, Arg)
        }
        known = {dim for arg in self.arguments.values() for shape in arg.shapes for dim in shape}
        self._own_scale = definition.size_formula(self.default_scale, known, self.name)
        self._lower_signature = _without_options_in(inspect.signature(lower))
        parameters = self._lower_signature.parameters.values()
        plain = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
        self._positions = tuple(p.name for p in parameters) if plain else ()
        self._needed = {p.name for p in parameters if p.default is p.empty}
        self._known: dict[Hashable, _Known] = {}
        self.__signature__ = _with_options(self._lower_signature)
        self.__doc__ = lower.__doc__
        self.__name__ = self.name
        self.__module__ = lower.__module__

    def __repr__(self) -> str:
        return f"<rule {self.name}({', '.join(self._lower_signature.parameters)})>"

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Output:
        """Chunkwise, or recurrent when T = 1; where one of them is missing, the other."""
        return self._run(None, args, kwargs)

    def parallel(self, *args: P.args, **kwargs: P.kwargs) -> Output:
        """The whole sequence as one masked matrix product, whose work and memory grow with T squared (elementwise
        rules whose decays do not depend on time: one FFT convolution; with many states a channel: one scan)."""
        return self._run("parallel", args, kwargs)

    def chunkwise(self, *args: P.args, **kwargs: P.kwargs) -> Output:
        """Matrix products inside chunks of ``chunk_size`` tokens, a state between them."""
        return self._run("chunkwise", args, kwargs)

    def recurrent(self, *args: P.args, **kwargs: P.kwargs) -> Output:
        """The definition, token by token."""
        return self._run("recurrent", args, kwargs)

    def step(self, *args: P.args, **kwargs: P.kwargs) -> Output:
        """One token, given with or without its time axis of length one; the output has the same layout."""
        return self._run("step", args, kwargs)

    def form(self, name: str) -> Callable[P, Output]:
        """The form of this name; UnknownNameError if there is no such form in the kit."""
        if name not in FORMS:
            raise UnknownNameError(f"{self.name}: unknown form {name!r}; forms are {', '.join(FORMS)}")
        return getattr(self, name)

    def default_form(self, length: int) -> str:
        """The form that a plain call on ``length`` tokens takes."""
        wanted = ("recurrent", "chunkwise") if length == 1 else ("chunkwise", "recurrent")
        return next(form for form in (*wanted, "parallel") if form not in self.reasons)

    def init_state(self, *args: P.args, **kwargs: P.kwargs) -> State:
        """The empty state from which a call with these arguments starts."""
        terms, known = self._bind("recurrent", args, kwargs)
        return self.engine.init_state(terms, terms.segments(known.call))

    def empty_state(self, values: dict[str, Any], rows: int | None = None) -> State:
        """The empty state of a call with these arguments, of so many rows or those of the batch."""
        terms, known = self._bind("recurrent", (), dict(values))
        return self.engine.init_state(terms, terms.segments(known.call) if rows is None else rows)

    def _run(self, form: str | None, args: tuple, kwargs: dict[str, Any]) -> Output:
        if torch.compiler.is_compiling() and self._is_node(form, args, kwargs):
            options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
            return Output(*operators.in_graph(self, form, self._named(args, kwargs), options))
        return self._run_eagerly(form, args, kwargs)

    def run_eagerly(self, form: str | None, values: dict[str, Any]) -> Output:
        """The call, not as a node of a graph, on arguments and options by name; no state is given away."""
        with donation(False):
            return self._run_eagerly(form, (), values)

    def _is_node(self, form: str | None, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether a call becomes one node of a traced graph: several tokens, whose states do not grow.

        One token is traced through: it is a few calls, which compilers can fuse. Triton's kernels are nodes themselves.
        """
        packed = kwargs.get("cu_seqlens") is not None
        if self.grows or (kwargs.get("backend") == "triton" and not packed):
            return False
        values = {
            n: x for n, x in self._named(args, _without_options(kwargs)).items() if isinstance(x, Tensor)
        }
        if packed or getattr(self.engine, "reads_values", False):
            return True
        on_gpu = any(x.is_cuda for x in values.values())
        return not on_gpu and operators.length_of(self.arguments, values) != 1

    def _run_eagerly(self, form: str | None, args: tuple, kwargs: dict[str, Any]) -> Output:
        state = kwargs.pop("state", None)
        terms, known = self._bind(form, args, kwargs)
        device = terms.leading.device.type
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            with torch.autocast(device, enabled=False):  # engines choose their own dtypes
                o, state = self._compute(terms, state, known.call)
        else:
            o, state = self._compute(terms, state, known.call)
        if o.dtype is not known.dtype:
            o = o.to(known.dtype)
        return Output(o if known.had_time else drop_time(o), state)

    def _compute(self, terms: Any, state: State, call: Call) -> tuple[Tensor, State]:
        o, state = self.engine.run(terms, state, call, self.name)
        return (o if terms.finish is None else terms.finish(o)), state

    def _bind(self, form: str | None, args: tuple, kwargs: dict[str, Any]) -> tuple[Any, _Known]:
        options = {name: kwargs.pop(name) for name in _OPTIONS if name in kwargs}
        values = self._named(args, kwargs)
        key = self._key(form, options, values)
        known = None if key is None else self._known.get(key)
        if known is not None:
            if not known.had_time:
                gain_time(self.arguments, values, self.name)
            return self.lower(**_cast(values, known.casts)), known
        had_time = gain_time(self.arguments, values, self.name) if form == "step" else True
        dims = check_arguments(self.arguments, values, self.name, validating())
        dtype = next(values[name].dtype for name, arg in self.arguments.items() if arg.carries_tokens)
        casts = self._casts(values, dtype)
        terms = self.lower(**_cast(values, casts))
        known = _Known(self._call(form, options, dims), dtype, had_time, casts)
        if key is not None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[key] = known
        return terms, known

    def _named(self, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
        values = dict(zip(self._positions, args, strict=False))
        if not kwargs and 0 < len(args) == len(self._positions):
            return values
        values.update(kwargs)
        complete = len(values) == len(args) + len(kwargs) and self._needed <= values.keys()
        if complete and values.keys() <= self._lower_signature.parameters.keys():
            return values
        try:  # says what is wrong with them
            return dict(self._lower_signature.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise TypeError(f"{self.name}({', '.join(self.__signature__.parameters)}): {error}") from None

    def _key(self, form: str | None, options: dict[str, Any], values: dict[str, Any]) -> Hashable | None:
        """All that binding looks at: what was found for one token holds for the next. None: look again."""
        if validating() or torch.compiler.is_compiling() or options.get("cu_seqlens") is not None:
            return None
        scale, chunk = options.get("scale"), options.get("chunk_size")
        if (scale is None or type(scale) is float) and (chunk is None or type(chunk) is int):
            shapes = signature(self.arguments, values)
            return None if shapes is None else (form, scale, chunk, options.get("backend"), shapes)
        return None

    def _casts(self, values: dict[str, Any], dtype: torch.dtype) -> list[tuple[str, torch.dtype]]:
        """Lowering happens in accumulator precision: rounding beta * v to bfloat16 first would cost accuracy.

        What lowering hands on untouched keeps its dtype: copies of whole sequences in float32 would cost memory.
        """
        compute = self.engine.compute_dtype(dtype)
        wide = torch.promote_types(compute, torch.float32)  # gates and parameters never fall below float32
        casts = []
        for name, arg in self.arguments.items():
            x, wanted = values.get(name), compute if arg.carries_tokens else wide
            if x is not None and name not in self.as_is and x.dtype != wanted:
                casts.append((name, wanted))
        return casts

    def _call(self, form: str | None, options: dict[str, Any], dims: dict[str, int]) -> Call:
        length, batch = dims["T"], dims["B"]
        if form == "step" and (length != 1 or options.get("cu_seqlens") is not None):
            raise ShapeError(f"{self.name}.step takes one token of each sequence (T = 1), got T = {length}")
        form = form or self.default_form(length)
        if form in self.reasons:
            raise FormError(f"{self.name} has no {form} form: {self.reasons[form]}")
        cu_seqlens, chunk, scale = (options.get(n) for n in ("cu_seqlens", "chunk_size", "scale"))
        bounds = None if cu_seqlens is None else check_cu_seqlens(cu_seqlens, batch, length, self.name)
        if chunk is not None and (not isinstance(chunk, int) or chunk < 1):
            raise ShapeError(f"{self.name}: chunk_size must be a positive integer, got {chunk!r}")
        backend = options.get("backend") or "auto"
        if backend not in BACKENDS:
            raise UnknownNameError(f"{self.name}: unknown backend {backend!r}; one of {', '.join(BACKENDS)}")
        return Call(form, self._own_scale(dims) if scale is None else float(scale), bounds, chunk, backend)


def rule(
    *,
    engine: Engine,
    cite: str | None = None,
    equation: str | None = None,
    state: str = "K*V",
    scale: str = "K^-1/2",
    missing: Mapping[str, str] | None = None,
    as_is: Sequence[str] = (),
) -> Callable[[Callable[P, Terms]], Rule[P]]:
    """Make a rule of a function that lowers the mechanism's arguments to an engine's terms.

    The function's docstring says who published the rule, in brackets in its first paragraph, and the equation, in its
    first ``.. code-block:: text``; ``cite`` and ``equation`` say so for a function without a docstring.
    ``state`` is the number of state floats a head (a channel where there are no heads), as an expression in
    the legend's names; ``scale`` the default factor on q, likewise: ``"1"``, ``"K^-1/2"``, ``"(K+R)^-1/2"``. Its
    dimensions are those of the arguments, so a rule whose lowering widens q says what its scale is. ``missing`` gives,
    for each form that does not exist, the mathematical reason. ``as_is`` names the arguments that lowering hands on
    without computing with them: the engine reads these in their own dtype, all others in accumulator precision.

    Raises DefinitionError where citation or equation is missing, or ``scale`` is no formula in the legend's names.
    """

    def register(lower: Callable[P, Terms]) -> Rule[P]:
        made = Rule(
            lower, engine, cite, equation, state=state, scale=scale, missing=missing or {}, as_is=as_is
        )
        RULES[made.name] = operators.TARGETS[made.name] = made
        return made

    return register


def get_rule(name: str) -> Rule:
    """The rule of this name; UnknownNameError with the nearest names otherwise."""
    if name not in RULES:
        near = difflib.get_close_matches(name, RULES) or sorted(RULES)
        raise UnknownNameError(f"unknown rule {name!r}; did you mean {', '.join(near)}?")
    return RULES[name]


_validation: ContextVar[bool] = ContextVar("linrec.validation", default=False)


def validating() -> bool:
    """Whether argument *values* (not only shapes and dtypes) are checked."""
    return not torch.compiler.is_compiling() and _validation.get()


@contextlib.contextmanager
def validation(on: bool = True) -> Iterator[None]:
    """Within the block, check values too: RangeError for g > 0, a non-finite number, dt <= 0 and so on.

    Off by default, because reading values stops a GPU's queue and cannot be traced or vmapped. Holds for the calling
    thread and asyncio task.
    """
    before = _validation.get()
    _validation.set(on)
    try:
        yield
    finally:
        _validation.set(before)


_OPTIONS = {
    name: inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default="auto" if name == "backend" else None
    )
    for name in Options.__annotations__
}


def _with_options(signature: inspect.Signature) -> inspect.Signature:
    parameters = [*signature.parameters.values(), *_OPTIONS.values()]
    return signature.replace(parameters=parameters, return_annotation=Output)


def _without_options_in(signature: inspect.Signature) -> inspect.Signature:
    """Of the arguments alone: without the ``**options`` that a rule declares for type checkers."""
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    return signature.replace(parameters=own)


def _without_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: x for name, x in kwargs.items() if name not in _OPTIONS}


def _cast(values: dict[str, Any], casts: list[tuple[str, torch.dtype]]) -> dict[str, Any]:
    for name, dtype in casts:
        values[name] = values[name].to(dtype)
    return values


def _annotations(hint: Any) -> tuple[Any, ...]:
    """Metadata of ``Annotated[...]``, also inside ``Annotated[...] | None``."""
    if hasattr(hint, "__metadata__"):
        return hint.__metadata__
    return tuple(m for part in typing.get_args(hint) for m in _annotations(part))


def check_backend(call: Call, who: str, reason: str) -> None:
    """BackendError when Triton is asked for explicitly and ``reason`` says why it cannot run."""
    if call.backend == "triton":
        raise BackendError(f"{who}: backend='triton' cannot run: {reason}")
