"""What one compile did: a record per site, and the report over all compiles of a pass."""

from __future__ import annotations

import base64
import html
import json
import zlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import torch
from torch import fx

from fusionlib.match.graph import source_line, tensor_text
from fusionlib.match.reasons import REASONS
from fusionlib.match.result import Match, Miss
from fusionlib.match.source_lines import source_text
from fusionlib.spec import GatedNorm, GroupQuant


@dataclass(frozen=True)
class Site:
    """A place where the fusion could apply: fused, or refused with a reason.

    `pairs` are the (role, node name) that matching found, in its order: how far it got. `node` is the anchor of a fused
    site and the node that stopped a refused one; `line` is its source line. `nodes` tells of each of these nodes
    (name, operation, dtype and shape, source text), as it was before any rewriting.
    """

    fused: bool
    anchor: str
    node: str
    line: str | None
    pairs: tuple[tuple[str, str], ...]
    what: str = ""
    code: str = ""
    expected: str = ""
    found: str = ""
    nodes: tuple[tuple[str, str, str, str], ...] = ()

    @classmethod
    def of_match(cls, match: Match, what: str) -> Site:
        """The record of a match that was rewritten."""
        pairs = tuple((p.role, p.node.name) for p in match.pairs)
        nodes = _told([match.anchor, *(p.node for p in match.pairs)])
        return cls(True, match.anchor.name, match.anchor.name, source_line(match.anchor), pairs, what, nodes=nodes)

    @classmethod
    def of_miss(cls, miss: Miss) -> Site:
        """The record of a refusal."""
        pairs = tuple((p.role, p.node.name) for p in miss.pairs)
        line = source_line(miss.node) or source_line(miss.anchor)
        return cls(
            False,
            miss.anchor.name,
            miss.node.name,
            line,
            pairs,
            code=miss.reason.code,
            expected=miss.expected,
            found=miss.found,
            nodes=_told([miss.anchor, *(p.node for p in miss.pairs), miss.node]),
        )

    @property
    def sentence(self) -> str:
        """What the reason means; empty for a fused site."""
        return "" if self.fused else REASONS[self.code].sentence

    @property
    def fix(self) -> str:
        """What would fix it; empty for a fused site."""
        return "" if self.fused else REASONS[self.code].fix

    def __str__(self) -> str:
        where = f" at {self.line}" if self.line else ""
        if self.fused:
            return f"fused    %{self.anchor}{where}: {self.what}"
        return (
            f"refused  %{self.anchor} [{self.code}] at %{self.node}{where}\n"
            f"         {self.sentence}\n"
            f"         expected {self.expected}; found {self.found}\n"
            f"         fix: {self.fix}"
        )


@dataclass(frozen=True)
class CompileRecord:
    """The sites of one compiled graph; `cached` if the artefact came from a compile cache and no pass ran."""

    sites: tuple[Site, ...]
    nodes: int = 0
    cached: bool = False

    def encode(self) -> str:
        """The record as one short ASCII word, to travel with a compiled artefact."""
        data = json.dumps({"sites": [asdict(site) for site in self.sites], "nodes": self.nodes})
        return base64.urlsafe_b64encode(zlib.compress(data.encode(), 9)).decode()

    @classmethod
    def decode(cls, text: str) -> CompileRecord:
        """The record that `encode` wrote, read from a cache."""
        data = json.loads(zlib.decompress(base64.urlsafe_b64decode(text)))
        tables = ("pairs", "nodes")
        sites = [Site(**{**s, **{name: tuple(map(tuple, s[name])) for name in tables}}) for s in data["sites"]]
        return cls(tuple(sites), data["nodes"], cached=True)


@dataclass(frozen=True)
class Report:
    """What a pass did in all compiles so far. `str(report)` reads as text, a notebook shows a table."""

    compiles: tuple[CompileRecord, ...] = field(default=())

    def __iter__(self) -> Iterator[Site]:
        return (site for compiled in self.compiles for site in compiled.sites)

    @property
    def fused(self) -> list[Site]:
        """The sites that were rewritten."""
        return [site for site in self if site.fused]

    @property
    def refused(self) -> list[Site]:
        """The sites that were not, nearest misses first: those that matching got furthest with."""
        return sorted((site for site in self if not site.fused), key=lambda site: -len(site.pairs))

    @property
    def summary(self) -> str:
        """One line: how many sites were fused and refused, in how many graphs, how many of them cached."""
        cached = sum(compiled.cached for compiled in self.compiles)
        graphs = f"{len(self.compiles)} graph{'s' * (len(self.compiles) != 1)}"
        return f"{len(self.fused)} fused, {len(self.refused)} refused in {graphs} ({cached} from the compile cache)"

    def __str__(self) -> str:
        return "\n".join([self.summary, *map(str, self.fused), *map(str, self.refused)])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("site", "line", "result", "detail", "fix"))
        rows = "".join(_row(site) for site in (*self.fused, *self.refused))
        return f"<p>{html.escape(self.summary)}</p><table><tr>{head}</tr>{rows}</table>"


def _told(nodes: list[fx.Node]) -> tuple[tuple[str, str, str, str], ...]:
    """Each node once, in words."""
    return tuple((node.name, str(node.target), tensor_text(node), source_text(node)) for node in dict.fromkeys(nodes))


def _row(site: Site) -> str:
    detail = site.what or f"{site.sentence} Expected {site.expected}; found {site.found}."
    cells = (site.anchor, site.line or "", "fused" if site.fused else site.code, detail, site.fix)
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def _dtype_text(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def spell(norm: GatedNorm, quant: GroupQuant) -> str:
    """Both specs in one line, in the reader's words."""
    order = "norm, gate" if norm.norm_before_gate else "gate, norm"
    floor = "no floor" if quant.floor is None else f"{quant.floor_on} >= {quant.floor:g}"
    to = f" to {_dtype_text(norm.out_dtype)}" if norm.out_dtype is not None else ""
    scale = f"{quant.scale_format} scale{' by reciprocal' * (quant.scale_division == 'reciprocal')}"
    parts = (
        f"{order} ({norm.activation}, {norm.norm_size} elements, eps {norm.eps:g}",
        f"rounds at {norm.rounding_text or 'no point'}{to})",
        f"{_dtype_text(quant.dtype)} per {quant.group_size} ({floor}, {quant.division}",
        f"{scale}{' rounded' * quant.round_scale}, {quant.scale_layout})",
    )
    return f"{parts[0]}, {parts[1]} -> {parts[2]}, {parts[3]}"
