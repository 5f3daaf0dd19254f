"""MesaNet: the read-out of the exact regularised regression on the past."""

from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from linrec.arguments import Arg
from linrec.engines.matrix import MatrixTerms, on_value_heads, strengthened
from linrec.engines.numerics.forward_mode import solve as solve_directly
from linrec.engines.programs.conjugate import System, solve
from linrec.engines.programs.program import PROGRAM, ChunkStep, ProgramTerms, Run
from linrec.rule import Decay, Options, Query, Strength, UnitKey, Unpack, Value, rule

Ridge = Annotated[Tensor, Arg("HV K", draw="positive")]


class MesaState(NamedTuple):
    """memory ``[B, HV, K, V]``, gram ``[B, HV, K, K]`` (symmetric)."""

    memory: Tensor
    gram: Tensor


@rule(engine=PROGRAM, state="K*V+K*K", scale="1")
def mesa_net(
    q: Query,
    k: UnitKey,
    v: Value,
    g: Decay,
    beta: Strength,
    lam: Ridge,
    iterations: int = 30,
    **options: Unpack[Options],
) -> ProgramTerms:
    """MesaNet: ridge regression on all past pairs, solved at every token (von Oswald et al. 2025, arXiv:2506.05233).

    .. code-block:: text

        H_t = e^{g_t} H_{t-1} + β_t k_t k_tᵀ
        S_t = e^{g_t} S_{t-1} + β_t k_t v_tᵀ
        o_t = S_tᵀ (H_t + Diag(λ))⁻¹ q_t

    q, k ``[B, T, H, K]``, v ``[B, T, HV, V]``, g ``[B, T, HV]`` log-decay <= 0, beta ``[B, T, HV]`` >= 0, lam
    ``[HV, K]`` > 0, not decayed. The parallel and chunkwise forms take at most ``iterations`` conjugate-gradient steps
    (K of them are exact but for rounding; on a CPU no more than bring every residual below rounding), the recurrent
    form and step solve directly. The state is a ``MesaState(memory, gram)``; ``scale`` (default 1) multiplies q.
    """

    def body(run: Run, x: dict[str, Tensor], state: MesaState) -> tuple[Tensor, MesaState]:
        x["q"], x["k"] = (on_value_heads(x[n], x["v"]) for n in ("q", "k"))
        x["q"] = x["q"] * run.scale
        x["w"] = strengthened(x.pop("beta"), x["k"])
        if run.call.form in ("recurrent", "step"):
            return run.chunks(_token_of(lam), x, state)
        system = System(x["k"], x["w"], x["g"], lam, state.gram)
        solution, gram = solve(run, system, x["q"], iterations)
        o, memory = run.matrix(MatrixTerms(solution, x["w"], x["v"], x["g"]), state.memory)
        return o, MesaState(memory, gram)

    def empty(rows: int) -> MesaState:
        width = k.shape[3]
        return MesaState(*(v.new_zeros(rows, v.shape[2], width, n) for n in (v.shape[3], width)))

    tensors = {"q": q, "k": k, "v": v, "g": g, "beta": beta}
    return ProgramTerms(tensors, body, empty, out=tuple(v.shape[2:]))


def _token_of(lam: Tensor) -> ChunkStep:
    """One token, by a direct solve."""

    def token(x: dict[str, Tensor], state: MesaState) -> tuple[Tensor, MesaState]:
        decay, w = x["g"][:, 0, :, None, None].exp(), x["w"][:, 0, :, :, None]
        memory = decay * state.memory + w * x["v"][:, 0, :, None]
        gram = decay * state.gram + w * x["k"][:, 0, :, None]
        solution = solve_directly(gram.mT + torch.diag_embed(lam), x["q"][:, 0, :, :, None])
        return (memory.mT @ solution)[:, None, ..., 0], MesaState(memory, gram)

    return token
