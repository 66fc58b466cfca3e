"""The kernels compiled offline: PTX and AMDGCN for GPUs that are not present.

Triton needs no device to compile for one. The kernel's claims about instructions rest on these listings (load widths,
conversion instructions, spills), and can be checked on a laptop.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fusionlib.contract import unit_size
from fusionlib.kernels.row_layout import RowLayout
from fusionlib.spec import ActAndMul, GatedNorm, GroupQuant, RMSNorm

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
    torch.int64: "i64",
    torch.bool: "i1",
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
    from fusionlib.kernels import constants as kernel_constants
    from fusionlib.kernels.config import choose_launch
    from fusionlib.kernels.gated_norm import rms_norm_gated_group_quant_kernel

    config = _config(target, choose_launch, unit_size(norm, quant), rows, num_warps)
    contiguous = RowLayout(hidden, hidden, 0, hidden, 0)
    constants = kernel_constants.fused_constants(
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
    pointers = _outputs(quant, norm.output_dtype(x_dtype) if store_normed else None, "normed_ptr") | {
        "x_ptr": x_dtype,
        "gate_ptr": gate_dtype or x_dtype,
        "weight_ptr": weight_dtype or x_dtype,
        "bias_ptr": x_dtype,
    }
    return _compiled(target, rms_norm_gated_group_quant_kernel, constants, pointers, config)


def compile_rms_norm(
    target: str,
    norm: RMSNorm,
    quant: GroupQuant,
    *,
    hidden: int | None = None,
    x_dtype: torch.dtype = torch.bfloat16,
    residual_dtype: torch.dtype | None = torch.bfloat16,
    token_factor_dtype: torch.dtype | None = None,
    tokens: int = 1 << 20,
    num_warps: int | None = None,
    store_normed: bool = False,
) -> Listing:
    """The same for the RMS norm of rows of `hidden` elements, by default one norm; it also stores the sum.

    `residual_dtype` is None for a norm without a residual, `token_factor_dtype` for one without a mask; `tokens` is
    what the launch heuristic chooses for.

    Raises:
        ValueError: for a target that is not in `TARGETS`.
    """
    from fusionlib.kernels import constants as kernel_constants
    from fusionlib.kernels.config import choose_norm_launch
    from fusionlib.kernels.rms_norm import rms_norm_group_quant_kernel

    unit, hidden = unit_size(norm, quant), hidden or norm.norm_size
    config = _config(target, choose_norm_launch, unit, None, num_warps, tokens)
    contiguous, has_residual = RowLayout(hidden, hidden, 0, hidden, 0), residual_dtype is not None
    constants = kernel_constants.rms_norm_constants(
        norm,
        quant,
        hidden,
        contiguous,
        contiguous if has_residual else None,
        weight_elements=norm.norm_size,
        has_token_factor=token_factor_dtype is not None,
        store_normed=store_normed,
        store_sum=has_residual,
        config=config,
        units=config.rows,
        ptx=TARGETS[target][0] == "cuda",
    )
    pointers = _outputs(quant, norm.output_dtype(x_dtype) if store_normed else None, "normed_ptr") | {
        "x_ptr": x_dtype,
        "residual_ptr": residual_dtype or x_dtype,
        "weight_ptr": x_dtype,
        "token_factor_ptr": token_factor_dtype or x_dtype,
        "sum_ptr": residual_dtype or quant.dtype,
    }
    return _compiled(target, rms_norm_group_quant_kernel, constants, pointers, config)


def compile_act_and_mul(
    target: str,
    act: ActAndMul,
    quant: GroupQuant,
    *,
    hidden: int = 4096,
    x_dtype: torch.dtype = torch.bfloat16,
    layout: RowLayout | None = None,
    store_value: bool = False,
) -> Listing:
    """The same for a product with an activation; `layout` is that of both tensors, contiguous by default.

    Raises:
        ValueError: for a target that is not in `TARGETS`.
    """
    from fusionlib.kernels import constants as kernel_constants
    from fusionlib.kernels.act_and_mul import act_and_mul_group_quant_kernel
    from fusionlib.kernels.config import choose_launch

    config = _config(target, choose_launch, quant.group_size)
    layout = layout or RowLayout(hidden, hidden, 0, hidden, 0)
    constants = kernel_constants.act_and_mul_constants(
        act,
        quant,
        hidden,
        layout,
        layout,
        store_value=store_value,
        config=config,
        units=config.rows,
        ptx=TARGETS[target][0] == "cuda",
    )
    pointers = _outputs(quant, act.output_dtype(x_dtype) if store_value else None, "value_ptr")
    pointers |= {"x_ptr": x_dtype, "gate_ptr": x_dtype}
    return _compiled(target, act_and_mul_group_quant_kernel, constants, pointers, config)


def _config(
    target: str,
    choose: Callable[[int, int, int], Any],
    unit: int,
    rows: int | None = None,
    num_warps: int | None = None,
    units: int = 1 << 20,
) -> Any:
    """What the launch heuristic `choose` says for `units` units, with `rows` and `num_warps` in its place if given."""
    from fusionlib.kernels.config import LaunchConfig

    if target not in TARGETS:
        raise ValueError(f"target {target!r} is unknown; choose one of {', '.join(TARGETS)}")
    config = choose(units, unit, TARGETS[target][2])
    return LaunchConfig(rows or config.rows, num_warps or config.num_warps)


def _outputs(quant: GroupQuant, value: torch.dtype | None, name: str) -> dict[str, torch.dtype]:
    """The dtypes of what every kernel writes; `value`, of the pointer `name`, is None if it is not stored."""
    scale = torch.int32 if quant.scale_layout == "packed_int32" else torch.float32
    return {"codes_ptr": quant.dtype, "scale_ptr": scale, name: value or quant.dtype}


def _compiled(
    target: str, kernel: Any, constants: dict[str, Any], pointers: dict[str, torch.dtype], config: Any
) -> Listing:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fusionlib.kernels import constants as kernel_constants

    signature: dict[str, str] = {}
    for name in kernel.arg_names:
        if name in pointers:
            signature[name] = f"*{_POINTEE[pointers[name]]}"
        elif name in constants:
            signature[name] = "constexpr"
        else:
            signature[name] = "fp32" if name in ("eps", "floor") else "i32"
    names = list(signature)
    aligned = [*pointers, *(n for n in names if "_stride" in n and not n.startswith("scale"))]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options: dict[str, Any] = {
        "num_warps": config.num_warps,
        "enable_fp_fusion": kernel_constants.may_contract(constants),
    }
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    text = {name: stage for name, stage in compiled.asm.items() if isinstance(stage, str)}
    binary = compiled.asm["cubin" if "cubin" in compiled.asm else "hsaco"]
    return Listing(target, text, binary)
