"""The versions compiled for GPUs that are not present, for a census of each."""

from __future__ import annotations

import torch

from fusionlab.observe.codegen import _POINTEE, TARGETS, Listing, compile_fused
from fusionlab.versions.case import Launch
from fusionlab.versions.registry import Version
from fusionlib.kernels.config import choose_launch
from fusionlib.kernels.row_layout import row_layout
from fusionlib.spec import GatedNorm, GroupQuant


def _known(target: str) -> None:
    if target not in TARGETS:
        raise ValueError(f"target {target!r} is unknown; choose one of {', '.join(TARGETS)}")


def compile_launch(launch: Launch, target: str) -> Listing:
    """Compile one launch's kernel for `target`; its tensors may be on the `meta` device.

    As in a real launch, pointers and integers that are multiples of 16 are marked as such.

    Raises:
        ValueError: for a target that is not in `observe.codegen.TARGETS`.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    _known(target)
    names = launch.kernel.arg_names
    signature, aligned = {}, []
    for name in names:
        value = launch.arguments.get(name)
        if name in launch.constants:
            signature[name] = "constexpr"
        elif isinstance(value, torch.Tensor):
            signature[name] = f"*{_POINTEE[value.dtype]}"
            aligned.append(name)
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
            if isinstance(value, int) and value % 16 == 0:
                aligned.append(name)
    source = ASTSource(
        fn=launch.kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in launch.constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": launch.num_warps, "enable_fp_fusion": False}
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    text = {name: stage for name, stage in compiled.asm.items() if isinstance(stage, str)}
    return Listing(target, text, compiled.asm["cubin" if "cubin" in compiled.asm else "hsaco"])


def compile_version(
    version: Version,
    target: str = "sm_90",
    *,
    norm: GatedNorm | None = None,
    quant: GroupQuant | None = None,
    tokens: int = 8192,
    heads: int = 32,
    x_dtype: torch.dtype = torch.bfloat16,
) -> list[Listing]:
    """Compile each kernel of `version` as it is launched for `tokens` tokens of `heads` heads.

    The gate is contiguous, or for versions that support strides, Qwen3-Next's with strides (heads * 384, 768, 1).
    Version 7 uses the launch that the library would choose.

    Raises:
        ValueError: for a target that is not in `observe.codegen.TARGETS`.
    """
    norm, quant = norm or GatedNorm.qwen3_next(), quant or GroupQuant()
    hidden = heads * norm.norm_size
    _known(target)
    x, gate = torch.empty(2, tokens, heads, norm.norm_size, dtype=x_dtype, device="meta")
    if version.strided:
        two = 2 * norm.norm_size
        gate = torch.empty(tokens, heads // 2, 3 * two, dtype=x_dtype, device="meta")[..., -two:]
    if version.launches is None:
        unit = max(norm.norm_size, quant.group_size)
        config = choose_launch(tokens * hidden // unit, unit, TARGETS[target][2])
        launch = {"rows": config.rows, "num_warps": config.num_warps}
        return [compile_fused(target, norm, quant, hidden=hidden, x_dtype=x_dtype, gate=row_layout(gate), **launch)]
    weight = torch.empty(norm.norm_size, dtype=x_dtype, device="meta")
    codes = torch.empty(tokens, hidden, dtype=quant.dtype, device="meta")
    scale = torch.empty(tokens, heads, dtype=torch.float32, device="meta")
    launches = version.launches(x, gate, weight, norm, quant, codes, scale)
    return [compile_launch(launch, target) for launch in launches]
