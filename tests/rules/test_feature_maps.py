"""Feature maps of linear attention: exact kernels, unbiased ones, every one in every form."""

import math

import pytest
import torch

from linrec import rules
from linrec.errors import ShapeError
from linrec.rules.feature_maps import FEATURE_MAPS, performer, rfa, squares, taylor2
from tests.rules.identities import FORMS, close, inputs_of


def test_polynomial_feature_maps_are_exact_kernels():
    q, k = torch.randn(2, 11, 8, dtype=torch.float64).unbind(0)
    s = q @ k.T / 8**0.5
    close(taylor2(q) @ taylor2(k).T, 1 + s + s**2 / 2)
    assert taylor2(q).shape[-1] == 1 + 8 + 36
    close(squares(q) @ squares(k).T, (q @ k.T) ** 2)


def test_random_features_are_unbiased():
    """The expectation over normal rows, by Gauss-Hermite quadrature instead of sampling."""
    np = pytest.importorskip("numpy")
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(48))
    omega = torch.cartesian_prod(nodes, nodes)
    share = (weights[:, None] * weights).flatten() / (2 * math.pi) * omega.shape[0]
    q, k = torch.randn(2, 5, 2, dtype=torch.float64).unbind(0)
    close((performer(q, omega, False) * share) @ performer(k, omega, False).T, (q @ k.T).exp(), 1e-8)
    double = share.repeat(2)
    distance = (q[:, None] - k).square().sum(-1)
    close((rfa(q, omega) * double) @ rfa(k, omega).T, (-distance / 2).exp(), 1e-8)


@pytest.mark.parametrize("name", FEATURE_MAPS)
@pytest.mark.parametrize("form", FORMS)
def test_every_feature_map_in_every_form(name, form):
    x = inputs_of(rules.linear_attention)
    omega = torch.randn(12, 8, dtype=torch.float64) if name in ("performer", "rfa") else None
    x["q"], x["k"] = x["q"].abs() / 3, x["k"].abs() / 3
    how = {"feature_map": name, "projection": omega}
    whole = rules.linear_attention.form(form)(**x, **how)
    head, state = rules.linear_attention(*(t[:, :30] for t in x.values()), **how)
    tail = rules.linear_attention(*(t[:, 30:] for t in x.values()), **how, state=state)
    close(torch.cat([head, tail.o], 1), whole.o, 1e-10)
    ones = rules.linear_attention(x["q"], x["k"], torch.ones_like(x["v"]), **how)
    close(ones.o, torch.ones_like(ones.o))


def test_projections_are_checked():
    x = inputs_of(rules.linear_attention)
    with pytest.raises(ShapeError, match=r"needs projection \[M, K=8\], got None"):
        rules.linear_attention(**x, feature_map="performer")
    with pytest.raises(ShapeError, match="takes no projection"):
        rules.linear_attention(**x, projection=torch.ones(3, 8))
