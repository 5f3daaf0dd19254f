"""Comparisons whose failures say what was compared: rule, form, shapes and error."""

from linrec.state import named_tensors
from linrec.testing import relative_error

TIGHT = 1e-10


def call_of(name, form, inputs, **options):
    """``gla.chunkwise(q [2, 65, 2, 8], ..., chunk_size=16)``: what failed, so that it can be run again."""
    given = [f"{n} {list(x.shape)}" for n, x in inputs.items() if hasattr(x, "shape")]
    given += [f"{n}={x}" for n, x in options.items() if x is not None]
    return f"{name}.{form}({', '.join(given)})"


def assert_near(got, want, limit, who, what="o"):
    """Of one tensor: its shape, and its relative error."""
    assert got.shape == want.shape, f"{who}: {what} has the shape {list(got.shape)}, not {list(want.shape)}"
    error = relative_error(got, want)
    assert error < limit, (
        f"{who}: {what} {list(got.shape)} has the relative error {error:.2e}, not below {limit:.0e}"
    )


def assert_close(got, want, limit=TIGHT, who="a state"):
    """Of the tensors of two trees, a result ``(o, state)`` or a state, which may be trees of different types."""
    got, want = dict(named_tensors(got)), dict(named_tensors(want))
    assert len(got) == len(want), f"{who}: tensors {', '.join(got)}, not {', '.join(want)}"
    for (path, a), b in zip(got.items(), want.values(), strict=True):
        assert_near(a, b, limit, who, what_of(path))


def what_of(path):
    """Output and state of a plain tuple by their names."""
    first, dot, rest = path.partition(".")
    return {"": "the state", "0": "o", "1": "the state"}.get(first, first) + dot + rest
