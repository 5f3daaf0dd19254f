"""Matrix products in float32 with the widest instructions of the processor.

torch multiplies float32 matrices on a CPU with MKL, which on processors other than its maker's uses half of their
width. oneDNN, which torch has as well, uses all of it, but is asked for float32 products only by those who allow that
it rounds their factors to bfloat16. It does so where a processor has matrix units for bfloat16. On all others the
products keep every digit: whether they do is tried out once. Whether they are faster, too, is timed
(:mod:`linrec.engines.numerics.choices`), and only then are they made there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor

from linrec.engines.numerics.choices import Work, chosen, measurable
from linrec.engines.numerics.setting import Setting

EXACT = 1e-5  # share of an error in a sum of products: float32 stays far below, bfloat16 far above
WORTH = (
    1 << 15
)  # numbers in a state from which setting up products in oneDNN may be won back; less is not timed
TRIED = ((1, 256, 256, 256), (8, 64, 128, 128), (4, 32, 32, 64))  # batch, rows, inner, columns
PLAIN, WIDE = "torch's own", "oneDNN"

SETTING = Setting("none", "bf16")
_exact: bool | None = None


@contextmanager
def wide_products() -> Iterator[None]:
    """Inside, float32 products of matrices on the CPU are as wide as they can be without a loss of digits.

    Also a decorator. For training loops of your own: the products of layers, and those of their backward pass, count as
    well. Nothing happens where these products would not be clearly faster. The setting is torch's, and one for all
    threads; a product that another thread makes meanwhile is as exact. The last one to leave restores it. A setting
    that the caller has chosen (``torch.backends.mkldnn.matmul.fp32_precision``) is left alone.
    """
    with SETTING.wanted(True) if _possible() and _gain() else nullcontext():
        yield


@contextmanager
def small_products() -> Iterator[None]:
    """Inside :func:`wide_products`: products of so few rows that setting one up in oneDNN takes longer than it."""
    with SETTING.wanted(False):
        yield


def fitting_products(
    state: Tensor, what: str, sizes: tuple[object, ...], work: Work | None = None
) -> AbstractContextManager[None]:
    """For chunks that read and write ``state [N, K, V]`` of all heads: wide where ``work`` is clearly faster so.

    ``work`` is timed both ways the first time that these sizes meet; None: only what is known already counts.
    """
    if state.dtype != torch.float32 or not state.is_cpu or not _possible():
        return nullcontext()
    works = None if work is None or state.numel() < WORTH else partial(_both, work)
    return SETTING.wanted(chosen(what, sizes, works) == WIDE)


def explanation() -> str:
    """Whether oneDNN is a choice for float32 products on this processor."""
    if not _available():
        return "this torch has no oneDNN that could be asked for float32 products"
    if not _exact_in_onednn():
        return (
            "oneDNN rounds their factors to bfloat16 on this processor, so they stay with torch's own library"
        )
    return f"oneDNN is exact on this processor; in training, {'it is' if _gain() else 'torch is'} faster"


def _possible() -> bool:
    return not torch.compiler.is_compiling() and _exact_in_onednn() and SETTING.free()


def _gain() -> bool:
    """Whether products of the sizes of training are clearly faster in oneDNN."""
    return chosen("float32 products in training", (), lambda: _both(_typical())) == WIDE


def _typical() -> Work:
    factors = [(torch.ones(b, m, k, device="cpu"), torch.ones(b, k, n, device="cpu")) for b, m, k, n in TRIED]
    return lambda: [torch.bmm(x, y) for x, y in factors]


def _both(work: Work) -> dict[str, Work]:
    def settled(wide: bool) -> None:
        with SETTING.alone(wide):
            work()

    return {PLAIN: partial(settled, False), WIDE: partial(settled, True)}


def _available() -> bool:
    onednn = torch.backends.mkldnn
    return bool(onednn.is_available() and hasattr(onednn, "matmul"))


def _exact_in_onednn() -> bool:
    """Whether oneDNN, allowed to round to bfloat16, does not: for products of several sizes and layouts."""
    global _exact
    if _exact is None and measurable():
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            _exact = _available() and _tried()
    return bool(_exact)


def _tried() -> bool:
    if not SETTING.free():
        return False
    with SETTING.alone(True):
        return all(error_of(torch.bmm, *shape) < EXACT for shape in TRIED)


def error_of(
    multiply: Callable[[Tensor, Tensor], Tensor], batch: int, rows: int, inner: int, columns: int
) -> float:
    """The largest error of the entries of a batched product, as a share of the sum of the sizes of its terms.

    Of factors that float32 holds and bfloat16 does not, each as it is and transposed in memory.
    """
    line = partial(torch.linspace, dtype=torch.float32, device="cpu")
    x = line(0.5, 1.5, batch * rows * inner).sin_().view(batch, rows, inner)
    y = line(0.5, 2.5, batch * inner * columns).cos_().view(batch, inner, columns)
    exact, scale = x.double() @ y.double(), x.double().abs() @ y.double().abs()
    found = (multiply(x, y), multiply(x.mT.contiguous().mT, y), multiply(y.mT, x.mT).mT)
    return max(float(((product - exact).abs() / scale).max()) for product in found)
