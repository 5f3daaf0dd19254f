"""The kernel report counts what kernels with known figures do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from linrec.evals.kernels.capture import recording  # noqa: E402
from linrec.evals.kernels.machine_code import Resources, measure  # noqa: E402
from linrec.evals.kernels.report import (  # noqa: E402
    Compiled,
    Moved,
    Row,
    load,
    regressions,
    save,
)
from linrec.evals.kernels.targets import CHECKED, GPUS  # noqa: E402
from linrec.evals.kernels.traffic import traffic  # noqa: E402
from tests.kernels import toys  # noqa: E402

OPTIONS = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def launched_product(m: int, n: int, k: int, block: int = 64):
    x, y, z = empty(m, k), empty(k, n), empty(m, n)
    with recording() as found:
        grid = lambda a: (triton.cdiv(n, a["BN"]), triton.cdiv(m, a["BM"]))  # noqa: E731
        toys.product[grid](x, y, z, m, n, k, block, block, 32, **OPTIONS)
    (launch,) = found.launches
    return launch


@pytest.mark.parametrize("name", CHECKED)
def test_resources_of_a_product(name: str) -> None:
    launch = launched_product(128, 256, 64)
    assert launch.grid == (4, 2)
    used = measure(launch, GPUS[name])
    assert used.problems() == [] and used.spills == 0
    kind = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTC", "gfx942": "v_mfma"}[name]
    assert any(op.startswith(kind) for op in used.tensor), used.tensor
    assert (used.products, used.products_without) == (1, 0)
    assert 16 <= used.registers <= 512 and used.threads == 4 * GPUS[name].lanes
    assert used.warps >= 4 and 0 < used.shared <= GPUS[name].shared_block


def test_a_product_without_tensor_cores_is_seen() -> None:
    with recording() as found:
        toys.exact_product[(1,)](empty(32, 32, dtype=torch.float32), empty(32, 32), 32, **OPTIONS)
    used = measure(found.launches[0], GPUS["sm_90"])
    assert used.problems() == ["1 products without tensor cores"], used


def test_spills_and_oversize_are_seen() -> None:
    x = empty(128, 128)
    with recording() as found:
        toys.large[(1,)](x, empty(128, 128), 128, num_warps=1, enable_fp_fusion=True)
    used = measure(found.launches[0], GPUS["sm_80"])
    assert used.spills > 1000 and "spills" in used.problems()[-1]
    assert GPUS["sm_86"].occupancy(128, 32, 102400)[0] == 0


def test_unaligned_arguments_are_another_specialisation() -> None:
    """The capture takes Triton's own specialisation: 63 is not a multiple of 16."""
    aligned, odd = launched_product(128, 64, 64), launched_product(128, 63, 64)
    source, _ = aligned.source(GPUS["sm_90"])
    assert sum(bool(attribute) for attribute in source.attrs.values()) == 6
    source, _ = odd.source(GPUS["sm_90"])
    assert sum(bool(attribute) for attribute in source.attrs.values()) == 5
    assert aligned.key(GPUS["sm_90"]) != odd.key(GPUS["sm_90"])
    assert aligned.key(GPUS["sm_90"]) == launched_product(256, 64, 64).key(GPUS["sm_90"])


def test_torch_operations_of_host_code_count() -> None:
    x = empty(4, 8)
    with recording() as found:
        y = torch.zeros_like(x).view(32)
        (y * x.view(32)).float()
    assert [op.name for op in found.torch_ops] == ["zeros_like", "mul", "_to_copy"]
    assert [(op.read, op.written) for op in found.torch_ops[1:]] == [(128, 64), (64, 128)]
    assert found.torch_ops[0].written == 64


@pytest.mark.interpreted
@pytest.mark.parametrize("sample", [3, 1000])
def test_traffic_of_a_product(sample: int) -> None:
    """Blocks shared by programs count once; a ragged edge moves only what is inside."""
    counted = traffic(launched_product(256, 512, 128), sample)
    assert counted.flops == 2 * 256 * 512 * 128
    assert counted.read == {"x": 2 * 256 * 128, "y": 2 * 128 * 512}
    assert counted.written == {"z": 2 * 256 * 512}
    ragged = traffic(launched_product(100, 70, 64))
    assert ragged.written == {"z": 2 * 100 * 70} and ragged.read["y"] == 2 * 64 * 70


@pytest.mark.interpreted
def test_what_is_read_again_from_afar_counts_again() -> None:
    for n, times in ((1 << 12, 1), (1 << 18, 2)):
        with recording() as found:
            toys.twice[(1,)](empty(n, dtype=torch.float32), empty(n, dtype=torch.float32), n, 1024)
        counted = traffic(found.launches[0])
        assert counted.read == {"x": times * 4 * n} and counted.written == {"y": 4 * n}


@pytest.mark.interpreted
def test_the_walk_counts_what_the_interpreter_does() -> None:
    """Against an independent count: the addresses that a real run of the same launch touches."""
    from tests.kernels import interpreter

    m, n, k = 96, 80, 48
    x, y = torch.randn(m, k), torch.randn(k, n)
    z = torch.empty(m, n)
    toys.product[(2, 2)](x, y, z, m, n, k, 64, 64, 32)
    assert torch.allclose(z, x @ y, atol=1e-4)
    touched = interpreter.MEMORY.touched()
    with recording() as found:
        toys.product[(2, 2)](*(empty(*t.shape, dtype=t.dtype) for t in (x, y, z)), m, n, k, 64, 64, 32)
    counted = traffic(found.launches[0])
    assert touched == {(m * k, "read"), (k * n, "read"), (m * n, "written")}
    assert counted.read == {"x": 4 * m * k, "y": 4 * k * n} and counted.written == {"z": 4 * m * n}


def test_regressions_are_found(tmp_path: Path) -> None:
    def row(registers: int = 100, spills: int = 0, shared: int = 4096, moved: float = 200.0) -> Row:
        used = Resources(registers=registers, spills=spills, shared=shared, tensor={"HMMA": 4}, products=1)
        return Row("delta forward", 64, "sm_80", [Compiled("k", "", "f00", used)], 100, [Moved("k", moved)])

    save([row()], tmp_path / "baseline.json")
    kept = load(tmp_path / "baseline.json")
    assert kept.rows == [row()] and kept.triton == triton.__version__
    assert regressions([row(registers=90, shared=4200, moved=201.0)], kept.rows) == []
    for worse, says in (
        (row(registers=120), "registers 100 -> 120"),
        (row(spills=8), "spills 0 -> 8"),
        (row(shared=8192), "shared memory 4096 -> 8192"),
        (row(moved=220.0), "bytes over the minimum 2.00 -> 2.20"),
    ):
        (found,) = regressions([worse], kept.rows)
        assert found == f"delta forward, 64, sm_80: {'' if 'bytes' in says else 'k: '}{says}"
    assert regressions([Row("new forward", 64, "sm_80")], kept.rows) == [
        "new forward, 64, sm_80: not in the baseline"
    ]
