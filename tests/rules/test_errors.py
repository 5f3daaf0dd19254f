"""Bad input: typed errors that say what was expected and what came."""

import pytest
import torch

from linrec import rules
from linrec.errors import BackendError, DtypeError, FormError, RangeError, ShapeError, UnknownNameError
from linrec.testing import example_inputs

RULE = rules.gated_delta_net


@pytest.fixture
def inputs():
    return example_inputs(RULE, T=8)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"q": lambda x: x[..., 0]}, ShapeError, r"q must be \[B, T, H, K\], got \[2, 8, 2\]"),
        ({"k": lambda x: x[:, :5]}, ShapeError, r"k must be \[B=2, T=8, H=2, K=8\], got \[2, 5, 2, 8\]"),
        ({"v": lambda x: x[:, :, :3]}, ShapeError, r"HV must be a multiple of H, got HV=3, H=2"),
        ({"g": lambda x: x[..., :1]}, ShapeError, r"g must be \[B=2, T=8, HV=4\], got \[2, 8, 1\]"),
        ({"beta": lambda x: x[..., None]}, ShapeError, r"beta must be \[B, T, HV\], got \[2, 8, 4, 1\]"),
        ({"k": lambda x: x.float()}, DtypeError, "k is torch.float32, but q is torch.float64"),
        (
            {"q": lambda x: x.long()},
            DtypeError,
            "q must be float64, float32, bfloat16 or float16, got torch.int64",
        ),
        ({"v": lambda x: x.tolist()}, DtypeError, "v must be a tensor, got list"),
    ],
)
def test_wrong_tensors(inputs, change, error, text):
    RULE(**inputs)  # shapes that were found good excuse no others
    for name, edit in change.items():
        inputs[name] = edit(inputs[name])
    with pytest.raises(error, match=text):
        RULE(**inputs)


@pytest.mark.parametrize(
    ("option", "error", "text"),
    [
        ({"chunk_size": 0}, ShapeError, "chunk_size must be a positive integer, got 0"),
        ({"backend": "cuda"}, UnknownNameError, "unknown backend 'cuda'; one of auto, torch, triton"),
        ({"backend": "triton"}, BackendError, "backend='triton' cannot run: the inputs are on cpu"),
        ({"state": torch.zeros(2, 4, 6, 8)}, ShapeError, r"= \[2, 4, 8, 6\], got \[2, 4, 6, 8\]"),
        ({"state": (1,)}, DtypeError, "state must be a tensor"),
        ({"cu_seqlens": torch.tensor([0, 8])}, ShapeError, "the batch must be 1"),
    ],
)
def test_wrong_options(inputs, option, error, text):
    with pytest.raises(error, match=text):
        RULE(**inputs, **option)


@pytest.mark.parametrize(
    ("bounds", "error", "text"),
    [
        (torch.tensor([0, 5]), ShapeError, r"must rise from 0 to T = 8, got \[0, 5\]"),
        (torch.tensor([1, 8]), ShapeError, "must rise from 0"),
        (torch.tensor([0, 6, 4, 8]), ShapeError, "must rise from 0"),
        (torch.tensor([[0, 8]]), ShapeError, r"must have shape \[S \+ 1\]"),
        (torch.tensor([0.0, 8.0]), DtypeError, "int32 or int64"),
        ([0, 8], DtypeError, "got list"),
    ],
)
def test_wrong_cu_seqlens(bounds, error, text):
    with pytest.raises(error, match=text):
        RULE(**example_inputs(RULE, T=8, B=1), cu_seqlens=bounds)


def test_unknown_names_are_refused(inputs):
    with pytest.raises(TypeError, match="gama"):
        RULE(**inputs, gama=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing a required argument: 'beta'"):
        RULE(inputs["q"], inputs["k"], inputs["v"], inputs["g"])  # type: ignore[call-arg]
    with pytest.raises(UnknownNameError, match=r"did you mean .*gated_delta_net"):
        rules.get_rule("gated_deltanet")
    with pytest.raises(UnknownNameError, match="unknown form 'fused'"):
        RULE.form("fused")
    with pytest.raises(UnknownNameError, match="unknown feature_map 'tanh'"):
        rules.linear_attention(inputs["q"], inputs["k"], inputs["v"], feature_map="tanh")


def test_step_takes_one_token(inputs):
    with pytest.raises(ShapeError, match="takes one token"):
        RULE.step(**inputs)


@pytest.mark.parametrize("value", [0.1, float("nan"), -float("inf")])
def test_values_are_checked_when_asked(inputs, value):
    inputs["g"][0, 3, 1] = value
    RULE(**inputs)
    with rules.validation(), pytest.raises(RangeError, match="g must be a finite natural-log decay, <= 0"):
        RULE(**inputs)


def test_a_missing_form_says_why():
    rule = type(RULE)(
        RULE.lower, RULE.engine, "", "", state="K*V", scale="1", missing={"parallel": "gates read the state"}
    )
    with pytest.raises(FormError, match="has no parallel form: gates read the state"):
        rule.parallel(**example_inputs(RULE, T=4))
    assert rule(**example_inputs(RULE, T=4)).o.shape == (2, 4, 4, 6)
