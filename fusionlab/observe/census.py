"""What the compiled kernel is made of: an instruction census, and each source line beside its instructions.

Counts are of instructions in the listing, so for one thread (a loop's body counts once; the kernel has none). Inline
PTX counts like the compiler's own instructions. Only this module distinguishes the two vendors' terms for the same
things. Sources: NVIDIA's PTX ISA; AMD's CDNA3 and CDNA4 ISA documents; LLVM's AMDGPU backend for the assembler's
spellings.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import fusionlib
from fusionlab.observe.codegen import Listing

#: Of the kernel, in fusionlib/kernels: its own lines, and those that it shares with the other fused kernels.
_FILES = ("gated_norm.py", "units.py")

_PTX_INSTRUCTION = re.compile(r"^\s*(?:@!?%?\w+\s+)?([a-z][\w.:]*)\s*(.*?);", re.M)
_AMD_INSTRUCTION = re.compile(r"^\s+((?:s|v|ds|global|buffer|flat|scratch)_[a-z]\w*)[ \t]*([^;\n]*)", re.M)
_PTX_MEMORY = re.compile(r"(ld|st)\.(global|shared)(?:\.(?!v\d)[\w:]+)*?(?:\.v(\d))?\.[bsuf](\d+)$")
_AMD_MEMORY = re.compile(r"(?:global|buffer|flat)_(load|store)_(?:lds_)?(dword|[us]?byte|[us]?short)(?:x(\d))?")
_AMD_SHARED = re.compile(r"ds_(?:read|write|load|store)")
_AMD_UNIT = {"dword": 4, "ubyte": 1, "sbyte": 1, "byte": 1, "ushort": 2, "sshort": 2, "short": 2}

_FAMILIES = {
    "fp8_conversions": (r"cvt\.\S*e[45]m[32]x2\.f32", r"v_cvt_(?:scalef32_)?(?:pk|sr)_(?:fp8|bf8)_f32"),
    "shuffles": (r"shfl\.|redux\.", r"\w+_dpp|ds_bpermute|ds_permute|ds_swizzle|v_permlane"),
    "barriers": (r"bar\.|barrier\.", r"s_barrier"),
    "divisions": (r"div\.rn\.f32", r"v_div_fixup_f32"),
    "reciprocals": (r"div\.(?:approx|full)\.|rcp\.", r"v_rcp_f32"),
    "fused_multiply_adds": (r"fma\.rn\.", r"v_(?:pk_)?(?:fma|fmac)_f32"),
}


@dataclass(frozen=True)
class Census:
    """The instructions of one listing.

    Args:
        target: a key of `codegen.TARGETS`.
        instructions: all of them.
        loads, stores: of global memory, as (bytes, count) by width; kernel arguments are not included.
        shared: loads from and stores to shared memory (LDS).
        fp8_conversions: from float32 to FP8, each of two values.
        shuffles: exchanges between lanes (shfl; DPP, permute and swizzle).
        barriers: of the whole block.
        divisions: correctly rounded divisions that the compiler was asked for; on AMD each is a sequence that ends in
            one v_div_fixup. A quotient that the kernel computes with multiply-adds counts as multiply-adds.
        reciprocals: approximate divisions and reciprocals outside `divisions`.
        fused_multiply_adds: instructions; a packed one on AMD counts once. On AMD, `divisions` include some.
        registers, spills: per thread, as in `codegen.Resources`.
    """

    target: str
    instructions: int
    loads: tuple[tuple[int, int], ...]
    stores: tuple[tuple[int, int], ...]
    shared: int
    fp8_conversions: int
    shuffles: int
    barriers: int
    divisions: int
    reciprocals: int
    fused_multiply_adds: int
    registers: int
    spills: int

    def text(self) -> str:
        """One line per entry."""
        lines = []
        for field, value in vars(self).items():
            if isinstance(value, tuple):
                value = ", ".join(f"{count} x {width} bytes" for width, count in value) or "none"
            lines.append(f"{field.replace('_', ' '):<20} {value}")
        return "\n".join(lines)


def instructions(listing: Listing) -> list[tuple[str, str]]:
    """The assembly's instructions in order, each as mnemonic and operands; directives and labels do not count."""
    return _instructions(listing.assembly, "ptx" in listing.stages)


def _instructions(text: str, ptx: bool) -> list[tuple[str, str]]:
    pattern = _PTX_INSTRUCTION if ptx else _AMD_INSTRUCTION
    return [(name, operands.strip()) for name, operands in pattern.findall(text)]


def census(listing: Listing) -> Census:
    """Count the instructions of `listing`; registers and spills come from its binary."""
    ptx = "ptx" in listing.stages
    found = [name for name, _ in instructions(listing)]
    memory = Counter(access for access in map(_ptx_access if ptx else _amd_access, found) if access)
    counts = {
        family: sum(bool(re.match(patterns[not ptx], name)) for name in found) for family, patterns in _FAMILIES.items()
    }
    if not ptx:  # the division sequence starts with a reciprocal
        counts["reciprocals"] -= counts["divisions"]
    resources = listing.resources()
    return Census(
        target=listing.target,
        instructions=len(found),
        loads=_widths(memory, "load"),
        stores=_widths(memory, "store"),
        shared=sum(count for (kind, _), count in memory.items() if kind == "shared"),
        registers=resources.registers,
        spills=resources.spills,
        **counts,
    )


def _widths(memory: Counter[tuple[str, int]], kind: str) -> tuple[tuple[int, int], ...]:
    return tuple(sorted((width, count) for (what, width), count in memory.items() if what == kind))


def _ptx_access(name: str) -> tuple[str, int] | None:
    """The kind of memory access of a PTX instruction, and its bytes."""
    found = _PTX_MEMORY.match(name)
    if found is None:
        return None
    operation, space, lanes, bits = found.groups()
    if space == "shared":
        return "shared", 0
    return {"ld": "load", "st": "store"}[operation], int(lanes or 1) * int(bits) // 8


def _amd_access(name: str) -> tuple[str, int] | None:
    """The kind of memory access of an AMDGCN instruction, and its bytes."""
    if _AMD_SHARED.match(name):
        return "shared", 0  # widths of shared memory accesses are not distinguished
    found = _AMD_MEMORY.match(name)
    if found is None:
        return None
    operation, unit, times = found.groups()
    return operation, _AMD_UNIT[unit] * int(times or 1)


def kernel_source() -> dict[str, list[str]]:
    """The lines of the kernel's files in `fusionlib/kernels`; line n of a file is element n - 1."""
    folder = Path(fusionlib.__file__).with_name("kernels")
    return {file: folder.joinpath(file).read_text(encoding="utf-8").splitlines() for file in _FILES}


def by_source_line(listing: Listing) -> dict[tuple[str, int], list[str]]:
    """The instructions for each line of the kernel's files, by file and line number, in listing order.

    Read from the assembly's `.loc` directives. Code inlined from elsewhere (Triton's `sum`, quant.py, ptx.py) counts
    for the calling line; inlined helpers of these files count for their own lines. Instructions without a line (mostly
    loading arguments) are left out.
    """
    ptx = "ptx" in listing.stages
    lines: dict[tuple[str, int], list[str]] = {}
    current = None
    place = re.compile(rf"\b({'|'.join(map(re.escape, _FILES))}):(\d+)")
    for text in listing.assembly.splitlines():
        if text.lstrip().startswith(".loc"):
            # The comment shows the chain of inlined calls: "standard.py:263:15 @[ gated_norm.py:284:39 ]"
            found = place.search(text)
            current = (found[1], int(found[2])) if found and int(found[2]) else None
        elif current is not None:
            for name, operands in _instructions(text, ptx):
                lines.setdefault(current, []).append(f"{name} {operands}".strip())
    return dict(sorted(lines.items()))


@dataclass(frozen=True)
class SourceLine:
    """A line of one of the kernel's files, and its instructions on each target: target -> instructions."""

    file: str
    number: int
    source: str
    became: dict[str, list[str]]


def side_by_side(*listings: Listing) -> list[SourceLine]:
    """The lines of the kernel's files that have instructions on any of the listings' targets, by file and number."""
    source = kernel_source()
    became = {listing.target: by_source_line(listing) for listing in listings}
    places = sorted({place for lines in became.values() for place in lines if place[1] <= len(source[place[0]])})
    return [
        SourceLine(
            *place, source[place[0]][place[1] - 1], {target: lines.get(place, []) for target, lines in became.items()}
        )
        for place in places
    ]
