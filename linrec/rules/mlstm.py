"""mLSTM: the matrix memory of xLSTM, with exponential input gates."""

from typing import Annotated, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import MatrixTerms
from linrec.engines.numerics.maxplus import stabiliser
from linrec.engines.programs.program import PROGRAM, ProgramTerms, Run
from linrec.rule import Decay, Key, Options, Query, Unpack, Value, rule

InputGate = Annotated[Tensor, Arg("B T HV", draw="logit")]


class MLSTMState(NamedTuple):
    """memory ``[B, HV, K, V + 1]`` = e^-m times (S, n), and m ``[B, HV]``."""

    memory: Tensor
    m: Tensor


@rule(engine=PROGRAM, state="K*(V+1)+1")
def mlstm(q: Query, k: Key, v: Value, g: Decay, i: InputGate, **options: Unpack[Options]) -> ProgramTerms:
    """mLSTM: linear attention with an exponential input gate (Beck et al. 2024, arXiv:2405.04517).

    .. code-block:: text

        S_t = e^{g_t} S_{t-1} + e^{i_t} k_t v_tᵀ,  n_t likewise with 1,  o_t = S_tᵀq_t / max(|n_t·q_t|, 1)

    n_t is S_t with 1 for v. q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, g ``[B, T, HV]`` log-decay <= 0 (the forget
    gate's logsigmoid), i ``[B, T, HV]`` log input gate, unbounded. e^i is never formed: memory and normaliser are
    stored times e^-m with m_t = max(g_t + m_{t-1}, i_t), and the floor 1 becomes e^-m in those units. The state is an
    ``MLSTMState(memory, m)``; ``scale`` (default K^-1/2) multiplies q. Derivatives of the returned state hold m fixed.
    """
    heads, width = v.shape[2], v.shape[3]

    def body(run: Run, x: dict[str, Tensor], state: MLSTMState) -> tuple[Tensor, MLSTMState]:
        m, decay, weight = stabiliser(x["g"], x["i"], state.m)
        values = F.pad(x["v"], (0, 1), value=1.0)
        terms = MatrixTerms(x["q"], x["k"], values, decay, write=weight)
        o, memory = run.matrix(terms, state.memory, run.scale)
        floor = (-m[..., None]).exp()  # may be infinite: then the output is zero, as it should be
        return o[..., :-1] / torch.maximum(o[..., -1:].abs(), floor), MLSTMState(memory, m[:, -1])

    return ProgramTerms(
        {"q": q, "k": k, "v": v, "g": g, "i": i},
        body,
        lambda rows: MLSTMState(v.new_zeros(rows, heads, k.shape[3], width + 1), v.new_zeros(rows, heads)),
        out=(heads, width),
    )
