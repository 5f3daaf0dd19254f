"""What a compiled kernel asks of a GPU, read from its machine code."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linrec.evals.kernels.capture import Launch
from linrec.evals.kernels.targets import Gpu

SASS = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.M)
GCN = re.compile(r"^\s+((?:s|v|ds|global|buffer|flat|scratch)_\w+)", re.M)
TENSOR = re.compile(r"[HIQOBD]MMA\b|[HQIB]GMMA\b|UTC\w*MMA|v_s?mfmac?_")
WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


@dataclass
class Resources:
    """Of one kernel on one GPU. Spills: bytes a thread moves to and from local memory, each place in the code once."""

    registers: int = 0
    spills: int = 0
    shared: int = 0
    threads: int = 0
    warps: int = 0  # resident on a multiprocessor
    limiter: str = ""
    tensor: dict[str, int] = field(default_factory=dict)  # tensor-core instructions in the code, by kind
    products: int = 0  # tl.dot in the code
    products_without: int = 0  # of these, computed without tensor cores
    fits: bool = True
    stub: bool = False  # the compiler gave up and left a bare trap
    error: str = ""

    def problems(self, allow_spills: bool = False) -> list[str]:
        """What makes this kernel unusable or slow, in words."""
        if self.error:
            return [self.error]
        found = []
        if self.stub:
            found.append("compiled to a bare trap")
        if not self.fits:
            found.append(f"a block does not fit: {self.shared} B shared, {self.registers} registers")
        if self.spills and not allow_spills:
            found.append(f"spills {self.spills} B")
        if self.products_without or (self.products and not self.tensor):
            found.append(f"{self.products_without or self.products} products without tensor cores")
        return found


def measure(launch: Launch, gpu: Gpu) -> Resources:
    """Compile and measure; a compiler's failure is an ``error`` in the result."""
    import triton

    try:
        source, options = launch.source(gpu)
        compiled = triton.compile(source, target=gpu.target, options=options)
    except Exception as error:  # compilers fail in many ways, and the other kernels should still be seen
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return Resources(error=f"{type(error).__name__}: {' '.join(lines[-2:])[-200:]}")
    return _read_amd(compiled, gpu) if gpu.is_amd else _read_nvidia(compiled, gpu)


def _read_nvidia(compiled: Any, gpu: Gpu) -> Resources:
    text = _disassembled(compiled.asm["cubin"])
    opcodes = SASS.findall(text)
    spills = sum(_bytes(op) for op in opcodes if op.startswith(("STL", "LDL")))
    # A kernel with specialised warps launches more of them than it was asked for; its PTX has the number.
    ptx = compiled.asm["ptx"]
    threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", ptx)
    # More tensor memory than there is compiles to a lone trap that fails when it is loaded, and looks thrifty.
    stub = len([op for op in opcodes if op != "NOP"]) < 16 and bool(re.search(r"^\s*trap;", ptx, re.M))
    registers = int(re.search(r"\bREG:(\d+)", text)[1])  # type: ignore[index]
    warp_threads = compiled.metadata.num_warps * gpu.lanes
    return _resources(
        compiled, gpu, opcodes, registers, spills, int(threads[1]) if threads else warp_threads, stub
    )


def _read_amd(compiled: Any, gpu: Gpu) -> Resources:
    text = compiled.asm["amdgcn"]
    facts = {name: int(value) for name, value in re.findall(r"\.(\w+):\s+(\d+)\s*$", text, re.M)}
    spills = 8 * facts.get("vgpr_spill_count", 0)  # each register is stored and loaded
    threads = compiled.metadata.num_warps * gpu.lanes
    return _resources(compiled, gpu, GCN.findall(text), facts["vgpr_count"], spills, threads, stub=False)


def _resources(
    compiled: Any, gpu: Gpu, opcodes: list[str], registers: int, spills: int, threads: int, stub: bool
) -> Resources:
    shared = compiled.metadata.shared
    warps, limiter = gpu.occupancy(
        threads, registers, shared, getattr(compiled.metadata, "tmem_size", None) or 0
    )
    kinds = Counter(match[0].rstrip("_") for op in opcodes if (match := TENSOR.match(op)))
    return Resources(
        registers=registers,
        spills=spills,
        shared=shared,
        threads=threads,
        warps=warps,
        limiter=limiter,
        tensor=dict(kinds),
        products=len(re.findall(r"\btt\.dot\b", compiled.asm["ttir"])),
        # A product that keeps the layout of plain arithmetic is a loop of multiplications and additions.
        products_without=len(re.findall(r"\btt\.dot\b.*->.*#blocked", compiled.asm["ttgir"])),
        fits=shared <= gpu.shared_block and warps > 0,
        stub=stub,
    )


def _disassembled(cubin: bytes) -> str:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-res-usage", "-sass", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def _bytes(opcode: str) -> int:
    """Bytes a thread moves by a load or store."""
    return next((WIDTHS[part] for part in opcode.split(".") if part in WIDTHS), 4)
