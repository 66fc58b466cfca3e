"""FusionPass: match, guard, replace, report; what `torch.compile(options={"post_grad_custom_pre_pass": ...})` takes."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from fusionlib.match import Match, Miss, match_graph
from fusionlib.match.graph import describe
from fusionlib.match.reasons import Stop
from fusionlib.rewrite import cached_records
from fusionlib.rewrite.cache_key import combined, readers_hash, source_hash
from fusionlib.rewrite.guards import GraphFacts, check
from fusionlib.rewrite.journal import Journal
from fusionlib.rewrite.plan import SitePlan, plan_sites
from fusionlib.rewrite.replace import rewrite_site
from fusionlib.rewrite.report import CompileRecord, Report, Site, spell

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
        expect: raise FusionError unless every compiled graph with a site in it has exactly this many fused ones. A
            graph without any is let through, since Dynamo may cut a model into several: `check()` says whether there
            was a site at all.
        strict: raise FusionError on any refused site.

    A copy of a pass is the pass itself: tools that copy the options of a compile leave its report complete.
    """

    def __init__(self, devices: Iterable[str] = ("cuda",), *, expect: int | None = None, strict: bool = False) -> None:
        self.devices = (devices,) if isinstance(devices, str) else tuple(devices)
        unknown = set(self.devices) - set(DEVICES)
        if unknown:
            raise ValueError(f"devices={self.devices!r}: {sorted(unknown)} unknown; choose from {list(DEVICES)}")
        if expect is not None and (not isinstance(expect, int) or expect < 0):
            raise ValueError(f"expect={expect!r} must be a number of fused sites, 0 or more, or None")
        self.expect, self.strict = expect, strict
        self._records: list[CompileRecord] = []
        self._empty = 0  # how many graphs had no site
        self._key: str | None = None  # what Inductor got for its caches last

    def __copy__(self) -> FusionPass:
        return self

    def __deepcopy__(self, memo: dict) -> FusionPass:
        return self

    def __call__(self, graph: fx.Graph) -> None:
        """Rewrite every site of `graph` that can be, in place."""
        record = self.rewrite(graph)
        if not record.sites:
            self._empty += 1
            return
        self._log(record)
        self._demand(record)
        self._records.append(record)
        if self._key is not None:
            cached_records.write(self._key, record)

    def rewrite(self, graph: fx.Graph) -> CompileRecord:
        """Rewrite `graph` and say what was done; neither logs nor remembers."""
        nodes = len(graph.nodes)
        results = match_graph(graph)
        sites = {result.anchor: Site.of_miss(result) for result in results if isinstance(result, Miss)}
        matches = [result for result in results if isinstance(result, Match)]
        journal = Journal(graph)
        try:
            if matches:
                sites |= self._apply_all(matches, journal)
        except Exception as error:  # a pass must not break a compile; the refusal and the log say that it happened
            log.exception("fusionlib failed to rewrite a graph")
            journal.undo()
            sites |= _refusals(matches, _failure(matches[0].anchor, error))
        return CompileRecord(tuple(sites[result.anchor] for result in results), nodes)

    def _apply_all(self, matches: list[Match], journal: Journal) -> dict[fx.Node, Site]:
        facts, sites = GraphFacts.of(matches[0].anchor.graph), {}
        for site in plan_sites(matches):
            sites |= self._apply(site, facts, journal)
        if any(site.fused for site in sites.values()):
            matches[0].anchor.graph.lint()
        return sites

    def _apply(self, site: SitePlan, facts: GraphFacts, journal: Journal) -> dict[fx.Node, Site]:
        """Rewrite one site, or refuse it and leave the graph as it was; the record of each of its anchors."""
        done = {q.match.anchor: Site.of_match(q.match, spell(q.match.norm.spec, q.spec)) for q in site.quants}
        begin = len(journal)
        try:
            check(site, facts, self.devices)
            rewrite_site(site, journal)
            return done
        except Stop as stop:
            journal.undo(begin)
            return _refusals((q.match for q in site.quants), stop)
        except Exception as error:
            log.exception("fusionlib failed to rewrite %s", describe(site.first.anchor))
            journal.undo(begin)
            return _refusals((q.match for q in site.quants), _failure(site.first.anchor, error))

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

    def check(self) -> None:
        """Raise FusionError unless all compiles so far together did what was asked for; for the end of a warm-up.

        A compile raises by itself where `expect` or `strict` is not met in a graph with a site. What no single compile
        can know is found here: that no graph had a site at all, or that the pass was never called. `expect=0` is met by
        that, too.
        """
        report = self.report()
        if self.expect != 0 and not any(record.sites for record in report.compiles):
            raise FusionError(
                f"no site in any graph: {self._empty} graphs came without a quantisation, the compile cache answered "
                "none with one. Is the pass in the options of the torch.compile that ran, did the model run, and does "
                "it quantise to FP8 inside of what is compiled?"
            )
        for record in report.compiles:
            self._demand(record)

    def report(self) -> Report:
        """What this pass did in all compiles so far, those answered by a compile cache included."""
        cached_records.settle()
        return Report(tuple(self._records))

    def take(self, record: CompileRecord) -> None:
        """Take the record of a compile that a cache answered; called by the cached_records."""
        log.info("fusionlib: %s", Report((record,)).summary)
        self._records.append(record)

    def uuid(self) -> str | None:
        """What Inductor keys its caches with: a hash over everything that can change the result.

        That is the sources, the readers of opaque ops and the options. None, with which Inductor caches nothing, where
        a registered reader cannot be hashed faithfully.
        """
        readers = readers_hash()
        options = f"{sorted(self.devices)} {self.expect} {self.strict}"
        self._key = None if readers is None else combined((source_hash(), readers, options))
        if self._key is not None:
            cached_records.asked(self, self._key)
        return self._key


def _failure(anchor: fx.Node, error: Exception) -> Stop:
    return Stop("internal_error", anchor, "a site that can be rewritten", f"{type(error).__name__}: {error}")


def _refusals(matches: Iterable[Match], stop: Stop) -> dict[fx.Node, Site]:
    """The same refusal for every one of `matches`."""
    misses = (Miss(m.anchor, stop.reason, stop.node, stop.expected, stop.found, m.pairs) for m in matches)
    return {miss.anchor: Site.of_miss(miss) for miss in misses}
