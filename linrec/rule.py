"""What a rule is: an equation, its forms, its state, the call; and the registry of all rules.

The letters of its shapes are those of the legend (:mod:`linrec.legend`). What is written around a rule can be imported
from here: the kinds of argument, :class:`~linrec.call.Options`, :func:`~linrec.validation.validation`,
:func:`~linrec.donation.donation`, and what engines are made of.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, NamedTuple, ParamSpec
from typing import Unpack as Unpack

import torch
from torch import Tensor

from linrec import definition, operators
from linrec.arguments import check_arguments, drop_time, gain_time
from linrec.call import BACKENDS as BACKENDS
from linrec.call import FORMS as FORMS
from linrec.call import Call as Call
from linrec.call import Choice as Choice
from linrec.call import Options as Options
from linrec.call import check_backend as check_backend
from linrec.call import made_call
from linrec.donation import donation as donation
from linrec.errors import FormError, ShapeError, UnknownNameError
from linrec.legend import AnyDecay as AnyDecay
from linrec.legend import ChannelDecay as ChannelDecay
from linrec.legend import ChannelGate as ChannelGate
from linrec.legend import ChannelLogDecay as ChannelLogDecay
from linrec.legend import Channels as Channels
from linrec.legend import ChannelSkip as ChannelSkip
from linrec.legend import ChannelStrength as ChannelStrength
from linrec.legend import Decay as Decay
from linrec.legend import HeadDecay as HeadDecay
from linrec.legend import Key as Key
from linrec.legend import Query as Query
from linrec.legend import Strength as Strength
from linrec.legend import UnitKey as UnitKey
from linrec.legend import Value as Value
from linrec.parameters import Casts, Parameters, cast, options_of
from linrec.state import State
from linrec.terms import Engine as Engine
from linrec.terms import Terms as Terms
from linrec.validation import validating as validating
from linrec.validation import validation as validation

REMEMBERED = 64  # sets of shapes and options that a rule has bound


class Output(NamedTuple):
    """What every form of every rule returns."""

    o: Tensor
    state: State


class _Known(NamedTuple):
    """What calls of one form, with arguments of the same shapes and dtypes and the same options, have in common."""

    call: Call
    dtype: torch.dtype
    had_time: bool
    casts: Casts
    autocast: str | None  # the kind of device, where torch has autocast for it


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
        self.parameters = Parameters(lower)
        self.arguments = self.parameters.tensors
        known = {dim for arg in self.arguments.values() for shape in arg.shapes for dim in shape}
        self._algorithms: Mapping[str, str | None] = getattr(engine, "algorithms", {})
        self._own_scale = definition.size_formula(self.default_scale, known, self.name)
        self._known: dict[Hashable, _Known] = {}
        self.__signature__: inspect.Signature = self.parameters.with_options(Output)
        self.__doc__ = lower.__doc__
        self.__name__ = self.name
        self.__module__ = lower.__module__

    def __repr__(self) -> str:
        return f"<rule {self.name}({', '.join(self.parameters.own.parameters)})>"

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

    def explain(self, form: str | None, /, *args: P.args, **kwargs: P.kwargs) -> Choice:
        """The algorithm that a call of this form (None: a plain call) with these arguments takes, and why.

        The call is not made. BackendError where ``backend`` asks for an algorithm that cannot run it.
        """
        state = kwargs.pop("state", None)
        terms, known = self._bind(form, args, kwargs)
        explain = getattr(self.engine, "explain", None)
        if explain is None:
            return Choice(known.call.form, self.engine.auto_backend(terms.leading.device.type))
        return explain(terms, state, known.call, self.name)

    def init_state(self, *args: P.args, **kwargs: P.kwargs) -> State:
        """The empty state from which a call with these arguments starts."""
        terms, known = self._bind("recurrent", args, kwargs)
        return self.engine.init_state(terms, terms.segments(known.call))

    def empty_state(self, values: dict[str, Any], rows: int | None = None) -> State:
        """The empty state of a call with these arguments, of so many rows or those of the batch."""
        terms, known = self._bind("recurrent", (), dict(values))
        return self.engine.init_state(terms, terms.segments(known.call) if rows is None else rows)

    def _run(self, form: str | None, args: tuple, kwargs: dict[str, Any]) -> Output:
        if not torch.compiler.is_compiling():
            return self._run_eagerly(form, args, kwargs)
        options = options_of(kwargs)
        values = self.parameters.named(args, kwargs)
        if operators.is_node(self, values, options):
            return Output(*operators.in_graph(self, form, values, options))
        return self._run_eagerly(form, (), values | options)

    def run_eagerly(self, form: str | None, values: dict[str, Any]) -> Output:
        """The call, not as a node of a graph, on arguments and options by name; no state is given away."""
        with donation(False):
            return self._run_eagerly(form, (), values)

    def _run_eagerly(self, form: str | None, args: tuple, kwargs: dict[str, Any]) -> Output:
        state = kwargs.pop("state", None)
        terms, known = self._bind(form, args, kwargs)
        if known.autocast is not None and torch.is_autocast_enabled(known.autocast):
            with torch.autocast(known.autocast, enabled=False):  # engines choose their own dtypes
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
        options = options_of(kwargs)
        values = self.parameters.named(args, kwargs)
        key = self.parameters.key(form, options, values)
        known = None if key is None else self._known.get(key)
        if known is not None:
            if not known.had_time:
                gain_time(self.arguments, values, self.name)
            return self.lower(**cast(values, known.casts)), known
        had_time = gain_time(self.arguments, values, self.name) if form == "step" else True
        dims = check_arguments(self.arguments, values, self.name, validating())
        dtype = self.parameters.token_dtype(values)
        casts = self.parameters.casts(values, self.engine.compute_dtype(dtype), self.as_is)
        terms = self.lower(**cast(values, casts))
        device = terms.leading.device.type
        autocast = device if torch.amp.is_autocast_available(device) else None
        known = _Known(self._call(form, options, dims), dtype, had_time, casts, autocast)
        if key is not None:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[key] = known
        return terms, known

    def _call(self, form: str | None, options: dict[str, Any], dims: dict[str, int]) -> Call:
        length = dims["T"]
        if form == "step" and (length != 1 or options.get("cu_seqlens") is not None):
            raise ShapeError(f"{self.name}.step takes one token of each sequence (T = 1), got T = {length}")
        form = form or self._algorithms.get(options.get("backend") or "auto") or self.default_form(length)
        if form in self.reasons:
            raise FormError(f"{self.name} has no {form} form: {self.reasons[form]}")
        return made_call(form, options, dims, self._own_scale, self._algorithms, self.name)


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
