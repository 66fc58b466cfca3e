"""Judges any fusion: everything the pass promises, tried on spellings of its producer.

The author gives the producer as models write it, in one or more spellings, and neighbours that must be left alone. The
quantisations after it, layouts, further consumers, dynamic sizes, warm caches and mutants come from here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import fx

from fusionlib import op as ops
from fusionlib import reference
from fusionlib.fusions import Fusion
from fusionlib.rewrite import FusionPass, Site
from fusionlib.spec import GroupQuant
from fusionlib.testing.mutants import capture, compared, tensors_of, verdicts
from fusionlib.testing.roundings import roundings_kept
from fusionlib.testing.run_edited import run_edited

#: (*tensors) -> the value [tokens, hidden], as a model writes it.
Producer = Callable[..., torch.Tensor]
#: (*tensors, spec, quant) -> (codes, scale): an op, right or broken.
Op = Callable[..., tuple[torch.Tensor, ...]]


_VLLM = GroupQuant.vllm()


@dataclass(frozen=True)
class Case:
    """A fusion and what to judge it on.

    Args:
        fusion: the fusion to judge.
        spellings: producers that it must fuse, by name, for rows that 128 divides; the first is judged most thoroughly.
        tensors: the producers' inputs for a number of tokens; random, but the same for every call.
        dynamic: which of them have the tokens as their first dimension.
        must_not: producers that it must leave alone, by name: those with another rounding or operation.
        test: the author's own test of the op: raises for a wrong `(*tensors, spec, quant) -> (codes, scale)`.
    """

    fusion: Fusion
    spellings: Mapping[str, Producer]
    tensors: Callable[[int], tuple[torch.Tensor, ...]]
    dynamic: tuple[int, ...] = (0, 1)
    must_not: Mapping[str, Producer] = field(default_factory=dict)
    test: Callable[[Op], None] | None = None


@dataclass(frozen=True)
class Finding:
    """One thing that was tried, and what was wrong with it; None if nothing was."""

    tried: str
    problem: str | None


def judge(case: Case, *, mutants: int = 100, seed: int = 0) -> list[Finding]:
    """Try everything on `case`, with `mutants` changed graphs drawn from `seed`; nothing is raised."""
    return [_finding(tried, check) for tried, check in _checks(case, mutants, seed)]


def report(findings: list[Finding]) -> str:
    """The findings as text, one per line."""
    return "\n".join(f"{'ok  ' if f.problem is None else 'FAIL'} {f.tried}: {f.problem or 'holds'}" for f in findings)


def _finding(tried: str, check: Callable[[], str | None]) -> Finding:
    try:
        return Finding(tried, check())
    except Exception as error:  # any exception from the author's code is a finding
        return Finding(tried, f"{type(error).__name__}: {error}".splitlines()[0])


def _checks(case: Case, mutants: int, seed: int) -> Iterator[tuple[str, Callable[[], str | None]]]:
    first = next(iter(case.spellings.values()))
    yield "the op by itself", lambda: _op_problem(case, first)
    for name, producer in case.spellings.items():
        yield f"spelling {name}", partial(_fuses, case, _quantised(producer))
    for name, site in _sites(first).items():
        yield name, partial(_fuses, case, site)
    yield "dynamic tokens", lambda: _fuses(case, _quantised(first), dynamic=case.dynamic)
    yield "one token", lambda: _fuses(case, _quantised(first), tokens=1)
    yield "a value that somebody else reads inside", lambda: _leaves_alone(case, _with_codes_used(first))
    for name, producer in case.must_not.items():
        yield f"must not: {name}", partial(_leaves_alone, case, _quantised(producer))
    yield "a warm cache", lambda: _cache_problem(case, _quantised(first))
    yield f"{mutants} mutants", lambda: _mutants_problem(case, mutants, seed)
    if case.test is not None:
        yield "the author's own test", partial(_test_problem, case.fusion.op, case.test)


# Sites after a producer.


def _quantised(producer: Producer, quant: GroupQuant = _VLLM, *, opaque: bool = False) -> Callable:
    def site(*tensors):
        value = producer(*tensors)
        return ops.group_quant(value, quant) if opaque else reference.group_quant(value, quant)

    return site


def _sites(producer: Producer) -> dict[str, Callable]:
    """The producer followed by quantisations and other consumers of every kind."""
    quants = {
        "an opaque quantisation": _quantised(producer, opaque=True),
        "column-major scales": _quantised(producer, GroupQuant(scale_layout="column_major")),
        "padded scales, opaque": _quantised(producer, GroupQuant(scale_layout="column_major_padded"), opaque=True),
        "packed scales": _quantised(producer, GroupQuant.deepgemm(blackwell=True)),
        "groups of 64, no floor": _quantised(producer, GroupQuant(64, floor=None)),
        "e5m2 by reciprocal": _quantised(producer, GroupQuant(dtype=torch.float8_e5m2, division="reciprocal")),
    }

    def kept(*tensors):
        value = producer(*tensors)
        return *reference.group_quant(value, GroupQuant()), value

    def twice(*tensors):
        value = producer(*tensors)
        return *reference.group_quant(value, GroupQuant()), *ops.group_quant(value, GroupQuant.aiter())

    def stacked(*tensors):
        codes, scale = reference.group_quant(producer(*tensors), GroupQuant())
        return codes.unsqueeze(0), scale.unsqueeze(0)

    return quants | {"the value kept": kept, "two quantisations": twice, "results in another shape": stacked}


def _with_codes_used(producer: Producer) -> Callable:
    """The quotient before the cast leaves the graph: no fused call returns it."""

    def site(*tensors):
        groups = producer(*tensors).unflatten(1, (-1, 128)).float()
        scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-10) / torch.full((), 448.0)
        quotient = (groups / scale).clamp(-448.0, 448.0)
        return quotient.to(torch.float8_e4m3fn), scale, quotient

    return site


# What is tried.


def _run(case: Case, site: Callable, tokens: int, dynamic: tuple[int, ...] = ()) -> tuple[list, list, list[Site]]:
    """(results with the pass, results without, the pass's sites); without it the same graph runs unchanged."""
    fusion, records = FusionPass("cpu", fusions=(case.fusion,)), []
    tensors = case.tensors(tokens)
    want = tensors_of(run_edited(lambda graph: None, site, *tensors, dynamic=dynamic))
    before = [tensor.clone() for tensor in tensors]
    got = tensors_of(run_edited(lambda graph: records.append(fusion.rewrite(graph)), site, *tensors, dynamic=dynamic))
    if not all(map(torch.equal, before, tensors)):
        raise AssertionError("the inputs were changed")
    return got, want, [each for record in records for each in record.sites]


def _fuses(case: Case, site: Callable, *, tokens: int = 6, dynamic: tuple[int, ...] = ()) -> str | None:
    got, want, sites = _run(case, site, tokens, dynamic)
    if not sites:
        return "no quantisation was seen"
    if not all(each.fused and each.fusion == case.fusion.name for each in sites):
        return "; ".join(str(each) for each in sites if not each.fused)
    result = compared(got, want)
    return None if result == "equal" else result


def _leaves_alone(case: Case, site: Callable) -> str | None:
    got, want, sites = _run(case, site, 6)
    if any(each.fused for each in sites):
        result = compared(got, want)
        return None if result == "equal" else f"it fused, {result}"
    return None if compared(got, want) == "equal" else "the graph computes something else although nothing fused"


class _Arguments(fx.Interpreter):
    """Runs a graph and keeps what its op was called with."""

    def __init__(self, module: fx.GraphModule, targets: tuple) -> None:
        super().__init__(module)
        self.targets, self.found = targets, None

    def call_function(self, target, args, kwargs):
        if target in self.targets:
            self.found = args
        return super().call_function(target, args, kwargs)


def _op_arguments(case: Case, producer: Producer) -> tuple:
    """The arguments that a fused graph calls the op with."""
    base = capture("first", _quantised(producer), *case.tensors(6))
    module = fx.GraphModule(base.root, base.graph)
    FusionPass("cpu", fusions=(case.fusion,)).rewrite(module.graph)
    runner = _Arguments(module, case.fusion.op.overloads)
    runner.run(*base.inputs)
    if runner.found is None:
        raise AssertionError("the first spelling did not fuse")
    return runner.found


def _op_problem(case: Case, producer: Producer) -> str | None:
    arguments = _op_arguments(case, producer)
    for op in case.fusion.op.overloads:
        torch.library.opcheck(op, arguments)
    return None


def _cache_problem(case: Case, site: Callable) -> str | None:
    from torch._inductor.utils import fresh_cache

    results, records = [], []
    with fresh_cache():
        for _ in range(2):
            torch._dynamo.reset()
            fusion = FusionPass("cpu", fusions=(case.fusion,))
            with torch.no_grad(), roundings_kept():
                compiled = torch.compile(site, options={"post_grad_custom_pre_pass": fusion})
                results.append(tensors_of(compiled(*case.tensors(6))))
            records.append(fusion.report())
    if not records[0].fused:
        return f"nothing fused in a compile: {records[0]}"
    if [str(s) for s in records[0]] != [str(s) for s in records[1]] or not records[1].compiles[0].cached:
        return "the report after a warm cache is another, or the cache was not used: see the log"
    result = compared(results[1], results[0])
    return None if result == "equal" else f"the cached artefact computes something else: {result}"


def _mutants_problem(case: Case, count: int, seed: int) -> str | None:
    bases = [capture(name, _quantised(producer), *case.tensors(6)) for name, producer in case.spellings.items()]
    results = verdicts(bases, (case.fusion,), count, seed)
    return next((f"{result}: {text}" for result, text in results if result.startswith("WRONG")), None)


# Ops that are wrong in one way, for the author's own test.

BROKEN = (
    "the last row is never written", "scales are not a number", "scales belong to the neighbouring group",
    "the first two tensors are exchanged", "strided rows are read as if they were contiguous",
    "the floor is left out", "the floor is always 1e-10", "groups always have 128 elements", "codes are off by a step",
)  # fmt: skip


def broken_op(op: Op, kind: str) -> Op:
    """`op`, wrong in one of the ways in `BROKEN`."""

    def broken(*arguments):
        *tensors, spec, quant = arguments
        if kind == "the first two tensors are exchanged":
            tensors[:2] = tensors[1::-1]
        if kind == "strided rows are read as if they were contiguous":
            tensors[0] = tensors[0].as_strided(tensors[0].shape, torch.empty(tensors[0].shape).stride())
        if kind == "the floor is left out":
            quant = replace(quant, floor=None)
        if kind == "the floor is always 1e-10":
            quant = replace(quant, floor=1e-10)
        if kind == "groups always have 128 elements":
            quant = replace(quant, group_size=128)
        codes, scale = (result.clone() for result in op(*tensors, spec, quant)[:2])
        octets = codes.view(torch.uint8)
        if kind == "the last row is never written":
            octets[-1:] = 0x7E
        if kind == "codes are off by a step":
            octets[:, ::97] ^= 1
        if kind == "scales belong to the neighbouring group":
            scale = scale.roll(1, -1)
        if kind == "scales are not a number":
            scale.fill_(torch.nan)
        return codes, scale

    return broken


def _test_problem(right: Op, test: Callable[[Op], None]) -> str | None:
    test(right)
    survivors = []
    for kind in BROKEN:
        try:
            test(broken_op(right, kind))
        except Exception:
            continue
        survivors.append(kind)
    return f"broken ops pass it: {', '.join(survivors)}" if survivors else None
