"""One run: make every variant, check all of them, then time all of them, interleaved.

The samples of a case's variants are taken in rounds, each in a different order, so that a drifting clock or a warming
GPU affects all variants equally. Wrong variants are not timed, and missing ones are reported.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from fusionlab.observe.bench.cases import Case
from fusionlab.observe.bench.context import BASELINE, Buffers, baseline, gemm_problem, in_context, projection
from fusionlab.observe.bench.correctness import Agreement, agreement
from fusionlab.observe.bench.measured_producers import Tensors, bits
from fusionlab.observe.bench.results import Results, Row, Skipped, percentiles
from fusionlab.observe.bench.timer import Key, Timer, copies_for, in_rounds
from fusionlab.observe.bench.variants import VARIANTS, Call, Unavailable, Variant
from fusionlib.commands.failure import in_a_line
from fusionlib.layers import BlockFP8Linear

Say = Callable[[str], None]
#: The fastest of several compilations of a variant for a case, and the median time of each in microseconds.
Fastest = Callable[[Case, Callable[[Case], Call]], tuple[Call, list[float]]]


@dataclass(frozen=True)
class Prepared:
    """A variant built for a case, and how its result compares with eager's."""

    variant: Variant
    call: Call
    agreement: Agreement | None
    launch: dict[str, Any] | None = None


@dataclass(frozen=True)
class Settings:
    """A run's settings: rounds of samples per case, the seed of inputs and order, the device.

    `compilations`: how often a variant that uses Inductor is compiled; the fastest is measured.
    """

    rounds: int = 30
    seed: int = 0
    compilations: int = 3
    device: str = "cuda"


def check_all(
    cases: Iterable[Case],
    names: Sequence[str],
    settings: Settings,
    results: Results,
    say: Say = print,
    *,
    light_config: Callable[[Case], Any] | None = None,
    fastest: Fastest | None = None,
) -> list[tuple[Case, list[Prepared]]]:
    """Build every variant for every case and compare it with eager; missing or wrong ones go to `results.skipped`.

    `light_config` returns the light's tuned launch for a case; without it the light uses our kernel's heuristic.
    `fastest` compiles Inductor's variants several times; without it they are compiled once.
    """
    plan = []
    made: dict[tuple, Prepared] = {}  # a case compiles the same alone and after a producer
    for case in cases:
        inputs = case.inputs(settings.device, settings.seed)
        expected = VARIANTS["eager"].make(case)(*inputs)
        prepared = []
        for name in names:
            try:
                if case.context == "chain" and not VARIANTS[name].computes:
                    raise Unavailable("its codes are noise, and how fast the GEMM is depends on what it multiplies")
                key = (name, case.shape.name, case.tokens, case.gate, case.quant)
                if key not in made:
                    made[key] = _prepared(VARIANTS[name], case, inputs, expected, light_config, fastest)
                prepared.append(made[key])
            except Unavailable as error:
                results.skipped.append(Skipped(case.name, name, str(error)))
            except Wrong as error:
                results.skipped.append(Skipped(case.name, name, str(error), wrong=True))
                say(f"WRONG    {case.name} {name}: {error}")
            except Exception as error:  # a compiler's or another library's failure; the others go on
                results.skipped.append(Skipped(case.name, name, in_a_line(error)))
        say(f"checked  {case.name}: {', '.join(p.variant.name for p in prepared) or 'nothing'}")
        plan.append((case, prepared))
    return plan


class Wrong(RuntimeError):
    """A variant whose result is not within its bounds of eager's."""


def _prepared(
    variant: Variant, case: Case, inputs: Tensors, expected: Any, light_config: Any, fastest: Fastest | None
) -> Prepared:
    on_cpu = inputs[0].device.type == "cpu"
    if not variant.computes:
        if on_cpu:
            raise Unavailable("the light is a Triton kernel; it needs a GPU")
        from fusionlab.observe.bench.variants import light_call

        config = light_config(case) if light_config else heuristic(case)
        call = light_call(case, config)
        problem = light_problem(call(*inputs), inputs)
        if problem:
            raise Wrong(problem)
        return Prepared(variant, call, None, asdict(config))
    launch = asdict(heuristic(case)) if variant.name == "fused" and not on_cpu else None
    if variant.compiled and fastest is not None:
        call, medians = fastest(case, variant.make)
        launch = {"compilations_us": medians}
    else:
        call = variant.make(case)
    with torch.no_grad():
        outputs = call(*inputs)
    found = agreement(outputs[:2], expected[:2], case.quant)
    problem = found.problem(variant.exact_in(case)) or further_problem(outputs[2:], expected[2:])
    if problem:
        raise Wrong(problem)
    return Prepared(variant, call, found, launch)


def heuristic(case: Case) -> Any:
    """Our kernel's own `LaunchConfig` for `case`."""
    return case.producer.choose_launch(case.units, case.unit)


def further_problem(got: Tensors, expected: Tensors) -> str | None:
    """Why what a call returns besides codes and scale is not eager's, or None. It is rounded once: bits must agree."""
    if len(got) != len(expected):
        return f"{len(got)} results besides codes and scale, where eager has {len(expected)}"
    same = all(
        ours.dtype == theirs.dtype and torch.equal(ours, theirs) for ours, theirs in zip(got, expected, strict=True)
    )
    return None if same else "the sum that the next layer reads is not eager's"


def light_problem(outputs: Tensors, inputs: Tensors) -> str | None:
    """Why the light did not move every byte, or None.

    Codes must be the low bytes of the exclusive-or of all inputs, scales one, and a sum its bits.
    """
    codes, scale, *further = outputs
    rows = [bits(tensor) for tensor in inputs if tensor.ndim > 1]
    vectors = [bits(tensor).repeat(codes.shape[1] // tensor.numel()) for tensor in inputs if tensor.ndim == 1]
    expected = functools.reduce(torch.bitwise_xor, (*rows, *vectors))
    if not torch.equal(codes.view(torch.uint8), expected.to(torch.uint8)):
        return "the light's codes are not the exclusive-or of its inputs: it does not read or write every byte"
    if any(not torch.equal(bits(tensor), expected) for tensor in further):
        return "the light's sum is not the exclusive-or of its inputs: it does not write every byte"
    return None if bool((scale == 1).all()) else "the light does not write every scale"


def time_all(
    plan: Iterable[tuple[Case, list[Prepared]]],
    timer: Timer,
    settings: Settings,
    results: Results,
    say: Say = print,
    save: Callable[[], None] = lambda: None,
) -> None:
    """Time every prepared variant of every case; rows go to `results.rows`, and `save` is called after each case."""
    order = random.Random(settings.seed)
    for case, prepared in plan:
        if not prepared:
            continue
        device = torch.device(settings.device)
        if case.context == "chain" and (problem := gemm_problem(device)):
            results.skipped += [Skipped(case.name, p.variant.name, problem) for p in prepared]
            continue
        rows = time_case(case, prepared, timer, settings, order, results)
        timer.release()
        results.rows += rows
        save()
        say(f"timed    {case.name}: " + ", ".join(f"{row.variant} {row.median_us:.2f}" for row in rows) + " us")


def time_case(
    case: Case,
    prepared: Sequence[Prepared],
    timer: Timer,
    settings: Settings,
    order: random.Random,
    results: Results,
) -> list[Row]:
    """The rows of one case; a variant that cannot be captured is skipped with the reason."""
    device = torch.device(settings.device)
    moved = case.bytes().total
    copies = copies_for(moved, timer.l2_bytes)
    buffers = make_buffers(case, copies, settings)
    linear = projection(case, device, settings.seed) if case.context == "chain" else None
    handles: dict[str, Any] = {}
    for name, run in _runs(case, prepared, buffers[0], linear):
        try:
            handles[name] = timer.prepare([lambda run=run, buffer=buffer: run(buffer) for buffer in buffers])
        except (RuntimeError, torch.OutOfMemoryError) as error:  # out of memory, or cannot be captured in a graph
            results.skipped.append(Skipped(case.name, name, in_a_line(error)))
    samples = in_rounds(timer, handles, settings.rounds, order)
    known = {p.variant.name: p for p in prepared}
    return [_row(case, name, samples[name], copies, moved, known.get(name)) for name in handles]


def _runs(case: Case, prepared: Sequence[Prepared], first: Buffers, linear: BlockFP8Linear | None):
    """(name, function of one set of buffers) for each variant and, in a chain, for the chain without one."""
    for p in prepared:
        yield p.variant.name, in_context(case, p.call, linear)
    if case.context != "alone":
        ready = VARIANTS["eager"].make(case)(*first.tensors)
        yield BASELINE, baseline(case, ready, linear)


def sample_alone(
    case: Case,
    calls: Mapping[Key, Call],
    timer: Timer,
    settings: Settings,
    failed: Callable[[Key, Exception], None] | None = None,
) -> dict[Key, list[float]]:
    """Interleaved samples of each of `calls` alone on `case`'s inputs; memory is released afterwards.

    Calls that cannot be prepared are left out and passed to `failed`; without it the error is raised.
    """
    buffers = make_buffers(case, copies_for(case.bytes().total, timer.l2_bytes), settings)
    handles: dict[Key, Any] = {}
    for key, call in calls.items():
        try:
            handles[key] = timer.prepare([lambda call=call, b=b: call(*b.tensors) for b in buffers])
        except Exception as error:  # out of registers or memory; Triton's errors share no base class
            if failed is None:
                raise
            failed(key, error)
    samples = in_rounds(timer, handles, settings.rounds, random.Random(settings.seed))
    handles.clear()
    timer.release()
    return samples


def make_buffers(case: Case, copies: int, settings: Settings) -> list[Buffers]:
    """`copies` sets of inputs with different values; a weight is shared, as in a model."""
    made: list[Buffers] = []
    count = case.producer.rows
    for number in range(copies):
        inputs = case.inputs(settings.device, settings.seed + number)
        shared = made[0].tensors[count:] if made else inputs[count:]
        source = inputs[0].clone() if case.context != "alone" else None
        made.append(Buffers((*inputs[:count], *shared), source))
    return made


def _row(case: Case, name: str, samples: list[float], copies: int, moved: int, prepared: Prepared | None) -> Row:
    median, p10, p90 = percentiles(samples)
    return Row(
        case=case.name,
        shape=case.shape.name,
        tokens=case.tokens,
        gate=case.gate,
        context=case.context,
        variant=name,
        median_us=median,
        p10_us=p10,
        p90_us=p90,
        samples=len(samples),
        copies=copies,
        bytes=moved,
        gb_s=moved / median / 1e3 if case.context == "alone" else None,
        launch=prepared.launch if prepared else None,
        agreement=prepared.agreement.as_json() if prepared and prepared.agreement else None,
    )


def conditions(timer: Timer, settings: Settings) -> dict[str, Any]:
    """How the numbers were measured, for a reader of the file."""
    from fusionlab.observe.bench.timer import CALLS_PER_GRAPH, LEAST_SAMPLE_US, ROTATION

    return {
        "timing": "CUDA graph replay, events around whole cycles; one sample is the mean of at least one cycle",
        "l2_bytes": timer.l2_bytes,
        "rotation": ROTATION,
        "calls_per_graph": CALLS_PER_GRAPH,
        "least_sample_us": LEAST_SAMPLE_US,
        "rounds": settings.rounds,
        "compilations": f"the fastest of {settings.compilations}, where Inductor compiles",
        "order": "shuffled in each round",
        "spread": "10th and 90th percentile of the samples",
    }


def quick(settings: Settings) -> Settings:
    """The same settings with few rounds."""
    return replace(settings, rounds=min(settings.rounds, 10))
