"""What the fuzz tests draw: a rule, sizes, layouts, edge values, a state; and the independent loop's answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from linrec.rule import Rule
from linrec.rules import RULES
from linrec.state import map_tensors, named_tensors
from linrec.testing import draw, example_inputs, example_state, relative_error
from tests.rules.loops import LOOPS

FORMS = ("parallel", "chunkwise", "recurrent")
TIGHT = 1e-9
NONE = 1e-12  # what rounding leaves of zero, where numbers are about one
RESETS = (-torch.inf, -1e4, -1e30, torch.finfo(torch.float32).min, -120.0, 0.0, -0.0)
STRENGTHS = (0.0, 1.0, 2.0, -1.0)
BOUNDED_AT_ZERO = ("rg_lru", "lru")  # derivatives that are infinite there, and that the rule cuts off
# Where a negative strength has no meaning: a system that is solved would not be definite.
AT_LEAST_ZERO = ("mesa_net",)
CLOSED = {
    "abc": ("z", -200.0),
    "mlstm": ("i", -200.0),
    "rwkv4": ("k", -200.0),
}  # logarithms of hardly any weight
HUGE = (("matrix", "v"), ("matrix", "x"), ("diagonal", "x"), ("diagonal", "v"))  # what the output grows with
KEYS = ("k", "a", "b", "w", "kappa", "p", "shared", "B")
names = st.sampled_from(sorted(RULES))


@dataclass(repr=False)
class Case:
    """One call: a rule, its inputs, an entry state or None, and options of its forms."""

    rule: Rule
    inputs: dict[str, Tensor]
    state: Any
    chunk_size: int | None

    def __repr__(self) -> str:
        shapes = {name: (list(x.shape), list(x.stride()), x.dtype) for name, x in self.inputs.items()}
        return f"{self.rule.name}({shapes}, state={self.state is not None}, chunk_size={self.chunk_size})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))

    @property
    def length(self) -> int:
        """T."""
        return next(x.shape[1] for name, x in self.inputs.items() if self.rule.arguments[name].carries_tokens)

    def forms(self) -> list[str]:
        """The forms that the rule has, apart from step."""
        return [form for form in FORMS if form not in self.rule.reasons]

    def run(self, form: str, inputs: dict[str, Tensor] | None = None, **options: Any) -> tuple[Tensor, Any]:
        """The form's output and state; on these inputs, from this case's state unless another is given."""
        options = {"state": self.state, "chunk_size": self.chunk_size, **options}
        return tuple(self.rule.form(form)(**(self.inputs if inputs is None else inputs), **options))

    def loop(self, inputs: dict[str, Tensor] | None = None, **options: Any) -> tuple[Tensor, Any]:
        """The loop's."""
        options = {"state": self.state, **options}
        return tuple(LOOPS[self.rule.name](**(self.inputs if inputs is None else inputs), **options))

    def part(self, start: int, stop: int) -> dict[str, Tensor]:
        """The inputs of these tokens."""
        return {n: x[:, start:stop] if self.timed(n, x) else x for n, x in self.inputs.items()}

    def timed(self, name: str, x: Tensor) -> bool:
        """Whether an input has a time axis."""
        return "T" in (self.rule.arguments[name].shape_for(x.dim()) or ())


@st.composite
def sizes(draw_: Callable, rule: Rule, **fixed: int) -> dict[str, int]:
    """The legend's dimensions, odd ones and ones among them."""
    small, heads = st.integers(1, 5), draw_(st.integers(1, 2))
    groups = draw_(st.sampled_from([1, 1, 2, 3]))
    found = {name: draw_(small) for name in ("C", "D", "E", "K", "L", "M", "N", "P", "R", "RV", "V", "W")}
    found |= {"H": heads, "G": heads, "HV": heads * groups, "HQ": heads * groups, "E": found["E"] + 1}
    found["J"] = draw_(st.integers(1, 3))
    if rule.name == "gateloop":
        found["K"] = 2 * found["J"]
    found["N"] = max(found["N"], 2 * found["J"]) if rule.name.startswith("mamba3") else found["N"]
    found |= {"B": draw_(st.integers(1, 2)), "T": draw_(st.sampled_from([0, 1, 2, 3, 7, 16, 17, 21]))}
    return found | fixed


@st.composite
def cases(
    draw_: Callable,
    rule: Rule | None = None,
    dtype: torch.dtype = torch.float64,
    edges: bool = True,
    huge: bool = True,
    **fixed: int,
) -> Case:
    """A call with T from 0 (B from 1), with edge values, in odd layouts, from an empty state or another."""
    rule = RULES[draw_(names)] if rule is None else rule
    dims = draw_(sizes(rule, **fixed))
    seed = draw_(st.integers(0, 1000))
    inputs = example_inputs(rule, seed=seed, dtype=dtype, **dims)
    for name, arg in rule.arguments.items():
        if len(arg.shapes) > 1 and draw_(st.booleans()):  # another shape that the argument may have
            generator = torch.Generator().manual_seed(seed)
            inputs[name] = draw(arg, [dims[d] for d in arg.shapes[1]], generator).to(dtype)
    if edges:
        _edge_values(draw_, rule, inputs, huge)
    state = None
    if draw_(st.booleans()):
        state = example_state(rule, inputs, seed=seed + 1)
        if draw_(st.booleans()):
            state = map_tensors(strided, state)
    chunk = draw_(st.sampled_from([None, 1, 2, 5, 16]))
    return Case(rule, {name: draw_(layouts(x)) for name, x in inputs.items()}, state, chunk)


def _edge_values(draw_: Callable, rule: Rule, inputs: dict[str, Tensor], huge: bool) -> None:
    for name, x in inputs.items():
        arg, kind = rule.arguments[name], draw_(st.integers(0, 3))
        if kind == 0 or not x.numel():
            continue
        if arg.draw in ("log_decay", "weak_decay"):
            allowed = [g for g in RESETS if g or rule.name not in BOUNDED_AT_ZERO]
            _put(draw_, x, draw_(st.sampled_from(allowed)))
        elif arg.draw == "strength":
            allowed = [s for s in STRENGTHS if s >= 0 or rule.name not in AT_LEAST_ZERO]
            _put(draw_, x, draw_(st.sampled_from(allowed)))
        elif CLOSED.get(rule.name, ("",))[0] == name:
            _put(draw_, x, CLOSED[rule.name][1])
        elif huge and (rule.engine.name, name) in HUGE:
            x.mul_(draw_(st.sampled_from([1e30, 1e-30, 1e-310])))
        elif name in KEYS and kind == 1 and "T" in arg.shapes[0]:  # equal keys, or a zero key
            x.copy_(x[:, :1].clone().expand_as(x))
        elif name in KEYS and kind == 2:
            _put(draw_, x, 0.0)


def _put(draw_: Callable, x: Tensor, value: float) -> None:
    """The value everywhere, at one number, or at one place of the second axis: a token, where there is one."""
    how = draw_(st.integers(0, 3))
    if how == 0:
        x.fill_(value)
    elif how == 1 or x.dim() < 2:
        x.view(-1)[draw_(st.integers(0, x.numel() - 1))] = value
    else:
        x[:, draw_(st.integers(0, x.shape[1] - 1))] = value


@st.composite
def layouts(draw_: Callable, x: Tensor) -> Tensor:
    """The same numbers in another layout, or the first of an axis on all of it (a stride of zero)."""
    how = draw_(st.integers(0, 5))
    if how == 0 and x.dim():
        axis = draw_(st.integers(0, x.dim() - 1))
        return x.narrow(axis, 0, 1).expand_as(x) if x.shape[axis] else x
    if how == 1:
        return strided(x)
    if how == 2 and x.dim() > 1:
        return x.transpose(0, -1).contiguous().transpose(0, -1)
    if how == 3 and x.dim() > 1:
        return x.movedim(1, 0).contiguous().movedim(0, 1)
    return x


def strided(x: Tensor) -> Tensor:
    """The same numbers, one apart from each other along the last axis and with others between."""
    if x.dim() == 0:
        return x
    return torch.stack([x, torch.full_like(x, 7)], dim=-1)[..., 0]


def differences(got: Any, want: Any) -> list[str]:
    """Where two trees of tensors differ by more than rounding (of the whole tensor), or in what is no number."""
    found = []
    for (path, a), (_, b) in zip(named_tensors(got), named_tensors(want), strict=True):
        if a.shape == b.shape and torch.equal(a.isnan(), b.isnan()):
            a, b = (x.masked_fill(x.isnan(), 0) for x in (a, b))
        if a.shape != b.shape:
            found.append(f"{path}: {list(a.shape)} for {list(b.shape)}")
        elif (
            not torch.equal(a, b) and not (a - b).norm() <= TIGHT * b.norm() + NONE
        ):  # also if it is no number
            found.append(f"{path}: {relative_error(a.detach(), b.detach()):.1e}")
    return found


def trimmed(state: Any) -> Any:
    """A cache without the slots that packing pads it with."""
    if not hasattr(state, "length"):
        return state
    used = int(state.length.max()) if state.length.numel() else 0
    columns = [getattr(state, name)[:, :used] for name in state._fields if name != "length"]
    return type(state)(*columns, state.length)


def weighed(result: tuple[Tensor, Any]) -> Tensor:
    """One number that depends on every number of an output."""
    o = result[0]
    return (o * torch.linspace(-1, 1, max(o.numel(), 1), dtype=o.dtype)[: o.numel()].view_as(o)).sum()
