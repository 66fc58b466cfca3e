"""FusionPass: match, guard, replace, report; what `torch.compile(options={"post_grad_custom_pre_pass": ...})` takes."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import replace

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from fusionlib import engines as _engines  # noqa: F401  (registers the readers of engines' ops)
from fusionlib.devices import DEVICES, KERNEL_DEVICES
from fusionlib.fusions import BUILT_IN, Fusion
from fusionlib.match import Match, Miss, Unclaimed, match_graph
from fusionlib.match.graph import describe
from fusionlib.match.reasons import Stop
from fusionlib.rewrite import cached_records
from fusionlib.rewrite.cache_key import combined, fusions_hash, readers_hash, source_hash
from fusionlib.rewrite.demand import (
    Compiles,
    Expected,
    FusionError,
    by_compile,
    checked_expectation,
    demand,
    expects_nothing,
    is_part_of_a_graph,
    so_far,
)
from fusionlib.rewrite.guards import GraphFacts, check
from fusionlib.rewrite.journal import Journal
from fusionlib.rewrite.module_floats import ModuleFloats
from fusionlib.rewrite.plan import SitePlan, group_by_value, plan_site, wanted_values
from fusionlib.rewrite.replace import rewrite_site
from fusionlib.rewrite.report import CompileRecord, Origin, Report, Site

log = logging.getLogger(__name__)


class FusionPass(CustomGraphPass):
    """Rewrites a producer and the FP8 group quantisation of its value as one call, or says why not.

        fusion = fusionlib.FusionPass()
        model = torch.compile(model, options={"post_grad_custom_pre_pass": fusion})
        model(inputs)
        print(fusion.report())

    Args:
        devices: where to rewrite; GPUs only by default, since on CPU the op is the unfused reference.
        fusions: what to look for; all built-in ones by default. The first that can take a site gets it.
        expect: how many sites one compile fuses, in total or by fusion name: `{"gated_norm": 36}`. A compile that fuses
            more raises FusionError, also where graph breaks cut the model, at the first part that is one too many. One
            that fuses fewer raises at its end, unless the model is cut or nothing in it is recognised: any part could
            be the last, and other functions may be compiled with the same options. `check()` finds these.
        strict: raise FusionError on any refused site. Sites that no fusion starts from are not refused.

    A copy of a pass is the pass itself: tools that copy the options of a compile leave its report complete.
    """

    def __init__(
        self,
        devices: Iterable[str] = KERNEL_DEVICES,
        *,
        fusions: Iterable[Fusion] = BUILT_IN,
        expect: Expected = None,
        strict: bool = False,
    ) -> None:
        self.devices = (devices,) if isinstance(devices, str) else tuple(devices)
        unknown = set(self.devices) - set(DEVICES)
        if unknown:
            raise ValueError(f"devices={self.devices!r}: {sorted(unknown)} unknown; choose from {list(DEVICES)}")
        self.fusions = _checked_fusions(fusions)
        self.expect, self.strict = checked_expectation(expect, (fusion.name for fusion in self.fusions)), strict
        self._records: list[CompileRecord] = []
        self._empty = 0  # how many graphs had no site
        self._key: str | None = None  # the last key given to Inductor for its caches
        self._asked_in: Origin | None = None  # the compile in which Inductor asked for it
        self._compiles = Compiles()
        self._floats = ModuleFloats()

    def __copy__(self) -> FusionPass:
        return self

    def __deepcopy__(self, memo: dict[int, object]) -> FusionPass:
        return self

    def __call__(self, graph: fx.Graph) -> None:
        """Rewrite every possible site of `graph`, in place."""
        record = replace(self.rewrite(graph), origin=self._compiles.current())
        self._forget_what_was_given_up(record.origin)
        if not record.sites:
            self._empty += 1
            return
        self._log(record)
        self._demand(record)
        self._records.append(record)
        if self._key is not None:
            cached_records.write(self._key, record)

    def rewrite(self, graph: fx.Graph) -> CompileRecord:
        """Rewrite `graph` and return what was done, without logging or keeping it."""
        nodes = len(graph.nodes)
        self._floats.mark(graph)
        results = match_graph(graph, self.fusions)
        sites = {result.anchor: Site.of_miss(result) for result in results if isinstance(result, Miss)}
        sites |= {result.anchor: Site.of_unclaimed(result) for result in results if isinstance(result, Unclaimed)}
        matches = [result for result in results if isinstance(result, Match)]
        journal = Journal(graph)
        try:
            if matches:
                sites |= self._apply_all(matches, journal)
        except Exception as error:  # a pass must not break a compile; the refusal and the log report it
            log.exception("fusionlib failed to rewrite a graph")
            journal.undo()
            sites |= _refusals(matches, _failure(matches[0].anchor, error))
        return CompileRecord(tuple(sites[result.anchor] for result in results), nodes)

    def _apply_all(self, matches: list[Match], journal: Journal) -> dict[fx.Node, Site]:
        facts = GraphFacts.of(matches[0].anchor.graph)
        sites: dict[fx.Node, Site] = {}
        # All plans come first: no plan should see what another rewrite makes. The last site is rewritten first: it may
        # read what an earlier one returns, such as the sum of a residual, and follows when that is replaced.
        plans = [(group, _planned(group)) for group in group_by_value(matches)]
        for group, plan in sorted(plans, key=lambda each: facts.order[each[0][0].value], reverse=True):
            sites |= _refusals(group, plan) if isinstance(plan, Stop) else self._apply(plan, facts, journal)
        if any(site.fused for site in sites.values()):
            matches[0].anchor.graph.lint()
        return sites

    def _apply(self, plan: SitePlan, facts: GraphFacts, journal: Journal) -> dict[fx.Node, Site]:
        """Rewrite one site, or refuse it and leave the graph as it was; the record of each of its anchors."""
        matches = [q.match for q in plan.quants]
        done = {q.match.anchor: Site.of_match(q.match, q.spec) for q in plan.quants}
        begin = len(journal)
        try:
            check(plan, facts, self.devices)
            plan.wanted &= wanted_values(plan)  # a later site may have been all that read one
            rewrite_site(plan, journal)
            return done
        except Stop as stop:
            journal.undo(begin)
            return _refusals(matches, stop)
        except Exception as error:
            log.exception("fusionlib failed to rewrite %s", describe(matches[0].anchor))
            journal.undo(begin)
            return _refusals(matches, _failure(matches[0].anchor, error))

    def _log(self, record: CompileRecord) -> None:
        report = Report((record,))
        log.info("fusionlib: %s", report.summary)
        if report.refused and not report.fused:
            log.warning("fusionlib fused nothing although it recognised %d sites:\n%s", len(report.refused), report)

    def _demand(self, record: CompileRecord) -> None:
        """Raise FusionError if the current compile is known not to be what was asked for."""
        if self.expect is None and not self.strict:
            return
        cut = record.origin is not None and record.origin.cut
        more = cut or is_part_of_a_graph() or not record.recognised
        demand(self.expect, self.strict, so_far(self._records, record), more=more)

    def check(self) -> None:
        """Raise FusionError unless all compiles so far did what was asked for; for the end of a warm-up.

        A compile itself raises if it can tell that `expect` or `strict` is not met. What no single graph can tell is
        found here: that the parts of a model that graph breaks cut fuse too few together, that no graph had a site that
        a fusion starts from, or that the pass was never called. That, too, meets `expect=0`.
        """
        report = self.report()
        if not expects_nothing(self.expect) and not any(record.recognised for record in report.compiles):
            raise FusionError(
                f"no site in any graph that a fusion starts from: {len(report.unclaimed)} sites are unclaimed, "
                f"{self._empty} graphs came without a quantisation, the compile cache answered none with one. Is the "
                "pass in the options of the torch.compile that ran, did the model run, and does it quantise to FP8 "
                f"inside of what is compiled?\n{report}"
            )
        for compiled in by_compile(report.compiles):
            if any(record.recognised for record in compiled.compiles):
                demand(self.expect, self.strict, compiled)

    def report(self) -> Report:
        """What this pass did in all compiles so far, including those answered by a compile cache."""
        return Report(tuple(self._records))

    def take(self, record: CompileRecord) -> None:
        """Take the record of a compile that a cache answered; called by `cached_records`."""
        log.info("fusionlib: %s", Report((record,)).summary)
        self._forget_what_was_given_up(self._asked_in)
        self._records.append(replace(record, origin=self._asked_in))

    def _forget_what_was_given_up(self, origin: Origin | None) -> None:
        """Leave out graphs that Dynamo compiled and threw away, as it does where a backend has it trace again."""
        if origin is not None and origin.restart:
            self._records = [record for record in self._records if not origin.gave_up(record.origin)]

    def uuid(self) -> str | None:
        """The key for Inductor's caches: a hash over everything that can change the result.

        That is the sources, the readers of opaque ops, the fusions, the options, and the floats of modules that are
        inputs of the graph which is compiled at present (`module_floats`). None if a reader or a fusion cannot
        be hashed faithfully; Inductor then caches nothing.
        """
        readers, fusions = readers_hash(), fusions_hash(self.fusions)
        options = f"{sorted(self.devices)} {self.expect} {self.strict}"
        if floats := self._floats.guarded():
            options += f" {floats}"
        self._key = None
        if readers is not None and fusions is not None:
            self._key = combined((source_hash(), readers, fusions, options))
            cached_records.looked_up(self, self._key)
        self._asked_in = self._compiles.current()
        return self._key


def _checked_fusions(fusions: Iterable[Fusion]) -> tuple[Fusion, ...]:
    given = tuple(fusions)
    for fusion in given:
        if not isinstance(fusion, Fusion):
            raise TypeError(
                f"fusions={given!r}: {fusion!r} must be an instance of a subclass of fusionlib.fusions.Fusion"
            )
    names = [fusion.name for fusion in given]
    if len(set(names)) < len(names):
        raise ValueError(f"fusions of the names {names}: each must have a name of its own")
    return given


def _planned(matches: list[Match]) -> SitePlan | Stop:
    """The plan of a site, or why it cannot be rewritten."""
    try:
        return plan_site(matches)
    except Stop as stop:
        return stop
    except Exception as error:
        log.exception("fusionlib failed to plan %s", describe(matches[0].anchor))
        return _failure(matches[0].anchor, error)


def _failure(anchor: fx.Node, error: Exception) -> Stop:
    return Stop("internal_error", anchor, "a site that can be rewritten", f"{type(error).__name__}: {error}")


def _refusals(matches: Iterable[Match], stop: Stop) -> dict[fx.Node, Site]:
    """The same refusal for every one of `matches`."""
    misses = (
        Miss(m.anchor, stop.reason, stop.node, stop.expected, stop.found, m.pairs, m.fusion.name) for m in matches
    )
    return {miss.anchor: Site.of_miss(miss) for miss in misses}
