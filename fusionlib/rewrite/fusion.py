"""FusionPass: match, guard, replace, report; what `torch.compile(options={"post_grad_custom_pre_pass": ...})` takes."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from fusionlib.match import Match, Miss, match_graph
from fusionlib.match.graph import describe
from fusionlib.match.reasons import REASONS, Stop
from fusionlib.rewrite import ledger
from fusionlib.rewrite.guards import GraphFacts, check
from fusionlib.rewrite.plan import SitePlan, plan_sites
from fusionlib.rewrite.replace import rewrite_site
from fusionlib.rewrite.report import CompileRecord, Report, Site, spell
from fusionlib.rewrite.sources import combined, readers_hash, source_hash

log = logging.getLogger(__name__)

DEVICES = ("cpu", "cuda")


class FusionError(RuntimeError):
    """`expect=` or `strict=` was not met; the message is the report of the graph."""


class FusionPass(CustomGraphPass):
    """Rewrites gated RMS norm -> reshape -> FP8 group quantisation to one call, or says why not.

        fusion = fusionlib.FusionPass()
        model = torch.compile(model, options={"post_grad_custom_pre_pass": fusion})
        model(inputs)
        print(fusion.report())

    Args:
        devices: where to rewrite; GPUs only by default, since on CPU the op is the unfused reference.
        expect: raise FusionError unless every compiled graph with a site in it has exactly this many fused ones.
        strict: raise FusionError on any refused site.
    """

    def __init__(self, devices: Iterable[str] = ("cuda",), *, expect: int | None = None, strict: bool = False) -> None:
        self.devices = (devices,) if isinstance(devices, str) else tuple(devices)
        unknown = set(self.devices) - set(DEVICES)
        if unknown:
            raise ValueError(f"devices={self.devices!r}: {sorted(unknown)} unknown; choose from {list(DEVICES)}")
        self.expect, self.strict = expect, strict
        self._records: list[CompileRecord] = []
        ledger.settle(self)

    def __call__(self, graph: fx.Graph) -> None:
        """Rewrite every site of `graph` that can be, in place."""
        record = self.rewrite(graph)
        if not record.sites:
            return
        self._log(record)
        self._demand(record)
        self._records.append(record)
        ledger.write(self, record)

    def rewrite(self, graph: fx.Graph) -> CompileRecord:
        """Rewrite `graph` and say what was done; neither logs nor remembers."""
        nodes = len(graph.nodes)
        results = match_graph(graph)
        sites = {result.anchor: Site.of_miss(result) for result in results if isinstance(result, Miss)}
        facts = GraphFacts.of(graph) if any(isinstance(r, Match) for r in results) else GraphFacts()
        for site in plan_sites([result for result in results if isinstance(result, Match)]):
            sites.update(self._apply(site, facts))
        if any(site.fused for site in sites.values()):
            graph.lint()
        return CompileRecord(tuple(sites[result.anchor] for result in results), nodes)

    def _apply(self, site: SitePlan, facts: GraphFacts) -> dict[fx.Node, Site]:
        """Rewrite one site, or refuse it; the record of each of its anchors."""
        done = {q.match.anchor: Site.of_match(q.match, spell(q.match.norm.spec, q.spec)) for q in site.quants}
        try:
            check(site, facts, self.devices)
            rewrite_site(site)
            return done
        except Stop as stop:
            reason, node, expected, found = stop.reason, stop.node, stop.expected, stop.found
        except Exception as error:  # a pass must not break a compile; the refusal and the log say that it happened
            log.exception("fusionlib failed to rewrite %s", describe(site.first.anchor))
            reason, node, expected = REASONS["internal_error"], site.first.anchor, "a site that can be rewritten"
            found = f"{type(error).__name__}: {error}"
        misses = (Miss(q.match.anchor, reason, node, expected, found, q.match.pairs) for q in site.quants)
        return {miss.anchor: Site.of_miss(miss) for miss in misses}

    def _log(self, record: CompileRecord) -> None:
        report = Report((record,))
        log.info("fusionlib: %s", report.summary)
        if not report.fused:
            log.warning("fusionlib fused nothing although it saw %d sites:\n%s", len(record.sites), report)

    def _demand(self, record: CompileRecord) -> None:
        report = Report((record,))
        if self.expect is not None and len(report.fused) != self.expect:
            raise FusionError(f"expected {self.expect} fused sites, got {len(report.fused)}\n{report}")
        if self.strict and report.refused:
            raise FusionError(f"strict: {len(report.refused)} sites refused\n{report}")

    def report(self) -> Report:
        """What this pass did in all compiles so far, those answered by a compile cache included."""
        ledger.settle(self)
        return Report(tuple(self._records))

    def take(self, record: CompileRecord) -> None:
        """Take the record of a compile that a cache answered; called by the ledger."""
        log.info("fusionlib: %s", Report((record,)).summary)
        self._records.append(record)

    def digest(self) -> str:
        """A hash over everything that can change the result: sources, readers of opaque ops, options."""
        options = f"{sorted(self.devices)} {self.expect} {self.strict}"
        return combined((source_hash(), readers_hash(), options))

    def uuid(self) -> str:
        """What Inductor keys its caches with."""
        ledger.settle(self)
        return self.digest()
