"""NVIDIA's machine code: what the assembler makes of a listing's PTX, instruction by instruction.

PTX is an intermediate language: one `div.rn.f32` becomes a dozen instructions, and a `mov` may become none. Triton's
bundled disassembler reads the actual instructions (SASS) from the binary. Names follow NVIDIA's CUDA Binary Utilities,
"Instruction Set Reference" (Hopper).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path

from fusionlab.observe.codegen import Listing

_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]+\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)", re.M)
#: Kinds of instruction that a reader sees: name -> pattern of the mnemonic; the first match counts.
KINDS = {
    "memory": r"(?:LD|ST)G\b",
    "exchanges and shared memory": r"SHFL\b|BAR\b|(?:LD|ST)S\b",
    "slow unit: exp, reciprocals, single conversions": r"MUFU\b|F2F\.|[FI]2[FI]\b",
    "conversions in pairs": r"F2FP\b",
    "float arithmetic": r"F(?:ADD|MUL|FMA|MNMX|SETP|SEL|CHK)\b|HMUL2\b|HFMA2\.(?!MMA)|HADD2\b",
}
REST = "integers, addresses, moves"


def machine_code(listing: Listing) -> list[str]:
    """The mnemonics of one thread's path through a kernel without loops, in order, up to its end.

    Code after the last instruction (the slow paths of divisions, for denormal values; padding) is left out.

    Raises:
        ValueError: for a listing that is not NVIDIA's.
        FileNotFoundError: if Triton has no bundled disassembler.
    """
    if "ptx" not in listing.stages:
        raise ValueError(f"target {listing.target} is not NVIDIA's; read its assembly, which is the machine's own")
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "kernel.cubin")
        path.write_bytes(listing.binary)
        command = [knobs.nvidia.nvdisasm.path, "-c", str(path)]
        return mnemonics(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def mnemonics(text: str) -> list[str]:
    """The mnemonics of a disassembly up to the first unconditional EXIT."""
    found: list[str] = []
    for condition, name in _INSTRUCTION.findall(text):
        if name != "NOP":
            found.append(name)
        if name == "EXIT" and not condition:
            break
    return found


def by_kind(names: list[str]) -> dict[str, int]:
    """How many mnemonics are of each of `KINDS`, and `REST`."""
    found = Counter(next((kind for kind, pattern in KINDS.items() if re.match(pattern, name)), REST) for name in names)
    return {kind: found[kind] for kind in (*KINDS, REST)}
