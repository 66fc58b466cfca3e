"""What `fusionlib asm` prints: the fused kernel compiled for other GPUs, as listings, a census or side by side."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch

from fusionlab.observe.codegen import TARGETS, Listing
from fusionlib.contract import MAX_UNIT, unit_size
from fusionlib.spec import GatedNorm, GroupQuant

NORMS: dict[str, Callable[[int], GatedNorm]] = {
    "qwen3_next": GatedNorm.qwen3_next,
    "vllm": GatedNorm.vllm,
    "kimi_linear": GatedNorm.kimi_linear,
    "mamba2": GatedNorm.mamba2,
}
QUANTS: dict[str, Callable[[int, torch.dtype], GroupQuant]] = {
    "vllm": lambda group, dtype: GroupQuant.vllm(group, dtype=dtype),
    "vllm_native": lambda group, dtype: GroupQuant.vllm_native(group, dtype=dtype),
    "aiter": lambda group, dtype: GroupQuant.aiter(group, dtype=dtype),
    "deepgemm": lambda group, dtype: GroupQuant.deepgemm(group, dtype=dtype),
    "deepgemm_blackwell": lambda group, dtype: GroupQuant.deepgemm(group, blackwell=True, dtype=dtype),
    "torchao": lambda group, dtype: GroupQuant.torchao(group, dtype=dtype),
}
STAGES = ("ttir", "ttgir", "llir", "ptx", "amdgcn", "census")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def run(namespace: argparse.Namespace) -> int:
    """Print the requested output: 0; or an error on stderr: 2 if the request is invalid, 1 without Triton."""
    try:
        if namespace.compare:
            print(compared(*(_compiled(target, namespace) for target in namespace.compare)))
            return 0
        targets = namespace.target or _targets_with(namespace.stage)
        for target in targets:
            print(_section(_compiled(target, namespace), namespace.stage))
        return 0
    except ModuleNotFoundError as error:
        print(f"fusionlib asm: {error.name} is not installed; it compiles with Triton 3.6 or newer", file=sys.stderr)
        return 1
    except ValueError as error:
        print(f"fusionlib asm: {error}", file=sys.stderr)
        return 2


def _targets_with(stage: str) -> list[str]:
    backend = {"ptx": "cuda", "amdgcn": "hip"}.get(stage)
    return [target for target, (name, _, _) in TARGETS.items() if backend in (None, name)]


def _compiled(target: str, namespace: argparse.Namespace) -> Listing:
    from fusionlab.observe.codegen import compile_fused

    dtype = torch.float8_e4m3fnuz if target == "gfx942" else torch.float8_e4m3fn  # each one's hardware format
    norm = NORMS[namespace.norm](namespace.norm_size)
    quant = QUANTS[namespace.quant](namespace.group_size, dtype)
    unit = unit_size(norm, quant)
    if namespace.hidden < 1 or namespace.hidden % unit:
        raise ValueError(
            f"hidden={namespace.hidden}, norm size {norm.norm_size} and group size {quant.group_size} do not fit: the "
            f"two sizes must divide hidden, and with them their least common multiple, {unit}"
        )
    if unit > MAX_UNIT:
        raise ValueError(
            f"norms of {norm.norm_size} and groups of {quant.group_size} make units of {unit} elements, above the "
            f"kernel's {MAX_UNIT}; choose smaller ones"
        )
    return compile_fused(target, norm, quant, hidden=namespace.hidden, x_dtype=DTYPES[namespace.dtype])


def _section(listing: Listing, stage: str) -> str:
    if stage == "census":
        from fusionlab.observe.census import census

        return census(listing).text() + "\n"
    if stage not in listing.stages:
        has = ", ".join(name for name in STAGES if name in listing.stages)
        raise ValueError(f"target {listing.target} has no stage {stage!r}; it has {has} and census")
    return f"=== {listing.target} {stage}\n{listing.stages[stage]}"


def compared(left: Listing, right: Listing) -> str:
    """Each source line of the kernel, and below it the instructions for both targets, side by side."""
    from fusionlab.observe.census import side_by_side

    width = 58
    lines = [f"{left.target:<{width}} | {right.target}"]
    for line in side_by_side(left, right):
        lines.append(f"\n{line.file}:{line.number}: {line.source.strip()}")
        columns = [line.became[left.target], line.became[right.target]]
        for row in range(max(map(len, columns))):
            one, other = (column[row].replace("\t", " ") if row < len(column) else "" for column in columns)
            lines.append(f"  {_cut(one, width - 2):<{width - 2}} | {_cut(other, width)}".rstrip())
    return "\n".join(lines)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
