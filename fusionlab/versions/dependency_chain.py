"""The longest chain: instructions of a PTX listing that must wait for each other.

With one token there is almost nothing to move, and this chain determines the time: every instruction on it starts when
the previous one has its result. Each instruction counts as one here; their latencies differ by two orders of magnitude
between an addition and a load from memory, which a listing does not show. PTX for these kernels is straight-line code.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass

from fusionlab.observe.codegen import Listing

_INSTRUCTION = re.compile(r"^\s*(?:@!?(%[a-z]+\d+)\s+)?([a-z][\w.:]*)\s*([^;\n]*);", re.M)
_REGISTER = re.compile(r"%[a-z]+\d+")
# Inline PTX: a block with its own registers, whose names are arbitrary and mean something else in the next block.
_BLOCK = re.compile(r"^\s*\{\s*\n((?:\s*\.reg\s+\.\w+\s+\w+\s*;\s*\n)+)(.*?)^\s*\}\s*$", re.M | re.S)
_OWN = re.compile(r"\.reg\s+\.\w+\s+(\w+)\s*;")
_NO_RESULT = ("st.", "bar.", "barrier.", "bra", "ret")
#: Kinds of instruction that a reader sees in a chain: name -> pattern of the mnemonic.
KINDS = {
    "loads from memory": r"ld\.global",
    "exchanges between lanes": r"shfl\.|redux\.",
    "through shared memory": r"(?:ld|st)\.shared|bar\.",
    "divisions and roots": r"div\.|rcp\.|rsqrt\.|sqrt\.|ex2\.",
    "conversions": r"cvt\.",
}


@dataclass(frozen=True)
class Chain:
    """The longest chain of a listing: its mnemonics in order, and how many instructions the listing has."""

    mnemonics: tuple[str, ...]
    instructions: int

    def kinds(self) -> dict[str, int]:
        """How many links are of each of `KINDS`; the rest is `arithmetic and addresses`."""
        found = Counter(
            next((kind for kind, pattern in KINDS.items() if re.match(pattern, name)), "arithmetic and addresses")
            for name in self.mnemonics
        )
        return {kind: found[kind] for kind in (*KINDS, "arithmetic and addresses")}


def longest_chain(listing: Listing) -> Chain:
    """The longest chain of dependent instructions of a PTX `listing`.

    A value depends on the registers it is computed from; a load from shared memory on the barrier before it, and a
    barrier on all stores to shared memory before it. Barriers that only prevent shared memory from being overwritten
    too early count like the others.

    Raises:
        ValueError: for a listing without PTX, or with a loop.
    """
    if "ptx" not in listing.stages:
        raise ValueError(f"target {listing.target} has no PTX; chains are read from PTX")
    depth: list[int] = []
    before: list[int | None] = []
    names: list[str] = []
    writer: dict[str, int] = {}
    barrier: int | None = None
    shared_stores: list[int] = []
    for predicate, name, operands in _INSTRUCTION.findall(_one_scope(listing.stages["ptx"])):
        if name.startswith("bra") and "$L__BB" in operands and not predicate:
            raise ValueError("the listing has a loop; chains are read from straight lines")
        result, sources = _operands(name, operands)
        waits_for = [writer[register] for register in [*sources, predicate] if register in writer]
        if name.startswith(("bar.", "barrier.")):
            waits_for += shared_stores
            shared_stores = []
        elif name.startswith("ld.shared") and barrier is not None:
            waits_for.append(barrier)
        here = len(depth)
        last = max(waits_for, key=lambda i: depth[i], default=None)
        depth.append(1 if last is None else depth[last] + 1)
        before.append(last)
        names.append(name)
        for register in result:
            writer[register] = here
        if name.startswith("st.shared"):
            shared_stores.append(here)
        elif name.startswith(("bar.", "barrier.")):
            barrier = here
    path: list[str] = []
    link: int | None = max(range(len(depth)), key=depth.__getitem__, default=None)
    while link is not None:
        path.append(names[link])
        link = before[link]
    return Chain(tuple(reversed(path)), len(names))


def _one_scope(text: str) -> str:
    """PTX in which registers declared inside a block are renamed to unique names like all others."""
    numbers = itertools.count()

    def renamed(block: re.Match[str]) -> str:
        body = re.sub(r"//[^\n]*", "", block[2])
        for name in _OWN.findall(block[1]):
            body = re.sub(rf"(?<![%.\w]){name}(?![.\w])", f"%own{next(numbers)}", body)
        return body

    return _BLOCK.sub(renamed, text)


def _operands(name: str, text: str) -> tuple[list[str], list[str]]:
    """The registers that an instruction writes, and those that it reads."""
    if name.startswith(_NO_RESULT):
        return [], _REGISTER.findall(text)
    if text.lstrip().startswith("{"):
        first, _, rest = text.partition("}")
    else:
        first, _, rest = text.partition(",")
    return _REGISTER.findall(first), _REGISTER.findall(rest)
