"""What the tests of identities between rules share: inputs, forms, and two ways to compare."""

from linrec import rules
from linrec.testing import example_inputs, relative_error

FORMS = ("parallel", "chunkwise", "recurrent")


def inputs_of(rule, **sizes):
    return example_inputs(rule, **{"T": 70, **sizes})


def qkv(length=70, heads=2, groups=1, batch=2, width=8):
    """For softmax attention, with ``groups`` query heads for each head of keys."""
    x = example_inputs(
        rules.softmax_attention, T=length, H=heads, HQ=heads * groups, B=batch, K=width, V=width
    )
    return x["q"], x["k"], x["v"]


def close(a, b, limit=1e-12):
    assert relative_error(a, b) < limit


def same(a, b, limit=1e-12):
    """Outputs and states."""
    close(a.o, b.o, limit)
    close(a.state, b.state, limit)
