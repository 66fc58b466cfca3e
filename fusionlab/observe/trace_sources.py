"""The source of the traces that a notebook shows: a local GPU, a GPU's recordings, or else the local CPU.

The order is fixed and the choice is stated: a trace recorded now on a GPU that can run the kernel; a recording in
data/traces; a trace of operators recorded now on the CPU, which says nothing about a GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from fusionlab.observe.bench.cases import BASE
from fusionlab.observe.bench.results import read_results
from fusionlab.observe.bench.variants import VARIANTS
from fusionlab.observe.evidence import RecordedBenchmark, RecordedTrace, data_folder, read_benchmark, traces
from fusionlab.observe.record import record_step
from fusionlab.observe.structure import nest, steps
from fusionlab.observe.trace import Op, Trace
from fusionlib.contract import amd_arch
from fusionlib.devices import converts_to_fp8

#: The variants of `observe.record` and their labels, in the order in which they are shown.
LABELS = {"eager": "eager", "two_kernel": "two kernels", "inductor": "Inductor alone", "fused": "one kernel"}
#: The same for traces without kernels.
CPU_LABELS = LABELS | {"two_kernel": "two operations", "fused": "one operation"}
TUNED_BY_INDUCTOR = frozenset(name for name, variant in VARIANTS.items() if variant.compiled)
LIVE_STEPS = 3
NEARLY = 1.05  # steps of the same kernels randomly differ by this much


@dataclass(frozen=True)
class Shown:
    """The traces that a notebook shows.

    Args:
        kind: `live GPU`, `recorded GPU` or `live CPU`.
        device: the device's name as its driver gives it; `CPU` for a CPU.
        tokens: rows of the input.
        traces: variant -> trace of the fastest recorded step, only the norm and the quantisation.
        shared: names of what follows in every variant, the GEMM, and was removed.
        paths: variant -> path of the whole recording relative to the repository; empty for a live one.
    """

    kind: str
    device: str
    tokens: int
    traces: Mapping[str, Trace]
    shared: tuple[str, ...]
    paths: Mapping[str, str]

    @property
    def on_gpu(self) -> bool:
        """Whether it contains kernels."""
        return self.kind != "live CPU"

    def label(self, variant: str) -> str:
        """The label of `variant`."""
        return (LABELS if self.on_gpu else CPU_LABELS)[variant]

    @property
    def steps(self) -> dict[str, Trace]:
        """The traces by label."""
        return {self.label(variant): trace for variant, trace in self.traces.items()}

    @property
    def files(self) -> dict[str, str]:
        """The paths by label."""
        return {self.label(variant): path for variant, path in self.paths.items()}

    @property
    def words(self) -> str:
        """A description for a caption."""
        how = {
            "live GPU": "recorded now on",
            "recorded GPU": "recorded earlier on",
            "live CPU": "operators recorded now on this",
        }
        return f"{how[self.kind]} {self.device}, {self.tokens} tokens"


def show_traces(
    tokens: int,
    variants: Sequence[str] = ("eager", "two_kernel", "fused"),
    *,
    graph: bool = False,
    device: str = "",
    data: Path | None = None,
) -> Shown:
    """The traces of `variants` at `tokens`, from the best available source.

    Recordings exist only for some numbers of tokens: the one nearest to `tokens` is taken.

    Args:
        variants: keys of `LABELS`.
        graph: replays of CUDA graphs; ignored on a CPU, and if there is no such recording.
        device: `cpu` or `recorded` to leave a GPU out; empty for the best.
        data: the data folder; the checkout's by default.

    Raises:
        ValueError: for an unknown variant or device, or for `recorded` without a recording.
        RecordError: if a live recording fails.
    """
    unknown = [variant for variant in variants if variant not in LABELS]
    if unknown or not variants or device not in ("", "cpu", "recorded"):
        wrong = f"variants={list(variants)!r}" if unknown or not variants else f"device={device!r}"
        raise ValueError(f"{wrong}: variants are {', '.join(LABELS)}; device is 'cpu', 'recorded' or empty")
    if not device and gpu_runs_the_kernel():
        return _live("live GPU", torch.cuda.get_device_name(0), tokens, variants, graph=graph)
    found = [] if device == "cpu" else _recorded(tokens, variants, graph, data)
    if found:
        return _from_recordings(found)
    if device == "recorded":
        raise ValueError(
            f"data/traces holds no trace of {', '.join(variants)} on one GPU; run `fusionlib record` on one"
        )
    return _live("live CPU", "CPU", tokens, variants)


def gpu_runs_the_kernel() -> bool:
    """Whether there is a GPU that converts to FP8, as the fused kernel requires."""
    if not torch.cuda.is_available():
        return False
    properties = torch.cuda.get_device_properties(0)
    return converts_to_fp8((properties.major, properties.minor), amd_arch())


def _live(kind: str, device: str, tokens: int, variants: Sequence[str], *, graph: bool = False) -> Shown:
    threads = torch.get_num_threads()
    where = {"live GPU": "cuda", "live CPU": "cpu"}[kind]
    try:
        if where == "cpu":
            torch.set_num_threads(1)  # else waits for another thread count as an operator's time
        whole = {
            variant: fastest_step(
                record_step(variant, tokens, steps=LIVE_STEPS, device=where, graph=graph and where == "cuda")
            )
            for variant in variants
        }
    finally:
        torch.set_num_threads(threads)
    cut, shared = without_common_end(whole)
    return Shown(kind, device, tokens, cut, shared, {})


def _recorded(tokens: int, variants: Sequence[str], graph: bool, data: Path | None) -> list[RecordedTrace]:
    """One recording of each variant, of one device, size and kind; the newest such set, empty if there is none."""
    folder = data or data_folder()
    sets: dict[tuple, dict[str, RecordedTrace]] = {}
    for trace in traces(folder):
        if trace.manifest.machine.kind == "gpu":
            sets.setdefault((trace.device, trace.tokens, trace.graph), {})[trace.variant] = trace
    whole = {key: found for key, found in sets.items() if set(variants) <= set(found)}
    if not whole:
        return []

    def fit(key: tuple) -> tuple:
        _, size, with_graph = key
        return with_graph is not graph, abs(size - tokens), _before(whole[key][variants[0]].manifest.date), key

    best = min(whole, key=fit)
    return [whole[best][variant] for variant in variants]


def _before(date: str) -> tuple[int, ...]:
    """A sort key that puts later dates first."""
    return tuple(-ord(character) for character in date)


def _from_recordings(found: Sequence[RecordedTrace]) -> Shown:
    cut, shared = without_common_end({trace.variant: fastest_step(trace.read()) for trace in found})
    paths = {trace.variant: f"data/traces/{trace.device}/{trace.path.name}" for trace in found}
    first = found[0]
    return Shown("recorded GPU", first.manifest.machine.device, first.tokens, cut, shared, paths)


def fastest_step(trace: Trace) -> Trace:
    """The least disturbed step of `trace`: its kernels, or on a CPU its operators, took the least time end to end.

    Of steps that took practically the same time, the one whose first launch came last: the profiler can delay the
    single launch of a CUDA graph by hundreds of microseconds without slowing its kernels.
    """

    def span(step: Trace, *, launches: bool = False) -> float:
        events = step.kernels or step.ops
        ends = [event.start_us + event.duration_us for event in events]
        starts = [event.start_us for event in events]
        starts += [kernel.launch.start_us for kernel in step.kernels if kernel.launch and launches]
        return max(ends) - min(starts) if events else float("inf")

    found = steps(trace)
    fast = min(map(span, found)) * NEARLY
    return min((step for step in found if span(step) <= fast), key=lambda step: span(step, launches=True))


def without_common_end(variants: Mapping[str, Trace]) -> tuple[dict[str, Trace], tuple[str, ...]]:
    """The traces without their common end, and the names in it: kernels, or on a CPU top-level operators.

    The recorded variants differ before the GEMM and are identical from there on. A single trace has nothing to compare
    with and stays whole, and no trace becomes empty.
    """
    lists = [_sequence(trace) for trace in variants.values()]
    common = 0
    if len(lists) > 1:
        shortest = min(map(len, lists))
        while common < shortest - 1 and len({names[-1 - common][0] for names in lists}) == 1:
            common += 1
    if not common:
        return dict(variants), ()
    names = tuple(name for name, _ in lists[0][-common:])
    starts = (sequence[-common][1] for sequence in lists)
    return {label: _until(trace, start) for (label, trace), start in zip(variants.items(), starts, strict=True)}, names


def _sequence(trace: Trace) -> list[tuple[str, float]]:
    """Names and starts of the kernels, or of the top-level operators."""
    events: Sequence = trace.kernels or [entry.op for entry in nest(trace.ops) if entry.parent is None]
    return [(event.name, event.start_us) for event in events]


def _until(trace: Trace, end_us: float) -> Trace:
    """What begins before `end_us`, on the GPU if there are kernels; the calls and operators that led to it are kept."""
    if not trace.kernels:
        return replace(trace, ops=tuple(op for op in trace.ops if op.start_us < end_us))
    kernels = tuple(kernel for kernel in trace.kernels if kernel.start_us < end_us)
    kept = {(kernel.launch.process, kernel.launch.correlation) for kernel in kernels if kernel.launch}
    launches = tuple(launch for launch in trace.launches if (launch.process, launch.correlation) in kept)
    last = max((launch.start_us for launch in launches), default=end_us)
    ops: tuple[Op, ...] = tuple(op for op in trace.ops if op.start_us <= last)
    return replace(trace, kernels=kernels, launches=launches, ops=ops)


def benchmark_times(benchmark: RecordedBenchmark, case: str = "") -> dict[str, dict[int, float]]:
    """Median times of a recorded benchmark: variant -> tokens -> microseconds, the variants in its own order.

    For the variants that Inductor compiles, the fastest of `benchmark_runs`: the launches it chooses vary from run to
    run, and a poor choice would flatter the kernel it is compared with.

    Args:
        case: `shape/gate/context` of the cases wanted; by default 32 heads x 128, contiguous, alone.

    Raises:
        ManifestError: if a document has the wrong format.
    """
    found, *others = benchmark_runs(benchmark, case)
    for other in others:
        for variant in TUNED_BY_INDUCTOR & found.keys() & other.keys():
            series = found[variant]
            series.update({size: min(us, series[size]) for size, us in other[variant].items() if size in series})
    return found


def benchmark_runs(benchmark: RecordedBenchmark, case: str = "") -> list[dict[str, dict[int, float]]]:
    """Median times as in `benchmark_times`, of this run and then of the same machine's runs in `further/`."""
    wanted = (case or f"{BASE}/contiguous/alone").split("/")
    paths = sorted((benchmark.path.parent / "further").glob(f"{benchmark.path.stem}-[0-9].json"))
    others = [other for other in map(read_benchmark, paths) if other.manifest.machine == benchmark.manifest.machine]
    return [_medians(run, wanted) for run in (benchmark, *others)]


def _medians(benchmark: RecordedBenchmark, wanted: list[str]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for row in read_results(benchmark.document, benchmark.path.name).rows:
        if [row.shape, row.gate, row.context] == wanted:
            found.setdefault(row.variant, {})[row.tokens] = row.median_us
    return found
