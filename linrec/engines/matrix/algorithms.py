"""Which algorithm computes a call of the matrix engine, and why: one chooser, with its reasons in words.

===================  ===========================================================================================
triton               the chunk algorithm in Triton kernels, on a GPU, whatever the form
step                 one token: a few products with the state
recurrent            the definition, token by token
parallel             one chunk as long as the sequence, in differentiable calls
chunkwise_scalar     chunk by chunk, the adjoint written out; one decay a head or none, predictions read by k
chunkwise_channel    the same for a decay a channel and for keys a, b: decays relative to the middle of a chunk
chunkwise_general    the same for every decay: between two tokens it is an exponential of its own
chunkwise_plain      chunk by chunk in differentiable calls: forward mode, vmap, derivatives of derivatives
===================  ===========================================================================================

With ``backend="auto"`` or ``"torch"`` a call takes the first in this order that computes its form and can run.
``backend=`` the name of one asks for that one, which runs or says why it cannot: nothing is put in its place.
"""

from __future__ import annotations

from torch import Tensor

from linrec.engines.matrix.terms import MatrixTerms
from linrec.engines.numerics.backends import why_not_triton
from linrec.engines.numerics.checks import readable, transformed
from linrec.engines.numerics.decays import REACH
from linrec.errors import BackendError
from linrec.rule import Call, Choice

WIDEST = 256  # of K and V: Triton kernels keep all of K on chip
SMALLEST = 16  # tokens of a chunk whose decays are strong that is not halved further
FORM_OF = {  # the form that each algorithm computes; None: every form
    "triton": None,
    "step": "step",
    "recurrent": "recurrent",
    "parallel": "parallel",
    "chunkwise_scalar": "chunkwise",
    "chunkwise_channel": "chunkwise",
    "chunkwise_general": "chunkwise",
    "chunkwise_plain": "chunkwise",
}
ONE_BY_ONE = {"step", "recurrent"}  # forms, and algorithms, that take token after token
DIFFERENTIABLE = {*ONE_BY_ONE, "parallel", "chunkwise_plain"}
REASONS = {
    "triton": "the inputs are on a GPU",
    "step": "one token",
    "recurrent": "the recurrent form of several tokens",
    "parallel": "the parallel form",
    "chunkwise_scalar": "one decay a head or none, and predictions read by k",
    "chunkwise_channel": "a decay a channel, or predictions read by keys of their own",
    "chunkwise_general": "decays that are formed for every two tokens",
    "chunkwise_plain": "calls that can be differentiated in every way",
}
DECODING = Choice("step", "one token on a CPU")


def choose(terms: MatrixTerms, state: Tensor | None, call: Call, who: str) -> Choice:
    """The algorithm for this call; BackendError with the reason where the one that was asked for cannot run."""
    asked = call.backend in FORM_OF
    if not asked and terms.v.is_cpu and _one_token(terms.v, call):  # first: decoding asks for every token
        return DECODING
    refused: dict[str, list[str]] = {}
    for algorithm in [call.backend] if asked else _candidates(call):
        reason = why_not(algorithm, terms, state, call)
        if reason is None:
            others = (f"not {', '.join(names)}: {reason}" for reason, names in refused.items())
            return Choice(
                algorithm, "it was asked for" if asked else "; ".join([REASONS[algorithm], *others])
            )
        refused.setdefault(reason, []).append(algorithm)
    raise BackendError(f"{who}: backend={call.backend!r} cannot run: {reason}")


def why_not(algorithm: str, terms: MatrixTerms, state: Tensor | None, call: Call) -> str | None:
    """Why this algorithm cannot run this call, or None."""
    reason = _unsuited(algorithm, terms, call)
    if reason is not None or algorithm in DIFFERENTIABLE:
        return reason
    tensors = terms.tensors() if state is None else [*terms.tensors(), state]
    if algorithm == "triton":
        return why_not_triton(*tensors)
    if transformed(*tensors):
        return "the adjoint is written out, and a transform of torch.func or forward mode is active"
    if algorithm != "chunkwise_channel":
        return None
    if not readable(terms.v):
        return "it looks at the decays, and tensors without data hold none"
    g = terms.g
    steady = g is not None and g.stride(1) == 0 and g.numel() > 0
    if g is not None and steady and -g[:, :1].amin() * (SMALLEST // 2 + 1) > REACH:
        return (
            f"the decay, the same at all tokens, is too strong for {SMALLEST} of them to have a common middle"
        )
    return None


def _unsuited(algorithm: str, terms: MatrixTerms, call: Call) -> str | None:
    """Why it is not for such a call, whatever is differentiated and whatever the tensors hold."""
    form, keys, v = FORM_OF[algorithm], terms.k.shape[3], terms.v
    if form is not None and form != call.form and not {form, call.form} <= ONE_BY_ONE:
        return f"it computes the {form} form, and the {call.form} form was called"
    if algorithm == "step" and not _one_token(v, call):
        return f"it takes one token of each sequence, and there are T = {v.shape[1]}"
    if (
        algorithm == "triton" and call.backend != "triton" and not v.is_cuda
    ):  # the interpreter is not for "auto"
        return f"the inputs are on {v.device}, and its kernels need a GPU"
    if algorithm == "triton" and max(keys, v.shape[3]) > WIDEST:
        return (
            f"Triton kernels hold K and V up to {WIDEST}, got K = {keys}, V = {v.shape[3]}; "
            "use backend='torch' or 'auto'"
        )
    if algorithm == "chunkwise_scalar" and terms.a is not None:
        return "its predictions are read by k, and here a key a of their own reads them"
    if algorithm == "chunkwise_scalar" and terms.g is not None and terms.g.dim() == 4:
        return "it is for one decay a head, and here every channel has its own"
    return None


def _candidates(call: Call) -> list[str]:
    """Those that compute the form, the one preferred first; the last computes every call of the form."""
    forms = {None, *(ONE_BY_ONE if call.form in ONE_BY_ONE else (call.form,))}
    names = [name for name, form in FORM_OF.items() if form in forms]
    return names[1:] if call.backend == "torch" else names


def _one_token(v: Tensor, call: Call) -> bool:
    return call.form in ONE_BY_ONE and v.shape[1] == 1 and call.bounds is None
