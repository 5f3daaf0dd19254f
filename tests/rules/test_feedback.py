"""The softmax family: how its members become each other, DeltaNet or softmax, and what is known to go wrong."""

import pytest
import torch
import torch.nn.functional as F

from linrec import rules
from linrec.engines.attention import merge
from linrec.errors import ShapeError, UnknownNameError
from linrec.rules.delta_former import delta_former
from linrec.rules.path_attention import path_attention
from linrec.testing import example_inputs, relative_error
from tests.rules.identities import FORMS, close, qkv

F64 = torch.float64


@pytest.mark.parametrize("form", FORMS)
def test_no_forgetting_is_softmax(form):
    q, k, v = qkv(groups=2)
    zero = torch.zeros(*q.shape[:3], dtype=F64)
    want = rules.softmax_attention(q, k, v).o
    close(rules.forgetting_attention.form(form)(q, k, v, zero).o, want)
    close(rules.alibi.form(form)(q, k, v, zero[0, 0]).o, want)


@pytest.mark.parametrize("form", FORMS)
def test_constant_forgetting_is_alibi(form):
    q, k, v = qkv(groups=2)
    g = rules.alibi_decay(4)
    want = rules.alibi.form(form)(q, k, v, g).o
    close(rules.forgetting_attention.form(form)(q, k, v, g.expand(*q.shape[:3])).o, want)


def test_alibi_slopes():
    assert torch.equal(rules.alibi_decay(8), -torch.tensor([2.0**-h for h in range(1, 9)], dtype=F64))
    close(rules.alibi_decay(3), -torch.tensor([2.0**-4, 2.0**-8, 2.0**-2], dtype=F64))


def test_the_gate_is_not_scaled_and_is_one_more_channel():
    q, k, v = qkv()
    g = F.logsigmoid(torch.randn(2, 70, 2, dtype=F64))
    c = g.cumsum(1)[..., None]
    wide_q, wide_k = torch.cat([q * 0.3, torch.ones_like(c)], -1), torch.cat([k, -c], -1)
    close(
        rules.forgetting_attention(q, k, v, g, scale=0.3).o,
        rules.softmax_attention(wide_q, wide_k, v, scale=1.0).o,
    )


def test_long_sums_of_decays_keep_their_digits():
    """Only c_i - c_j matters: with |c| = 1e6 in front the float32 result is that without it."""
    q, k, v = (x.float() for x in qkv(40))
    g = F.logsigmoid(torch.randn(2, 40, 2))
    plain = rules.forgetting_attention(q, k, v, g)
    state = rules.forgetting_attention.init_state(q, k, v, g)
    far = state._replace(
        k=torch.zeros(2, 1, 2, 8), v=torch.zeros(2, 1, 2, 8), c=torch.full((2, 1, 2), -1e6, dtype=F64),
        length=torch.ones(2, dtype=torch.int64),
    )  # fmt: skip
    hidden = torch.cat([torch.full((2, 1, 2), -1e3), g[:, 1:]], 1)  # the first token hides the one before
    close(rules.forgetting_attention(q, k, v, hidden, state=far).o, plain.o, 1e-6)


def test_stick_breaking_leaves_the_first_token_without_weight():
    q, k, v = qkv()
    o = rules.stick_breaking(q, k, torch.ones_like(v)).o
    assert (o[:, 0] == 0).all() and (o >= 0).all() and (o <= 1 + 1e-12).all()
    huge = rules.stick_breaking(100 * q, 100 * k, v)
    assert torch.isfinite(huge.o).all()


def test_cope_with_zero_embeddings_is_softmax():
    q, k, v = qkv()
    close(rules.cope(q, k, v, torch.zeros(9, 8, dtype=F64)).o, rules.softmax_attention(q, k, v).o)


@pytest.mark.parametrize("form", FORMS)
def test_inner_product_delta_former_is_delta_net(form):
    q, k, v = qkv()
    k = F.normalize(k, dim=-1)
    beta = torch.rand(2, 70, 2, dtype=F64)
    got = delta_former.form(form)(q, k, beta[..., None] * v, beta, kernel="dot", scale=1.0)
    close(got.o, rules.delta_net(q, k, v, beta, scale=1.0).o)


@pytest.mark.parametrize("kernel", ["exp", "dot"])
@pytest.mark.parametrize("normalize", [True, False])
def test_delta_former_is_its_closed_form(kernel, normalize):
    q, k, v = qkv(33, heads=1, batch=1)
    w, beta = torch.randn_like(k), torch.rand(1, 33, 1, dtype=F64)
    out = delta_former(q, k, v, beta, w, kernel=kernel, normalize=normalize, scale=0.3, chunk_size=8)

    def kappa(x, diagonal):
        s = 0.3 * x[0, :, 0] @ k[0, :, 0].T
        if kernel == "dot":
            return s.tril(diagonal)
        e = s.exp().tril(diagonal)
        return e / e.sum(-1, keepdim=True).clamp(min=1e-300) if normalize else e

    b = beta[0] * kappa(w, -1)
    u = torch.linalg.solve(torch.eye(33, dtype=F64) + b, v[0, :, 0])
    close(out.o[0, :, 0], kappa(q, 0) @ u, 1e-11)
    close(out.state.v[0, :, 0], u, 1e-11)


def test_delta_former_solves_and_never_expands():
    """With the plain exponential the series v - Bv + B^2 v ... loses what the solve keeps."""
    q, k, v = qkv(64, heads=1, batch=1)
    k = F.normalize(k, dim=-1)
    single = delta_former(q.float(), k.float(), v.float(), normalize=False, scale=1.0).state.v
    exact = delta_former(q, k, v, normalize=False, scale=1.0).state.v
    b = (k[0, :, 0] @ k[0, :, 0].T).exp().tril(-1).float()
    term = total = v[0, :, 0].float()
    for _ in range(64):
        term = -b @ term
        total = total + term
    assert relative_error(single, exact) < 1e-3
    assert not relative_error(total, exact[0, :, 0]) < 1


def test_delta_former_refuses_other_kernels():
    q, k, v = qkv()
    with pytest.raises(UnknownNameError, match="unknown kernel 'rbf'"):
        delta_former(q, k, v, kernel="rbf")


def test_latent_forms_agree_and_share_their_scale():
    x = example_inputs(rules.latent_attention, T=40)
    trained = rules.latent_attention.chunkwise(**x).o
    close(rules.latent_attention.recurrent(**x).o, trained, 1e-13)
    wrong = rules.latent_attention.recurrent(**x, scale=(5 + 4) ** -0.5).o  # the absorbed key's own width
    assert relative_error(wrong, trained) > 1e-3


def test_grouped_attention_is_a_shared_cache_of_all_keys_and_values():
    q, k, v = qkv(groups=2)
    both = torch.cat([k, v], -1).flatten(2)[:, :, None]  # [k1, v1, k2, v2] as one shared head
    wide = torch.zeros(2, 70, 4, 32, dtype=F64)
    wide[:, :, :2, :8], wide[:, :, 2:, 16:24] = q[:, :, :2], q[:, :, 2:]
    o = rules.shared_kv_attention(wide, both, scale=8**-0.5).o
    want = rules.softmax_attention(q, k, v).o
    close(torch.cat([o[:, :, :2, 8:16], o[:, :, 2:, 24:]], 2), want)


def test_s3_is_part_of_s2():
    x = example_inputs(rules.shared_kv_attention)
    s3 = rules.shared_kv_attention(x["q"], x["shared"], x["q_rope"], x["k_rope"]).o
    q, shared = torch.cat([x["q"], x["q_rope"]], -1), torch.cat([x["shared"], x["k_rope"]], -1)
    close(rules.shared_kv_attention(q, shared).o[..., :8], s3)
    with pytest.raises(ShapeError, match="come together"):
        rules.shared_kv_attention(x["q"], x["shared"], x["q_rope"])


def test_factored_keys_of_full_rank_are_softmax():
    q, k, v = qkv()
    heads = 2 * torch.eye(2, dtype=F64).expand(2, 70, 2, 2)
    close(rules.tensor_product_attention(q, heads, k, heads, v).o, rules.softmax_attention(q, k, v).o)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("window", [1, 7, 64, 100])
def test_window(form, window):
    """The mask from the definition; the state holds no more than the next query can see."""
    q, k, v = qkv(groups=2)
    i = torch.arange(70)
    hidden = (i[:, None] < i) | (i[:, None] - i >= window)
    s = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(2, 2)) * 8**-0.5
    a = torch.softmax(s.masked_fill(hidden, -torch.inf), -1)
    want = torch.einsum("bhij,bjhd->bihd", a, v.repeat_interleave(2, 2))
    attend = rules.softmax_attention.form(form)
    close(attend(q, k, v, window=window).o, want)
    state, parts = None, []
    for start, stop in ((0, 1), (1, 30), (30, 31), (31, 70)):
        now = slice(start, stop)
        o, state = attend(q[:, now], k[:, now], v[:, now], window=window, state=state)
        parts.append(o)
        assert state.k.shape[1] == min(stop, window - 1) and state.length.tolist() == [stop, stop]
    close(torch.cat(parts, 1), want)


@pytest.mark.parametrize("form", FORMS)
def test_window_over_packed_sequences(form):
    q, k, v = qkv(70, batch=1)
    bounds = torch.tensor([0, 3, 3, 40, 70])
    attend = rules.softmax_attention.form(form)
    first = attend(q, k, v, window=5, cu_seqlens=bounds)
    second = attend(q, k, v, window=5, cu_seqlens=bounds, state=first.state)
    for s, (i, j) in enumerate([(0, 3), (3, 3), (3, 40), (40, 70)]):
        q2, k2, v2 = (torch.cat([x[:, i:j], x[:, i:j]], 1) for x in (q, k, v))
        if j > i:
            whole = attend(q2, k2, v2, window=5).o
            close(torch.cat([first.o[:, i:j], second.o[:, i:j]], 1), whole)
        assert second.state.length[s] == 2 * (j - i)


def test_window_must_be_positive():
    q, k, v = qkv()
    with pytest.raises(ShapeError, match="window must be None or a positive integer, got 0"):
        rules.softmax_attention(q, k, v, window=0)


def test_partial_results_merge():
    q, k, v = (x[0, :, 0] for x in qkv(20))
    s = q @ k.T

    def part(columns):
        return torch.softmax(s[:, columns], -1) @ v[columns], s[:, columns].logsumexp(-1)

    o, lse = merge(*part(slice(0, 6)), *part(slice(6, 20)))
    whole, total = part(slice(0, 20))
    close(o, whole)
    close(lse, total)
    nothing = torch.zeros_like(whole), torch.full_like(total, -torch.inf)
    close(merge(*nothing, whole, total)[0], whole)
    assert (merge(*nothing, *nothing)[0] == 0).all()


def test_query_heads_are_interleaved_not_tiled():
    for rule in (rules.forgetting_attention, path_attention, delta_former, rules.stick_breaking):
        x = example_inputs(rule, T=20)
        spread = {
            n: t.repeat_interleave(2, 2) if rule.arguments[n].shapes[0][2] == "H" else t for n, t in x.items()
        }
        tiled = {n: t.repeat(1, 1, 2, *[1] * (t.dim() - 3)) if rule.arguments[n].shapes[0][2] == "H" else t
                 for n, t in x.items()}  # fmt: skip
        close(rule(**spread).o, rule(**x).o)
        assert relative_error(rule(**tiled).o, rule(**x).o) > 0.05


def test_token_shift_and_canon_are_convolutions_with_the_last_tap_at_the_current_token():
    x = torch.randn(1, 9, 3, dtype=F64)
    before = F.pad(x, (0, 0, 1, 0))[:, :-1]
    mu = torch.rand(3, dtype=F64)
    close(rules.token_shift(x, mu).o, x + mu * (before - x))
    last_only = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=F64).expand(3, 4)
    close(rules.canon(x, last_only).o, 2 * x)
    close(rules.canon(x, last_only.roll(-1, 1)).o, x + before)
