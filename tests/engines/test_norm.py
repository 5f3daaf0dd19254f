"""RMSNorm: one token by itself, and what is not one token, are normalised alike."""

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx
from torch.profiler import profile

from linrec.engines.numerics.norm import gated_rms_norm, rms_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(40,), (1, 1, 40), (2, 3, 40), (0, 40)])
def test_without_gradients_as_with_them(shape, dtype):
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(*s, generator=generator).to(dtype) for s in (shape, (40,)))
    want = F.rms_norm(x, (40,), weight, 1e-5)
    with torch.no_grad():
        torch.testing.assert_close(rms_norm(x, weight, 1e-5), want)
        torch.testing.assert_close(rms_norm(x.mT.contiguous().mT if x.dim() > 1 else x, weight, 1e-5), want)
    torch.testing.assert_close(rms_norm(x, weight, 1e-5), want)


def test_one_token_takes_few_calls_and_only_where_values_are_all_that_is_wanted():
    x, weight = torch.randn(1, 1, 40), torch.randn(40)

    def names(work):
        with profile() as record:
            work()
        return {event.key for event in record.key_averages()}

    with torch.no_grad():
        assert "aten::rms_norm" not in names(lambda: rms_norm(x, weight, 1e-5))
        assert "aten::rms_norm" in names(lambda: torch.func.vmap(lambda row: rms_norm(row, weight, 1e-5))(x))
        graph = make_fx(lambda x: rms_norm(x, weight, 1e-5))(x)
        torch.testing.assert_close(graph(2 * x + 1), rms_norm(2 * x + 1, weight, 1e-5))
    assert "aten::rms_norm" in names(lambda: rms_norm(x, weight, 1e-5))


def test_zero_rows_stay_zero_and_groups_have_their_own_mean():
    with torch.no_grad():
        assert rms_norm(torch.zeros(1, 8), torch.ones(8), 1e-5).eq(0).all()
        x, gate, weight = torch.randn(1, 8), torch.randn(1, 8), torch.randn(8)
        whole = gated_rms_norm(x, weight, gate, gate_first=True, groups=2)
        halves = [
            gated_rms_norm(x[:, part], weight[part], gate[:, part], gate_first=True)
            for part in (slice(0, 4), slice(4, 8))
        ]
    torch.testing.assert_close(whole, torch.cat(halves, -1))
