"""Rules as operators of torch, for whole graphs: ``torch.ops.linrec.rule`` and its backward ``rule_backward``.

While ``torch.compile`` or ``torch.export`` traces, a call on several tokens becomes one node of the graph, whatever
the engine does with chunks, segments and values. When the graph runs, the node makes the very call that would have been
made without a graph, so its numbers are the same, and a graph holds for every length. The shapes of its results are
found by running the rule on one token without data.

The backward node makes the call again and differentiates it. Gradients are first-order; for those of gradients torch
raises NotImplementedError.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.state import State, named_tensors, replace_tensors


class Target(Protocol):
    """What the operators ask of a rule."""

    name: str
    arguments: dict[str, Arg]
    grows: bool
    engine: Any

    def run_eagerly(self, form: str | None, values: dict[str, Any]) -> tuple[Tensor, State]:
        """Output and state, by ordinary calls into torch."""

    def empty_state(self, values: dict[str, Any], rows: int | None = None) -> State:
        """The state from which a call with these arguments starts."""


class Call(NamedTuple):
    """A call as the operators' schemas can hold it. ``names`` are those of the first tensors, the others are the leaves
    of the state; ``options`` is a dictionary literal of the arguments that are no tensors."""

    rule: str
    form: str
    names: str
    options: str
    scale: float | None
    chunk_size: int | None
    backend: str


TARGETS: dict[str, Target] = {}  # by name; rules enter themselves


def in_graph(
    rule: Target, form: str | None, values: dict[str, Any], options: dict[str, Any]
) -> tuple[Tensor, State]:
    """The call as one node of the graph that is being traced."""
    tensors = {name: x for name, x in values.items() if isinstance(x, Tensor)}
    rest = ", ".join(
        f"{name!r}: {_plain(x)!r}"
        for name, x in values.items()
        if not isinstance(x, Tensor) and x is not None
    )
    state, cu_seqlens = options.get("state"), options.get("cu_seqlens")
    rows = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
    like = rule.empty_state(values, rows) if state is None else state
    leaves = [] if state is None else [x for _, x in named_tensors(state)]
    scale, chunk = options.get("scale"), options.get("chunk_size")
    call = (
        rule.name,
        form or "",
        ",".join(tensors),
        f"{{{rest}}}",
        scale,
        chunk,
        options.get("backend") or "auto",
    )
    o, *after = torch.ops.linrec.rule(*call, [*tensors.values(), *leaves], cu_seqlens)
    paths = [path for path, _ in named_tensors(like)]
    return o, replace_tensors(like, dict(zip(paths, after, strict=True)))


def is_node(rule: Target, values: dict[str, Any], options: dict[str, Any]) -> bool:
    """Whether a call becomes one node of a traced graph: several tokens, whose states do not grow.

    One token is traced through: it is a few calls, which compilers can fuse. Triton's kernels are nodes themselves.
    """
    packed = options.get("cu_seqlens") is not None
    if rule.grows or (options.get("backend") == "triton" and not packed):
        return False
    if packed or getattr(rule.engine, "reads_values", False):
        return True
    tensors = {name: x for name, x in values.items() if isinstance(x, Tensor)}
    on_gpu = any(x.is_cuda for x in tensors.values())
    return not on_gpu and length_of(rule.arguments, tensors) != 1


def length_of(arguments: dict[str, Arg], values: dict[str, Any]) -> int:
    """Tokens of a call; a step's tensors may lack the axis of time."""
    leading = next(name for name, arg in arguments.items() if arg.carries_tokens)
    place = _time_axis(arguments[leading], values[leading])
    return 1 if place is None else values[leading].shape[place]


def _plain(x: Any) -> Any:
    """A number as a constant of the graph."""
    return (
        x
        if not isinstance(x, int | float) or isinstance(x, bool)
        else int(x)
        if isinstance(x, int)
        else float(x)
    )


def _time_axis(arg: Arg, x: Tensor) -> int | None:
    shape = arg.shape_for(x.dim()) or ()
    return shape.index("T") if "T" in shape else None


@lru_cache(maxsize=256)
def _literal(options: str) -> dict[str, Any]:
    return ast.literal_eval(options)


def _values(call: Call, tensors: Sequence[Tensor]) -> dict[str, Any]:
    return {**dict(zip(call.names.split(","), tensors, strict=False)), **_literal(call.options)}


def _made(call: Call, tensors: Sequence[Tensor], cu_seqlens: Tensor | None) -> list[Tensor]:
    """The call itself: the output and the leaves of the state."""
    rule, values = TARGETS[call.rule], _values(call, tensors)
    leaves = tensors[call.names.count(",") + 1 :]
    state = None
    if leaves:
        rows = None if cu_seqlens is None else cu_seqlens.shape[0] - 1
        empty = rule.empty_state(values, rows)
        paths = [path for path, _ in named_tensors(empty)]
        state = replace_tensors(empty, dict(zip(paths, leaves, strict=True)))
    values.update(scale=call.scale, chunk_size=call.chunk_size, backend=call.backend, state=state)
    o, after = rule.run_eagerly(call.form or None, values | {"cu_seqlens": cu_seqlens})
    return [o, *(x for _, x in named_tensors(after))]


def _forward(
    rule: str, form: str, names: str, options: str, scale: float | None, chunk_size: int | None, backend: str,
    tensors: Sequence[Tensor], cu_seqlens: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    call = Call(rule, form, names, options, scale, chunk_size, backend)
    with torch.no_grad():
        return _apart(_made(call, [x.detach() for x in tensors], cu_seqlens), tensors)


def _backward(
    rule: str, form: str, names: str, options: str, scale: float | None, chunk_size: int | None, backend: str,
    tensors: Sequence[Tensor], cu_seqlens: Tensor | None, wanted: Sequence[int], gradients: Sequence[Tensor | None],
) -> list[Tensor]:  # fmt: skip
    call = Call(rule, form, names, options, scale, chunk_size, backend)
    with torch.enable_grad(), _recording():
        leaves = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(tensors)]
        asked = [leaves[i] for i in wanted]
        made = zip(_made(call, leaves, cu_seqlens), gradients, strict=True)
        pairs = [(x, dx) for x, dx in made if dx is not None and x.requires_grad]
        outputs, weights = [x for x, _ in pairs], [dx for _, dx in pairs]
        found: Sequence[Tensor | None] = [None] * len(asked)
        if outputs:
            found = torch.autograd.grad(outputs, asked, weights, allow_unused=True)
    filled = [torch.zeros_like(x) if dx is None else dx for x, dx in zip(asked, found, strict=True)]
    return _apart([x.detach() for x in filled], [x for x in (*tensors, *gradients) if x is not None])


def _recording() -> Any:
    """Operators run below autograd; inside, it sees calls again."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), excluded)


def _apart(results: Sequence[Tensor], given: Sequence[Tensor]) -> list[Tensor]:
    """Contiguous tensors, each with memory of its own: what operators have to return."""
    taken = {x.untyped_storage().data_ptr() for x in given}
    apart = []
    for x in results:
        own = x.untyped_storage().data_ptr() not in taken and x.storage_offset() == 0 and x.is_contiguous()
        apart.append(x if own else x.clone(memory_format=torch.contiguous_format))
        taken.add(x.untyped_storage().data_ptr())
    return apart


def _forward_like(
    rule: str, form: str, names: str, options: str, scale: float | None, chunk_size: int | None, backend: str,
    tensors: Sequence[Tensor], cu_seqlens: Tensor | None,
) -> list[Tensor]:  # fmt: skip
    """One token without data tells the shapes; the state's rows are those of the batch, or the segments."""
    call = Call(rule, form, names, options, scale, chunk_size, backend)
    target, values = TARGETS[rule], _values(call, tensors)
    length = length_of(target.arguments, values)
    for name, arg in target.arguments.items():
        place = None if name not in values else _time_axis(arg, values[name])
        if place is not None:
            shape = values[name].shape
            values[name] = values[name].new_empty((*shape[:place], 1, *shape[place + 1 :]))
    with torch.no_grad():
        o, state = target.run_eagerly(None, {**values, "backend": "torch"})
    rows = o.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    after = [x.new_empty((rows, *x.shape[1:])) for _, x in named_tensors(state)]
    return [o.new_empty((o.shape[0], length, *o.shape[2:])), *after]


def _backward_like(
    rule: str, form: str, names: str, options: str, scale: float | None, chunk_size: int | None, backend: str,
    tensors: Sequence[Tensor], cu_seqlens: Tensor | None, wanted: Sequence[int], gradients: Sequence[Tensor | None],
) -> list[Tensor]:  # fmt: skip
    return [tensors[i].new_empty(tensors[i].shape) for i in wanted]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    *ctx.call, tensors, cu_seqlens = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, cu_seqlens)


def _gradients(ctx: Any, gradients: list[Tensor | None]) -> tuple[Any, ...]:
    *tensors, cu_seqlens = ctx.saved_tensors
    needed = ctx.needs_input_grad[len(ctx.call)]
    wanted = [i for i, needs in enumerate(needed) if needs]
    nothing = [None] * len(ctx.call)
    if not wanted or all(dx is None for dx in gradients):
        return (*nothing, [None] * len(tensors), None)
    found = iter(torch.ops.linrec.rule_backward(*ctx.call, tensors, cu_seqlens, wanted, gradients))
    return (*nothing, [next(found) if needs else None for needs in needed], None)


def _no_second_derivative(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "linrec: gradients of gradients do not go through a compiled or exported graph; call the rule without one"
    )


rule_operator = torch.library.custom_op("linrec::rule", _forward, mutates_args=())
rule_operator.register_fake(_forward_like)
rule_operator.register_autograd(_gradients, setup_context=_setup)
backward_operator = torch.library.custom_op("linrec::rule_backward", _backward, mutates_args=())
backward_operator.register_fake(_backward_like)
backward_operator.register_autograd(_no_second_derivative)
