"""The texts of a node in a figure: its label, its hover text, its table row. Untrusted text is escaped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusionlab.observe.byte_ledger import Bytes
    from fusionlab.recorder import NodeRecord

LABEL_CHARACTERS = 19  # per line of a label; a longer name is broken at an underscore, or cut
SHORT_DTYPES = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "float64": "fp64",
    "float8_e4m3fn": "e4m3",
    "float8_e4m3fnuz": "e4m3fnuz",
    "float8_e5m2": "e5m2",
}
COLUMNS = ("node", "operation", "reads", "shape", "dtype", "bytes moved", "stride", "module", "source line")


@dataclass(frozen=True)
class Facts:
    """What is known about nodes besides their records: the bytes a call moves and the module it is from, by name."""

    bytes: Mapping[str, Bytes] = field(default_factory=dict)
    modules: Mapping[str, str] = field(default_factory=dict)


def operation(node: NodeRecord) -> str:
    """A short name of the operation: `mul` for `aten.mul.Tensor`, an input's name, `cast` for a change of dtype."""
    if node.op in ("placeholder", "get_attr", "output"):
        return node.name
    target = re.sub(r"^<(?:built-in )?(?:function|method) ([\w.]+).*>$", r"\1", node.target)
    parts = target.split(".")
    overload = len(parts) == 3 and parts[0] not in ("torch", "operator")  # namespace, op, overload
    name = parts[1] if overload else parts[-1]
    return "cast" if name == "convert_element_type" else name


def sizes(values: tuple[int | str, ...] | None) -> str:
    """Sizes as text: 16×128."""
    return "" if values is None else "×".join(map(str, values)) or "scalar"


def tensor(node: NodeRecord) -> str:
    """Shape and dtype in short; empty if the node is not a tensor."""
    return "" if node.dtype is None else f"{sizes(node.shape)} {SHORT_DTYPES.get(node.dtype, node.dtype)}"


def amount(count: int) -> str:
    """A human-readable number of bytes: 512 B, 65.5 kB, 1.05 MB (powers of ten)."""
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def moved(node: NodeRecord, facts: Facts) -> str:
    """The bytes of a call in words; empty if the ledger has none."""
    found = facts.bytes.get(node.name)
    if found is None:
        return ""
    return f"{amount(found.read)} read, {amount(found.written)} written" if found.total else "none"


def place(line: str | None) -> str:
    """`file:line` without folders; a notebook cell has a temporary file with a meaningless name."""
    if not line:
        return ""
    file, _, number = line.rpartition(":")
    name = re.split(r"[/\\]", file)[-1]
    cell = "ipykernel" in file or file.startswith("<ipython")
    return f"a cell of the notebook, line {number}" if cell else f"{name}:{number}"


def label(node: NodeRecord, facts: Facts | None = None) -> list[str]:
    """The lines in a node's box, escaped: operation, and shape with dtype; with `facts` the bytes it moves too."""
    lines = [*_broken(operation(node)), _cut(tensor(node), LABEL_CHARACTERS + 4)]
    if facts is not None and node.name in facts.bytes:
        total = facts.bytes[node.name].total
        lines.append(f"moves {amount(total)}" if total else "moves nothing")
    return [escape(line) for line in lines if line]


def _broken(name: str) -> list[str]:
    if len(name) <= LABEL_CHARACTERS:
        return [name]
    at = name.rfind("_", 0, LABEL_CHARACTERS) + 1 or LABEL_CHARACTERS
    return [name[:at], _cut(name[at:], LABEL_CHARACTERS)]


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def hover(node: NodeRecord, facts: Facts, note: str = "") -> str:
    """What hovering over a node shows, escaped, one fact per line."""
    rows = {
        "op": "" if node.op in ("placeholder", "output") else _cut(node.target, 70),
        "reads": _cut(", ".join(node.inputs), 70),
        "shape": sizes(node.shape),
        "dtype": node.dtype or "",
        "stride": "" if node.stride is None else str(list(node.stride)),
        "moves": moved(node, facts),
        "module": facts.modules.get(node.name, ""),
        "line": place(node.line),
    }
    lines = [f"<b>{escape(node.name)}</b>"] + [f"{key}: {escape(text)}" for key, text in rows.items() if text]
    return "<br>".join(lines + ([escape(note)] if note else []))


def row(node: NodeRecord, facts: Facts) -> list[str]:
    """The cells for COLUMNS; the table escapes them."""
    stride = "" if node.stride is None else str(list(node.stride))
    where = (facts.modules.get(node.name, ""), place(node.line))
    reads = ", ".join(node.inputs)
    target = node.op if node.op in ("placeholder", "output") else re.sub(r" at 0x\w+", "", node.target)
    return [node.name, target, reads, sizes(node.shape), node.dtype or "", moved(node, facts), stride, *where]
