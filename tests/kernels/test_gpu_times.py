"""Which of our arguments goes into which of fla-core's, against its plain references."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

from linrec.errors import BackendError
from linrec.rules import RULES
from linrec.testing import example_inputs, relative_error

pytest.importorskip("triton")

from linrec.evals.bench.gpu_times import PEERS, compare, worst


def reference(rule: str, x: dict[str, torch.Tensor], scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    """fla-core's own loops, called with what ``PEERS`` gives its chunk function."""
    from fla.ops.delta_rule.naive import delta_rule_recurrence
    from fla.ops.gated_delta_rule.naive import naive_recurrent_gated_delta_rule
    from fla.ops.generalized_delta_rule.dplr.naive import dplr_recurrence
    from fla.ops.gla.naive import naive_recurrent_gla
    from fla.ops.kda.naive import naive_recurrent_kda
    from fla.ops.rwkv6.recurrent_naive import naive_recurrent_rwkv6
    from fla.ops.simple_gla.naive import naive_recurrent_simple_gla

    a = PEERS[rule].keywords(x, scale)
    heads_first = lambda *names: [a[n].transpose(1, 2) for n in names]  # noqa: E731
    match rule:
        case "delta_net":
            o, state = delta_rule_recurrence(*heads_first("q", "k", "v", "beta"))
            return o.transpose(1, 2), state
        case "generalized_delta":
            o, state = dplr_recurrence(*heads_first("q", "k", "v", "a", "b", "gk"))
            return o.transpose(1, 2), state
        case "gated_delta_net":
            return naive_recurrent_gated_delta_rule(**a)
        case "kimi_delta_attention":
            return naive_recurrent_kda(**a)
        case "gla":
            return naive_recurrent_gla(a["q"], a["k"], a["v"], a["g"], None, True)
        case "lightning":
            g = a.pop("g_gamma").expand(a["q"].shape[:3])
            return naive_recurrent_simple_gla(g=g, **a)
        case "rwkv6":
            q, k, v, w = heads_first("r", "k", "v", "w")
            o, state = naive_recurrent_rwkv6(q, k, v, w, a["u"], scale, None, True)
            return o.transpose(1, 2), state
    raise AssertionError(rule)


@pytest.mark.filterwarnings("ignore")  # of its imports
@pytest.mark.parametrize("rule", PEERS)
def test_arguments_go_where_they_belong(rule: str) -> None:
    pytest.importorskip("fla")
    sizes: dict[str, Any] = {"B": 2, "T": 20, "H": 3, "HV": 3, "K": 16, "V": 8}
    x = {n: t.float() for n, t in example_inputs(RULES[rule], **sizes).items()}
    scale = 16**-0.5
    o, state = reference(rule, x, scale)
    ours: Any = RULES[rule](**x, scale=scale, backend="torch")
    assert relative_error(ours.o, o) < 1e-5 and relative_error(ours.state, state) < 1e-5
    inspect.signature(PEERS[rule].load()).bind(**PEERS[rule].keywords(x, scale))


def test_without_a_gpu_there_is_nothing_to_time() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BackendError, match="needs a GPU"):
        compare("gated_delta_net")


def test_the_check_takes_the_tensor_that_is_furthest_off() -> None:
    exact = [torch.ones(4), torch.ones(3), torch.ones(2)]
    found = [exact[0] * 1.01, exact[1] * 1.002, exact[2]]
    error, allowed = worst(found, exact, [0.02, 0.001, 0.001])
    assert allowed == 0.001 and abs(error - 0.002) < 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("rule", ["gated_delta_net", "gla"])
def test_times_are_taken(rule: str) -> None:
    times = compare(rule, batch=1, length=256, heads=2, width=64)
    assert {"linrec", "softmax attention"} <= {t.name for t in times}
    assert all(t.forward > 0 and t.backward > 0 for t in times)
