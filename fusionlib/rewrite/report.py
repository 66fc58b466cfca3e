"""What one compile did: a record per site, and the report over all compiles of a pass."""

from __future__ import annotations

import base64
import html
import json
import re
import zlib
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Literal

from torch import fx

from fusionlib.match.graph import describe, numel, source_line, tensor_text, value
from fusionlib.match.reasons import REASONS
from fusionlib.match.result import Match, Miss, Pair, Unclaimed
from fusionlib.match.sizes import times
from fusionlib.match.source_lines import module_path, source_text
from fusionlib.match.unknown import call_name
from fusionlib.rewrite.model_parts import distinct_sites
from fusionlib.rewrite.site_classes import grouped, spell_modules
from fusionlib.spec import GroupQuant

Outcome = Literal["fused", "refused", "unclaimed"]
_NODE = re.compile(r"%\w+")


@dataclass(frozen=True)
class Site:
    """A place where a value is quantised, and what the pass did with it.

    Args:
        outcome: fused; refused, by the fusion that recognised the producer, with a reason; or unclaimed, where no
            fusion of the pass starts from the producer.
        anchor: the node that the quantisation ends in.
        node: the anchor of a fused site, the node that stopped a refused one, the producer of an unclaimed one.
        line: the source line of `node`.
        pairs: the (role, node name) pairs that matching found, in order: how far it got.
        what: what was read at a fused site, or what fusing an unclaimed one would save.
        code, expected, found: of a refusal. For an unclaimed site, `found` is what produced the value, and `code` is
            why its quantisation could not be read, if it could not; `found` is empty and `what` says it all where a
            product takes the value unquantised.
        nodes: (name, operation, dtype and shape, source text) of each of these nodes, before any rewriting.
        fusion: the name of the fusion that fused or refused it.
        module: the path of the module that quantises, as in `layers.3.linear_attn.out_proj`; empty outside of one.
    """

    outcome: Outcome
    anchor: str
    node: str
    line: str | None
    pairs: tuple[tuple[str, str], ...]
    what: str = ""
    code: str = ""
    expected: str = ""
    found: str = ""
    nodes: tuple[tuple[str, str, str, str], ...] = ()
    fusion: str = ""
    module: str = ""

    @classmethod
    def of_match(cls, match: Match, quant: GroupQuant) -> Site:
        """The record of a match that was rewritten to a call with `quant`."""
        masked = any(node is not None for node in match.reading.per_token.values())
        producer = match.fusion.spell(match.reading.spec) + (", times one number per token" if masked else "")
        return cls(
            "fused",
            match.anchor.name,
            match.anchor.name,
            source_line(match.anchor),
            _names(match.pairs),
            what=f"{producer} -> {spell_quant(quant)}",
            nodes=_described([match.anchor, *(p.node for p in match.pairs)]),
            fusion=match.fusion.name,
            module=module_path(match.anchor),
        )

    @classmethod
    def of_miss(cls, miss: Miss) -> Site:
        """The record of a refusal."""
        return cls(
            "refused",
            miss.anchor.name,
            miss.node.name,
            source_line(miss.node) or source_line(miss.anchor),
            _names(miss.pairs),
            code=miss.reason.code,
            expected=miss.expected,
            found=miss.found,
            nodes=_described([miss.anchor, *(p.node for p in miss.pairs), miss.node]),
            fusion=miss.fusion,
            module=module_path(miss.anchor),
        )

    @classmethod
    def of_unclaimed(cls, site: Unclaimed) -> Site:
        """The record of a site that no fusion starts from."""
        return cls(
            "unclaimed",
            site.anchor.name,
            site.producer.name,
            source_line(site.producer) or source_line(site.anchor),
            _names(site.pairs),
            what=_inside(site) if site.inside else _saving(site.value),
            code=site.why,
            found="" if site.inside else describe(site.producer),
            nodes=_described([site.anchor, *(p.node for p in site.pairs), site.producer]),
            module=module_path(site.anchor),
        )

    @property
    def fused(self) -> bool:
        """Whether the site was rewritten."""
        return self.outcome == "fused"

    @property
    def refused(self) -> bool:
        """Whether a fusion recognised the site but could not take it."""
        return self.outcome == "refused"

    @property
    def unclaimed(self) -> bool:
        """Whether no fusion of the pass starts from what is quantised."""
        return self.outcome == "unclaimed"

    @property
    def sentence(self) -> str:
        """What the reason means; empty if there is none."""
        return REASONS[self.code].sentence if self.code in REASONS else ""

    @property
    def fix(self) -> str:
        """What would fix it; empty if there is no reason."""
        return REASONS[self.code].fix if self.code in REASONS else ""

    @property
    def kind(self) -> Hashable:
        """What a recompile of the same code says again."""
        return self.outcome, self.fusion, self.code, self.module, self.line

    def __str__(self) -> str:
        return _text((self,))


@dataclass(frozen=True)
class Origin:
    """Where a graph comes from: the `attempt`-th compile of the function that Dynamo counts as `frame`.

    Dynamo starts counting again after a reset; `number` is the compile's number in this process. `cut` if graph breaks
    were seen: the model is then spread over several frames. `model` is the code or class of what was compiled, `code`
    that of the frame. `restart` counts how often Dynamo gave up this compile so far and began it again.
    """

    frame: int
    attempt: int
    number: int
    cut: bool
    model: object = None
    code: object = None
    restart: int = 0

    def gave_up(self, earlier: Origin | None) -> bool:
        """Whether Dynamo threw away what `earlier` is the origin of, when it began this compile again."""
        return earlier is not None and earlier.number == self.number and earlier.restart < self.restart


@dataclass(frozen=True)
class CompileRecord:
    """The sites of one compiled graph; `cached` if the artefact came from a compile cache and no pass ran.

    `origin` says which compile the graph belongs to, if that is known.
    """

    sites: tuple[Site, ...]
    nodes: int = 0
    cached: bool = False
    origin: Origin | None = field(default=None, compare=False)

    @property
    def recognised(self) -> bool:
        """Whether a fusion starts from any of the sites."""
        return any(not site.unclaimed for site in self.sites)

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
    """What a pass did in all compiles so far. `str(report)` reads as text, a notebook shows a table.

    `compiles` has a record of every compiled graph. The sites are each of a model once: where Dynamo compiled it again,
    for other inputs or after a reset, they are not counted again. Instances of one class, and functions made of one
    code, are one model.
    """

    compiles: tuple[CompileRecord, ...] = field(default=())

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites)

    @cached_property
    def _sites(self) -> list[Site]:
        return distinct_sites(self.compiles, lambda site: site.kind)

    @property
    def fused(self) -> list[Site]:
        """The sites that were rewritten."""
        return [site for site in self if site.fused]

    @property
    def refused(self) -> list[Site]:
        """The sites that a fusion recognised but could not take, nearest misses first: by how far matching got."""
        return sorted((site for site in self if site.refused), key=lambda site: -len(site.pairs))

    @property
    def unclaimed(self) -> list[Site]:
        """The sites that no fusion of the pass starts from."""
        return [site for site in self if site.unclaimed]

    @property
    def fused_by(self) -> dict[str, int]:
        """How many sites each fusion fused, by its name."""
        return dict(Counter(site.fusion for site in self.fused))

    @property
    def summary(self) -> str:
        """One line: how many sites were fused, refused and unclaimed, in how many graphs, how many of them cached."""
        cached = sum(compiled.cached for compiled in self.compiles)
        graphs = f"{len(self.compiles)} graph{'s' * (len(self.compiles) != 1)}"
        by = self.fused_by
        fused = f"{len(self.fused)} fused"
        if len(by) > 1:
            fused += f" ({', '.join(f'{count} {name}' for name, count in by.items())})"
        unclaimed = f", {len(self.unclaimed)} unclaimed" if self.unclaimed else ""
        again = sum(len(compiled.sites) for compiled in self.compiles) - len(self._sites)
        repeated = f"; {again} of them again" if again else ""
        return (
            f"{fused}, {len(self.refused)} refused{unclaimed} in {graphs} ({cached} from the compile cache){repeated}"
        )

    @property
    def classes(self) -> list[list[Site]]:
        """Fused, then refused, then unclaimed sites, those that differ in nothing but their layer together."""
        return [
            several
            for sites in (self.fused, self.refused, self.unclaimed)
            for several in grouped(sites, _without_layer)
        ]

    def __str__(self) -> str:
        return "\n".join([self.summary, *map(_text, self.classes)])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in ("site", "line", "result", "detail", "fix"))
        rows = "".join(map(_row, self.classes))
        return f"<p>{html.escape(self.summary)}</p><table><tr>{head}</tr>{rows}</table>"


def _described(nodes: list[fx.Node]) -> tuple[tuple[str, str, str, str], ...]:
    """Each node once, in words."""
    return tuple((node.name, str(node.target), tensor_text(node), source_text(node)) for node in dict.fromkeys(nodes))


def _names(pairs: tuple[Pair, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((pair.role, pair.node.name) for pair in pairs)


def _saving(quantised: fx.Node) -> str:
    """What a fusion would save: its producer writes the value and the quantisation reads it."""
    val = value(quantised)
    if val is None:
        return "a fusion would save one write and one read of the value"
    count = numel(quantised)
    per = "" if isinstance(count, int) else " per token"
    return f"a fusion would save {2 * times(count) * val.element_size():,} bytes{per}, one write and one read"


def _inside(site: Unclaimed) -> str:
    """What a product does that takes a value in 16 bits."""
    return (
        f"{call_name(site.anchor)} takes a {tensor_text(site.value)} with an FP8 weight and quantises it inside, if "
        "at all: no quantisation is beside it that could be fused; fusionlib.models.quantize_linears puts layers with "
        "one in its place"
    )


def _without_layer(site: Site) -> Hashable:
    """What the sites of one class have in common.

    Names of nodes are those of one graph; but where no module tells sites apart, only they do.
    """
    found, what = _NODE.sub("", site.found), _NODE.sub("", site.what)
    node = "" if site.module or site.unclaimed else site.anchor
    return site.outcome, site.fusion, site.code, site.line, what, site.expected, found, bool(site.module), node


def _text(sites: Sequence[Site]) -> str:
    """The sites of one class; of several, the first one's nodes."""
    site = sites[0]
    several = f"{len(sites)} sites" if len(sites) > 1 else f"%{site.anchor}"
    modules = spell_modules([each.module for each in sites])
    inside, where = f" in {modules}" * bool(modules), f" at {site.line}" * bool(site.line)
    if site.fused:
        return f"fused    {several}{inside}{where}: {site.what}"
    if site.unclaimed and not site.found:
        return f"unclaimed {several}{inside}{where}: {site.what}"
    if site.unclaimed:
        unread = f"; its quantisation cannot be read either [{site.code}]" if site.code else ""
        return f"unclaimed {several}{inside}{where}: no fusion starts from {site.found}; {site.what}{unread}"
    return (
        f"refused  {several}{inside} [{site.code}] at %{site.node}{where}\n"
        f"         {site.sentence}\n"
        f"         expected {site.expected}; found {site.found}\n"
        f"         fix: {site.fix}"
    )


def _row(sites: Sequence[Site]) -> str:
    site = sites[0]
    detail = site.what or f"{site.sentence} Expected {site.expected}; found {site.found}."
    if site.unclaimed:
        detail = f"No fusion starts from {site.found}; {site.what}." if site.found else f"{site.what}."
    result = site.code if site.refused else site.outcome
    name = spell_modules([each.module for each in sites]) or site.anchor
    count = f"{len(sites)} sites: " * (len(sites) > 1)
    cells = (f"{count}{name}", site.line or "", result, detail, site.fix if site.refused else "")
    return "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"


def spell_quant(quant: GroupQuant) -> str:
    """A quantisation in one readable line."""
    floor = "no floor" if quant.floor is None else f"{quant.floor_on} >= {quant.floor:g}"
    scale = f"{quant.scale_format} scale{' by reciprocal' * (quant.scale_division == 'reciprocal')}"
    scale += " rounded" * quant.round_scale + " (NaN: the largest)" * (quant.nan_scale == "largest")
    dtype = str(quant.dtype).removeprefix("torch.")
    return f"{dtype} per {quant.group_size} ({floor}, {quant.division}, {scale}, {quant.scale_layout})"
