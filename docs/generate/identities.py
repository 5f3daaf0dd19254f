"""What one rule becomes in a limit of its arguments: both sides as code, which tests/docs compares in float64.

The names are the arguments of the first rule (``example_inputs`` of it), and ``rules``, ``torch``, ``F`` and ``scale``
(K^-1/2). A page shows the identities in which its rule stands on either side.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from docs.generate.facts import inputs_of
from linrec import rules

PLAIN = 'feature_map="identity", normalize=False'


class Identity(NamedTuple):
    """``left`` equals ``right``; ``given`` are statements that run before, ``sizes`` override the example's."""

    rule: str
    says: str
    left: str
    right: str
    given: str = ""
    sizes: dict[str, int] = {}  # noqa: RUF012  (a default that nobody writes to)

    @property
    def rules(self) -> set[str]:
        """The rules of both sides."""
        return {self.rule, *re.findall(r"rules\.(\w+?)(?:_decay)?\(", self.left + self.right)}


IDENTITIES = [
    Identity(
        "gla",
        "Without decay it is linear attention.",
        "rules.gla(q, k, v, 0 * g)",
        f"rules.linear_attention(q, k, v, {PLAIN}, scale=scale)",
    ),
    Identity(
        "gla",
        "Equal decays of all channels are one decay a head.",
        "rules.gla(q, k, v, g[..., :1].expand_as(g))",
        "rules.gla(q, k, v, g[..., 0])",
    ),
    Identity(
        "retnet",
        "It is gated linear attention with a constant decay.",
        "rules.retnet(q, k, v, g)",
        "rules.gla(q, k, v, g.expand(v.shape[:3]))",
    ),
    Identity(
        "lightning",
        "It is retention with another scale and other constants.",
        "rules.lightning(q, k, v, g, scale=scale)",
        "rules.retnet(q, k, v, g)",
    ),
    Identity(
        "hgrn2",
        "It is gated linear attention whose key is what the decay leaves.",
        "rules.hgrn2(q, v, g)",
        "rules.gla(q.repeat_interleave(2, dim=2), 1 - g.exp(), v, g)",
    ),
    Identity(
        "mamba2",
        "It is gated linear attention with the step in the decay and in the value.",
        "rules.mamba2(x, dt, A, B, C)",
        "rules.gla(C, B, dt[..., None] * x, dt * A, scale=1.0)",
    ),
    Identity(
        "mamba",
        "Every channel is a gated linear attention of its own, whose value has one channel.",
        "rules.mamba(x, dt, A, B, C)",
        "rules.gla(C[:, :, None], B[:, :, None], (dt * x)[..., None], dt[..., None] * A, scale=1.0)",
    ),
    Identity(
        "mamba3",
        "With the whole share on the current token and no angle it is Mamba-2.",
        "rules.mamba3(x, dt, A, B, C, 0 * lam + 1, 0 * theta, D)",
        "rules.mamba2(x, dt, A, B, C, D)",
    ),
    Identity(
        "gateloop",
        "Without angles it is gated linear attention with one decay for two channels.",
        "rules.gateloop(q, k, v, g, 0 * theta)",
        "rules.gla(q, k, v, g.repeat_interleave(2, dim=-1), scale=1.0)",
    ),
    Identity(
        "dfw",
        "Without a decay of values it is gated linear attention.",
        "rules.dfw(q, k, v, g, 0 * h)",
        "rules.gla(q, k, v, g)",
    ),
    Identity(
        "rwkv6",
        "Without decay and with the bonus one it is linear attention.",
        "rules.rwkv6(q, k, v, 0 * g, 0 * u + 1)",
        f"rules.linear_attention(q, k, v, {PLAIN})",
    ),
    Identity(
        "rwkv5",
        "It is RWKV-6 with a decay that does not depend on the token.",
        "rules.rwkv5(q, k, v, g, u)",
        "rules.rwkv6(q, k, v, g.expand(*v.shape[:3], -1), u)",
    ),
    Identity(
        "log_linear_attention",
        "With all levels weighed alike it is gated linear attention.",
        "rules.log_linear_attention(q, k, v, g, 0 * lam + 1)",
        "rules.gla(q, k, v, g)",
    ),
    Identity(
        "log_linear_gated_delta",
        "With all levels weighed alike it is the gated delta rule.",
        "rules.log_linear_gated_delta(q, k, v, g, beta, 0 * lam + 1)",
        "rules.gated_delta_net(q, k, v, g, beta)",
    ),
    Identity(
        "abc",
        "With one slot it is the running average of the values, whatever the query.",
        "rules.abc(q, k, v, 0 * z)",
        "rules.linear_attention(0 * q, 0 * k, v)",
        sizes={"M": 1},
    ),
    Identity(
        "mlstm",
        "Before its denominator it is gated linear attention; an input gate of minus infinity writes nothing.",
        "rules.mlstm(q, k, v, g, 0 * i - 800)",
        "rules.gla(q, 0 * k, v, g)",
    ),
    Identity(
        "gated_delta_net",
        "Without decay it is DeltaNet.",
        "rules.gated_delta_net(q, k, v, 0 * g, beta)",
        "rules.delta_net(q, k, v, beta)",
    ),
    Identity(
        "gated_delta_net",
        "At full strength a key of unit norm recalls its own value at once: $S_t^\\top k_t = v_t$.",
        "rules.gated_delta_net(k, k, v, g, 0 * beta + 1, scale=1.0)",
        "v",
    ),
    Identity(
        "kimi_delta_attention",
        "With equal decays of all channels it is the gated delta rule.",
        "rules.kimi_delta_attention(q, k, v, g[..., :1].expand_as(g), beta)",
        "rules.gated_delta_net(q, k, v, g[..., 0], beta)",
    ),
    Identity(
        "gated_delta_net_2",
        "With all gates equal to one strength it is Kimi delta attention.",
        "rules.gated_delta_net_2(q, k, v, g, 0 * erase + 0.3, 0 * write + 0.3)",
        "rules.kimi_delta_attention(q, k, v, g, 0 * g[..., 0] + 0.3)",
    ),
    Identity(
        "gated_delta_net_2",
        "With nothing erased it is gated linear attention.",
        "rules.gated_delta_net_2(q, k, v, g, 0 * erase, write)",
        "rules.gla(q, k, write * v, g)",
    ),
    Identity(
        "delta_net",
        "The strength can go into key and value: $\\beta = 1$ with $\\sqrt{\\beta}\\, k$ and $\\sqrt{\\beta}\\, v$.",
        "rules.delta_net(q, k, v, beta)",
        "rules.delta_net(q, root * k, root * v, 0 * beta + 1)",
        "root = beta.sqrt()[..., None]",
        {"HV": 2},
    ),
    Identity(
        "delta_product",
        "With one step a token it is the gated delta rule.",
        "rules.delta_product(q, k, v, g, beta)",
        "rules.gated_delta_net(q, k[:, :, :, 0], v[:, :, :, 0], g, beta[..., 0])",
        sizes={"R": 1},
    ),
    Identity(
        "block_delta",
        "With one pair a token it is the delta rule whose prediction reads the undecayed state.",
        "rules.block_delta(q, k, v, g, eta)",
        "rules.weight_decay_delta(q, k[:, :, :, 0], v[:, :, :, 0], g, eta[..., 0])",
        sizes={"R": 1},
    ),
    Identity(
        "omega",
        "With a window of one token it is the delta rule whose prediction reads the undecayed state.",
        "rules.omega(q, k, v, g, eta)",
        "rules.weight_decay_delta(q, k, v, g, eta[..., 0])",
        sizes={"R": 1},
    ),
    Identity(
        "comba",
        "With $d = 1$ and $D = 0$ it is the delta rule whose prediction reads the undecayed state.",
        "rules.comba(q, k, v, g, beta, 0 * d + 1, 0 * D)",
        "rules.weight_decay_delta(q, k, v, g, beta)",
    ),
    Identity(
        "momentum_delta",
        "Without momentum it is the delta rule whose prediction reads the undecayed state.",
        "rules.momentum_delta(q, k, v, g, 0 * h - 800, eta, 0 * beta + 1)",
        "rules.weight_decay_delta(q, k, v, g, eta)",
    ),
    Identity(
        "longhorn_delta",
        "The exact minimiser is DeltaNet with a strength that no key can make unstable.",
        "rules.longhorn_delta(q, k, v, beta)",
        "rules.delta_net(q, k, v, beta / (1 + beta * k.square().sum(-1)))",
        sizes={"HV": 2},
    ),
    Identity(
        "generalized_delta",
        "With $a = -\\beta e^{g} k$ and $b = k$ it is the gated delta rule.",
        "rules.generalized_delta(q, k, beta * v, a=-beta * g.exp() * k, b=k, g=g[..., 0])",
        "rules.gated_delta_net(q, k, v, g[..., 0], beta[..., 0])",
        "beta, g = torch.rand_like(g[..., :1]), g[..., :1]\nk = F.normalize(k, dim=-1)",
        {"HV": 2},
    ),
    Identity(
        "rwkv7",
        "It is the generalised delta rule with $a = -\\kappa$ and $b = \\eta \\odot \\kappa$.",
        "rules.rwkv7(q, k, v, g, kappa, eta)",
        "rules.generalized_delta(q, k, v, a=-kappa, b=eta * kappa, g=g, scale=1.0)",
        sizes={"HV": 2},
    ),
    Identity(
        "mesa_net",
        "A ridge that outweighs everything leaves gated linear attention: $\\lambda\\, o_t$.",
        "1e12 * rules.mesa_net(q, k, v, g, beta, 0 * lam + 1e12).o",
        "rules.gla(q, k, beta[..., None] * v, g, scale=1.0)",
    ),
    Identity(
        "hgrn",
        "It is a QRNN without output gate.",
        "rules.hgrn(x, g)",
        "rules.qrnn(x, g)",
    ),
    Identity(
        "sru",
        "With an open reset gate it is HGRN.",
        "rules.sru(x, g, 0 * r + 1, y)",
        "rules.hgrn(x, g)",
    ),
    Identity(
        "rg_lru",
        "It is HGRN's recurrence with another gain of the input.",
        "rules.rg_lru(x, g, i)",
        "rules.hgrn(((1 - (2 * g).exp()).sqrt() / (1 - g.exp())) * i * x, g)",
    ),
    Identity(
        "min_gru",
        "It is HGRN with $g = \\log(1 - \\sigma(z))$ and a positive candidate.",
        "rules.min_gru(x, z)",
        "rules.hgrn(torch.where(x >= 0, x + 0.5, x.sigmoid()), F.logsigmoid(-z))",
    ),
    Identity(
        "min_lstm",
        "Its gates are those of a minGRU with $z = \\log \\sigma(i) - \\log \\sigma(f)$.",
        "rules.min_lstm(x, f, i)",
        "rules.min_gru(x, F.logsigmoid(i) - F.logsigmoid(f))",
    ),
    Identity(
        "s5",
        "With one input and one output it is S4D.",
        "rules.s5(x, dt, A_re, A_im, 0 * B_re + 1, 0 * B_im, C_re, C_im, D)",
        "rules.s4d(x, dt[:1], A_re[None], A_im[None], C_re, C_im, D)",
        "dt = dt[:1].expand_as(dt)",
        {"D": 1},
    ),
    Identity(
        "longhorn",
        "With one key channel the diagonal approximation is the exact delta rule.",
        "rules.longhorn(q, k, v, beta)",
        "rules.longhorn_delta(q[:, :, None], k[:, :, None], v[..., None], beta, scale=1.0)",
        sizes={"N": 1},
    ),
    Identity(
        "rwkv4",
        "It does not see a shift of all keys: outputs are averages.",
        "rules.rwkv4(k + 300.0, v, w, u)",
        "rules.rwkv4(k, v, w, u)",
    ),
    Identity(
        "token_shift",
        "It is a convolution over two tokens.",
        "rules.token_shift(x, mu)",
        "rules.canon(x, torch.stack([mu, -mu], dim=-1))",
    ),
    Identity(
        "forgetting_attention",
        "With open gates it is softmax attention.",
        "rules.forgetting_attention(q, k, v, 0 * g)",
        "rules.softmax_attention(q, k, v)",
    ),
    Identity(
        "alibi",
        "It is forgetting attention with a constant gate.",
        "rules.alibi(q, k, v, g)",
        "rules.forgetting_attention(q, k, v, g.expand(q.shape[:3]))",
    ),
    Identity(
        "cope",
        "With zero embeddings it is softmax attention.",
        "rules.cope(q, k, v, 0 * emb)",
        "rules.softmax_attention(q, k, v)",
    ),
    Identity(
        "delta_former",
        "With the inner product for kernel it is DeltaNet, whose values carry the strength.",
        'rules.delta_former(q, k, beta[..., None] * v, beta, kernel="dot", scale=1.0)',
        "rules.delta_net(q, k, v, beta, scale=1.0)",
        "k = F.normalize(k, dim=-1)",
        {"HQ": 2},
    ),
    Identity(
        "delta_former",
        "With nothing erased it is softmax attention.",
        "rules.delta_former(q, k, v, 0 * beta)",
        "rules.softmax_attention(q, k, v)",
    ),
    Identity(
        "path_attention",
        "Without directions it is softmax attention, or with a gate forgetting attention.",
        "rules.path_attention(q, k, v, 0 * w, beta, g)",
        "rules.forgetting_attention(q, k, v, g)",
    ),
    Identity(
        "path_attention",
        "With reflections ($\\beta |w|^2 = 2$) it is softmax attention of queries and keys that DeltaNet corrects.",
        "rules.path_attention(q, k, v, w, scale=1.0)",
        "rules.softmax_attention(corrected(q), corrected(k), v, scale=1.0)",
        "w = 2**0.5 * w\none = torch.ones_like(w[..., 0])\n"
        "corrected = lambda y: y - rules.delta_net(y, w, w, one, scale=1.0).o",
        {"HQ": 2},
    ),
    Identity(
        "latent_attention",
        "It is softmax attention on the keys and values that the latent expands to.",
        "rules.latent_attention(q, q_rope, latent, k_rope, w_k, w_v)",
        "rules.softmax_attention(torch.cat([q, q_rope], -1), torch.cat([key, rope], -1), value)",
        'key = torch.einsum("btc,hck->bthk", latent, w_k)\nvalue = torch.einsum("btc,hcv->bthv", latent, w_v)\n'
        "rope = k_rope[:, :, None].expand(*key.shape[:3], -1)",
    ),
    Identity(
        "shared_kv_attention",
        "It is softmax attention whose keys and values have channels in common.",
        "rules.shared_kv_attention(q, shared, q_rope, k_rope, v_own)",
        "rules.softmax_attention(torch.cat([q, q_rope], -1), torch.cat([shared, k_rope], -1), "
        "torch.cat([shared, v_own], -1))",
    ),
    Identity(
        "tensor_product_attention",
        "It is softmax attention on the keys and values that the factors expand to.",
        "rules.tensor_product_attention(q, a_k, b_k, a_v, b_v)",
        "rules.softmax_attention(q, key, value)",
        'key = torch.einsum("btrh,btrk->bthk", a_k, b_k) / a_k.shape[2]\n'
        'value = torch.einsum("btrh,btrv->bthv", a_v, b_v) / a_v.shape[2]',
    ),
    Identity(
        "titans",
        "A linear memory in mini-batches of one token is the momentum delta rule; the loss has no half, hence the 2.",
        "rules.titans(q, k, v, lr, g, mu, 0 * w1, mini_batch=1)",
        "rules.momentum_delta(q, k, v, g, mu, 2 * lr, 0 * lr + 1, scale=1.0)",
        sizes={"P": 6, "HV": 2},
    ),
]


def identities_of(name: str) -> list[Identity]:
    """The identities in which this rule stands, its own first."""
    found = [identity for identity in IDENTITIES if name in identity.rules]
    return sorted(found, key=lambda identity: identity.rule != name)


def sides(identity: Identity) -> tuple[Tensor, Tensor]:
    """Both sides, computed from the example inputs of the identity's rule."""
    names = inputs_of(rules.get_rule(identity.rule), **{"T": 33, **identity.sizes})
    scope: dict[str, Any] = {"rules": rules, "torch": torch, "F": F, **names}
    if "q" in names:
        scope["scale"] = names["q"].shape[-1] ** -0.5
    exec(identity.given, scope)
    left, right = eval(identity.left, scope), eval(identity.right, scope)
    return getattr(left, "o", left), getattr(right, "o", right)
