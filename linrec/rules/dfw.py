"""Decaying fast weights: a forget gate on either side of the state."""

from typing import Annotated

from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import on_value_heads
from linrec.engines.programs.program import PROGRAM, ProgramTerms, Run
from linrec.engines.programs.two_sided import two_sided
from linrec.rule import ChannelDecay, Key, Options, Query, Unpack, Value, rule

ValueDecay = Annotated[Tensor, Arg("B T HV V", draw="log_decay")]


@rule(engine=PROGRAM)
def dfw(
    q: Query, k: Key, v: Value, g: ChannelDecay, h: ValueDecay, **options: Unpack[Options]
) -> ProgramTerms:
    """Decaying fast weights with a two-dimensional gate (Mao 2022, arXiv:2210.04243).

    .. code-block:: text

        S_t = (e^{g_t} e^{h_t}ᵀ) ⊙ S_{t-1} + k_t v_tᵀ,  o_t = S_tᵀ q_t

    q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, log-decays <= 0: g ``[B, T, HV, K]`` by key channel, h ``[B, T, HV, V]``
    by value channel. h = 0 is gated linear attention. State ``[B, HV, K, V]``; ``scale`` (default K^-1/2) multiplies q.
    """

    def body(run: Run, x: dict[str, Tensor], state: Tensor) -> tuple[Tensor, Tensor]:
        q, k = (on_value_heads(x[n], x["v"]) for n in ("q", "k"))
        return two_sided(run, q * run.scale, k, x["v"], x["g"], x["h"], state)

    return ProgramTerms(
        {"q": q, "k": k, "v": v, "g": g, "h": h},
        body,
        lambda rows: v.new_zeros(rows, v.shape[2], k.shape[3], v.shape[3]),
        out=tuple(v.shape[2:]),
    )
