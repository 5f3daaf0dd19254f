"""Delta layers with more than one strength a token: channel gates, momentum, a window of past tokens."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from linrec import rules
from linrec.errors import ConfigError
from linrec.layers.delta import GatedDeltaNet, KimiDeltaAttention, low_rank
from linrec.layers.parts import split_heads, unit_norm, widened
from linrec.rules.feature_maps import taylor2


class GatedDeltaNet2(KimiDeltaAttention):
    """Gated DeltaNet 2 layer (from flash-linear-attention; after arXiv:2412.06464).

    Kimi's layer with erase gates for every key channel and write gates for every value channel, each a sigmoid of a
    projection through ``head_dim`` channels.
    """

    rule = rules.gated_delta_net_2

    def __init__(self, d_model: int, num_heads: int = 4, **options: Any):
        super().__init__(d_model, num_heads, **options)
        del self.b_proj  # the gates below take its place
        self.erase_proj = low_rank(d_model, self.head_dim, self.num_v_heads * self.head_dim, bias=True)
        self.write_proj = low_rank(d_model, self.head_dim, self.num_v_heads * self.value_dim, bias=True)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """g and erase ``[B, T, HV, K]``, write ``[B, T, HV, V]``."""
        erase, write = (widened(proj(x)).sigmoid() for proj in (self.erase_proj, self.write_proj))
        erase = split_heads(erase, self.num_v_heads)
        write = split_heads(write, self.num_v_heads)
        return {"g": self.log_decay(x), "erase": erase * self.beta_range, "write": write}


class MomentumDelta(GatedDeltaNet):
    """Titans' memory with one linear map (Behrouz, Zhong, Mirrokni 2025, arXiv:2501.00663).

    The gated delta layer whose strength is the learning rate of a gradient step with momentum: log-decay of the
    momentum logsigmoid(x W + b), and every step is scaled by 1 - e^h, so that a constant error moves the memory as
    far as without momentum.
    """

    rule = rules.momentum_delta

    def __init__(self, d_model: int, num_heads: int = 4, **options: Any):
        super().__init__(d_model, num_heads, **options)
        self.momentum_proj = nn.Linear(d_model, self.num_v_heads)

    def gates(self, x: Tensor) -> dict[str, Tensor]:
        """g, h, eta and beta ``[B, T, HV]``."""
        gates = super().gates(x)
        h = F.logsigmoid(widened(self.momentum_proj(x)))
        return {"g": gates["g"], "h": h, "eta": gates["beta"], "beta": -h.expm1()}


class Omega(GatedDeltaNet):
    """OmegaNet layer (Behrouz et al. 2025, arXiv:2505.23735): the gated delta layer over a window of tokens.

    At each token the ``window`` last pairs are learned again, token r places back with the strength
    sigmoid(x W)_r / window: the steps together stay below one. ``degree`` 2 maps unit q and k to all monomials up to
    the second degree (1, k_i, k_i k_j), which widens the state to 1 + K + K^2 rows.
    Raises ConfigError for an empty window and another degree.
    """

    rule = rules.omega
    unit_keys = False  # normalised below, after the monomials

    def __init__(self, d_model: int, num_heads: int = 4, *, window: int = 4, degree: int = 1, **options: Any):
        super().__init__(d_model, num_heads, **options)
        if window < 1 or degree not in (1, 2):
            raise ConfigError(
                f"Omega: window must be at least 1 and degree 1 or 2, got window={window}, degree={degree}"
            )
        self.window, self.degree = window, degree
        self.b_proj = nn.Linear(d_model, self.num_v_heads * window, bias=False)

    def inputs(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> dict[str, Any]:
        """q, k ``[B, T, H, K or 1 + K + K^2]`` of unit norm, g ``[B, T, HV]``, eta ``[B, T, HV, R]``."""
        if self.degree == 2:
            q, k = taylor2(unit_norm(q)), taylor2(unit_norm(k))
        gates = self.gates(x)
        eta = split_heads(gates["beta"], self.num_v_heads) / self.window
        return {"q": unit_norm(q), "k": unit_norm(k), "v": v, "g": gates["g"], "eta": eta}
