"""The kernel compiled offline: PTX and AMDGCN for GPUs that are not present.

Triton needs no device to compile for one. The kernel's claims about instructions rest on these listings (load widths,
conversion instructions, spills), and can be checked on a laptop.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fusionlib.contract import unit_size
from fusionlib.kernels.row_layout import RowLayout
from fusionlib.spec import GatedNorm, GroupQuant

#: name -> (backend, architecture, threads in a warp)
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
    "gfx950": ("hip", "gfx950", 64),
}

_POINTEE = {
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float32: "fp32",
    torch.int32: "i32",
    torch.float8_e4m3fn: "fp8e4nv",
    torch.float8_e4m3fnuz: "fp8e4b8",
    torch.float8_e5m2: "fp8e5",
}


@dataclass(frozen=True)
class Resources:
    """What one thread of the compiled kernel uses: registers, and bytes or registers spilled to memory."""

    registers: int
    spills: int


@dataclass(frozen=True)
class Listing:
    """One compilation: every textual stage that Triton keeps, by name (`ttir`, `ttgir`, `llir`, `ptx` or `amdgcn`)."""

    target: str
    stages: dict[str, str]
    binary: bytes

    @property
    def assembly(self) -> str:
        """The last stage in text form: PTX or AMDGCN."""
        return self.stages["ptx"] if "ptx" in self.stages else self.stages["amdgcn"]

    def count(self, pattern: str) -> int:
        """How many instructions of the assembly match the regular expression `pattern`."""
        return len(re.findall(pattern, self.assembly))

    def resources(self) -> Resources:
        """Registers and spills, from the AMDGCN metadata or, for PTX, from the assembled cubin."""
        if "amdgcn" in self.stages:
            found = dict(re.findall(r"\.(\w+_count):\s+(\d+)", self.assembly))
            spills = int(found["vgpr_spill_count"]) + int(found["sgpr_spill_count"])
            return Resources(int(found["vgpr_count"]), spills)
        usage = _cubin_usage(self.binary)
        return Resources(usage["REG"], usage["LOCAL"] + usage["STACK"])


def _cubin_usage(cubin: bytes) -> dict[str, int]:
    """Resource usage of a cubin, from Triton's bundled cuobjdump: REG, STACK, SHARED, LOCAL, ..."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"([A-Z]+):(\d+)", text)}


def compile_fused(
    target: str,
    norm: GatedNorm,
    quant: GroupQuant,
    *,
    hidden: int = 4096,
    x_dtype: torch.dtype = torch.bfloat16,
    gate_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
    gate: RowLayout | None = None,
    rows: int | None = None,
    num_warps: int | None = None,
    store_normed: bool = False,
) -> Listing:
    """Compile the fused kernel for `target` (a key of `TARGETS`) without a GPU.

    Pointers and token strides are assumed divisible by 16, and the number of rows a multiple of a program's, as for the
    shapes that models use. `gate` overrides the gate's layout (contiguous by default); `rows` and `num_warps` override
    the launch heuristic's choice for a prefill.

    Raises:
        ValueError: for a target that is not in `TARGETS`.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fusionlib.kernels import gated_norm as kernel
    from fusionlib.kernels import launch
    from fusionlib.kernels.config import LaunchConfig, choose_launch

    if target not in TARGETS:
        raise ValueError(f"target {target!r} is unknown; choose one of {', '.join(TARGETS)}")
    unit = unit_size(norm, quant)
    config = choose_launch(1 << 20, unit, threads_per_warp=TARGETS[target][2])
    config = LaunchConfig(rows or config.rows, num_warps or config.num_warps)
    contiguous = RowLayout(hidden, hidden, 0, hidden, 0)
    constants = launch.fused_constants(
        norm,
        quant,
        hidden,
        contiguous,
        gate or contiguous,
        weight_elements=norm.norm_size if norm.norm_before_gate else hidden,
        has_bias=False,
        store_normed=store_normed,
        config=config,
        units=config.rows,
        ptx=TARGETS[target][0] == "cuda",
    )
    scale_dtype = torch.int32 if quant.scale_layout == "packed_int32" else torch.float32
    pointers = {
        "x_ptr": x_dtype,
        "gate_ptr": gate_dtype or x_dtype,
        "weight_ptr": weight_dtype or x_dtype,
        "bias_ptr": x_dtype,
        "codes_ptr": quant.dtype,
        "scale_ptr": scale_dtype,
        "normed_ptr": norm.output_dtype(x_dtype) if store_normed else quant.dtype,
    }
    signature: dict[str, str] = {}
    for name in kernel.rms_norm_gated_group_quant_kernel.arg_names:
        if name in pointers:
            signature[name] = f"*{_POINTEE[pointers[name]]}"
        elif name in constants:
            signature[name] = "constexpr"
        else:
            signature[name] = "fp32" if name in ("eps", "floor") else "i32"
    names = list(signature)
    aligned = [*pointers, *(n for n in names if n.startswith(("x_stride", "gate_stride")))]
    source = ASTSource(
        fn=kernel.rms_norm_gated_group_quant_kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options: dict[str, Any] = {
        "num_warps": config.num_warps,
        "enable_fp_fusion": launch.may_contract(constants),
    }
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    text = {name: stage for name, stage in compiled.asm.items() if isinstance(stage, str)}
    binary = compiled.asm["cubin" if "cubin" in compiled.asm else "hsaco"]
    return Listing(target, text, binary)
