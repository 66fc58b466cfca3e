"""Exercises on traces and on what bytes predict. The traces are written by hand and short enough to read in full."""

from __future__ import annotations

import itertools
import json
import math
import random
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from fusionlab.exercises.exercise import Exercise
from fusionlab.observe.byte_ledger import path_bytes
from fusionlab.observe.trace import Trace, TraceError, read_trace
from fusionlib.spec import GatedNorm, GroupQuant

Row = tuple[str, str, float, float, Mapping[str, Any]]
Spans = Sequence[tuple[float, float]]


def trace_of_rows(rows: Sequence[Row]) -> Trace:
    """A handwritten trace, read like any other; a row is (category, name, start in µs, duration in µs, arguments).

    Operators and launches go to one thread; a kernel's arguments name its stream, 7 unless given. Rows that no profiler
    would write, of a negative duration for instance, raise TraceError.
    """
    events = []
    for category, name, start, duration, args in rows:
        args = {"device": 0, "stream": 7, **args} if category == "kernel" else dict(args)
        place = {"pid": 0, "tid": args["stream"]} if category == "kernel" else {"pid": 1, "tid": 1}
        event = {"ph": "X", "cat": category, "name": name, "ts": start, "dur": duration, "args": args}
        events.append(event | place)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "by_hand.json")
        path.write_text(json.dumps({"traceEvents": events}), encoding="utf-8")
        trace = read_trace(path)
    if trace.flaws:
        raise TraceError(f"these rows make no trace: {trace.flaws[0]}")
    return trace


#: Three launches out of order, one of them through the driver; the second kernel waits long, the third starts early.
PUZZLE: tuple[Row, ...] = (
    ("kernel", "silu_mul", 14.0, 6.0, {"correlation": 31}),
    ("kernel", "group_max", 20.5, 2.5, {"correlation": 12}),
    ("kernel", "to_fp8", 24.0, 3.0, {"correlation": 47}),
    ("cuda_driver", "cuLaunchKernel", 6.0, 4.0, {"correlation": 12, "External id": 3}),
    ("cuda_runtime", "cudaLaunchKernel", 0.5, 5.0, {"correlation": 31, "External id": 1}),
    ("cuda_driver", "cuLaunchKernelEx", 21.5, 4.5, {"correlation": 47, "External id": 2}),
    ("cpu_op", "model::gate", 0.0, 5.8, {"External id": 1}),
    ("cpu_op", "model::scale", 5.9, 4.5, {"External id": 3}),
    ("cpu_op", "model::cast", 21.0, 5.5, {"External id": 2}),
)


def _number(answer: Any, right: float, tolerance: float, wrong: str) -> str | None:
    """None if `answer` is `right` within a relative tolerance, else what is wrong: a kind of answer, or `wrong`."""
    if isinstance(answer, torch.Tensor) and answer.numel() == 1:
        answer = answer.item()
    if isinstance(answer, bool) or not isinstance(answer, int | float) or not math.isfinite(answer):
        return f"{answer!r} is not a number"
    return None if math.isclose(answer, right, rel_tol=tolerance) else wrong


def _judge_queue_delay(answer: Any) -> str | None:
    right = {kernel.name: kernel.queue_us for kernel in trace_of_rows(PUZZLE).kernels}
    if not isinstance(answer, dict) or set(answer) != set(right):
        return f"give a dict with a number for each of {', '.join(right)}"
    for name, delay in right.items():
        wrong = f"{name} does not have a queue delay of {answer[name]!r} µs; find its launch by correlation"
        if (verdict := _number(answer[name], delay, 1e-9, wrong)) is not None:
            return verdict
    return None


queue_delay = Exercise(
    name="exercises.queue_delay",
    question="What is the queue delay of each kernel of the puzzle, in µs? Give a dict, name -> number.",
    judge=_judge_queue_delay,
    solution={"silu_mul": 8.5, "group_max": 10.5, "to_fp8": -2.0},
    traps=(
        {"silu_mul": 13.5, "group_max": 14.5, "to_fp8": 2.5},  # from the start of the call
        {"silu_mul": 4.0, "group_max": 15.0, "to_fp8": -2.0},  # rows paired by their order
        {"silu_mul": 8.5, "group_max": 10.5, "to_fp8": 2.0},  # sign lost
        {"silu_mul": 8.5, "group_max": 10.5},
        8.5,
    ),
    hints=(
        "The rows are in no order: pair kernel and launch by the correlation they share.",
        "It runs from the end of the launch call to the start of the kernel, and may be negative.",
    ),
    explanation=(
        "A kernel's delay is its start less the end of the call of the same correlation. group_max waited longest, "
        "most of it for silu_mul on the same stream; to_fp8 began before its call had returned, hence the minus."
    ),
)

_SPANS: tuple[tuple[Spans, float], ...] = (
    ([(0.0, 4.0), (5.5, 8.5)], 1.5),
    ([(0.0, 10.0), (2.0, 3.0), (12.0, 13.0)], 2.0),  # the second lies inside the first
    ([(7.0, 9.0), (0.0, 2.0), (1.0, 3.0)], 4.0),  # in no order, two overlap
    ([(3.0, 4.0)], 0.0),
)


def _drawn_spans(seed: int) -> Spans:
    """A handful of unordered spans in whole µs that meet, overlap and repeat."""
    draw = random.Random(seed)
    starts = [draw.randint(0, 40) for _ in range(draw.randint(1, 9))]
    return [(float(start), float(start + draw.randint(1, 9))) for start in starts]


def _judge_idle_time(answer: Any) -> str | None:
    if not callable(answer):
        return "give a function of a list of (start, end), in µs"
    for spans, right in (*_SPANS, *((spans, _idle(spans)) for spans in map(_drawn_spans, range(20)))):
        found = answer(list(spans))
        if (verdict := _number(found, right, 1e-9, f"for {list(spans)} it gives {found!r}")) is not None:
            return verdict
    return None


def _idle(spans: Spans) -> float:
    """The time between first start and last end that no span covers."""
    reached, idle = None, 0.0
    for start, end in sorted(spans):
        if reached is not None:
            idle += max(0.0, start - reached)
        reached = end if reached is None else max(reached, end)
    return idle


def _neighbours(spans: Spans) -> float:
    ordered = sorted(spans)
    return sum(max(0.0, b[0] - a[1]) for a, b in itertools.pairwise(ordered))


def _difference(spans: Spans) -> float:
    return max(end for _, end in spans) - min(start for start, _ in spans) - sum(end - start for start, end in spans)


def _listed(spans: Spans) -> float:
    """Hard-coded answers to the judge's first questions."""
    return {2: 1.5, 3: 2.0 if spans[0][0] == 0.0 else 4.0}.get(len(spans), 0.0)


idle_time = Exercise(
    name="exercises.idle_time",
    question=(
        "Write a function that takes kernels as a list of (start, end) in µs, from all streams and in any order, and "
        "returns for how long the GPU ran none of them between the first start and the last end."
    ),
    judge=_judge_idle_time,
    solution=_idle,
    traps=(_neighbours, _difference, _listed, lambda spans: 0.0, 1.5),
    hints=(
        "Kernels on two streams may run at the same time, and one may lie inside another.",
        "Sort by start and remember the latest end so far: idle is only what begins behind it.",
    ),
    explanation="Idle is what begins behind the latest end so far; the end of the kernel before is not enough.",
)

TOKENS, HIDDEN, BANDWIDTH_GB_S = 4096, 4096, 4000.0
_MOVED = path_bytes(TOKENS, HIDDEN, GatedNorm.vllm(128), GroupQuant.vllm())

fused_time = Exercise(
    name="exercises.fused_time",
    question=(
        f"Predict: {TOKENS} tokens of 32 heads × 128 in bf16, and a memory that moves {BANDWIDTH_GB_S:.0f} GB/s. How "
        "many µs must one fused kernel take at least, its scales included?"
    ),
    judge=lambda answer: _number(
        answer,
        _MOVED.fused.time_us(BANDWIDTH_GB_S),
        0.003,  # the scales are 0.6 % of the bytes, so leaving them out is detected
        f"{answer!r} µs is not the time of the bytes; what does each element read and write?",
    ),
    solution=_MOVED.fused.time_us(BANDWIDTH_GB_S),
    traps=(
        _MOVED.unfused.time_us(BANDWIDTH_GB_S),
        TOKENS * HIDDEN * 5 / BANDWIDTH_GB_S / 1e3,  # no scales
        _MOVED.fused.time_us(BANDWIDTH_GB_S) / 1e3,  # milliseconds
        TOKENS * HIDDEN * 3 / BANDWIDTH_GB_S / 1e3,  # no gate
    ),
    hints=(
        "x and the gate are read, two bytes each; the code is written, one byte.",
        "Each group of 128 elements has a scale of four bytes.",
    ),
    explanation=(
        "Elements × (2 + 2 + 1 + 4/128) bytes over the bandwidth. A kernel that takes longer has another limit."
    ),
)

_WIDE = path_bytes(1, HIDDEN, GatedNorm.vllm(128), GroupQuant.vllm(), x_dtype=torch.float32, weight_elements=0)

wider_inputs = Exercise(
    name="wider_inputs",
    question=(
        "Let x, the gate and the normed value be float32 instead of bf16. By the bytes alone, how many times as fast "
        "as two kernels is one?"
    ),
    judge=lambda answer: _number(
        answer,
        _WIDE.unfused.total / _WIDE.fused.total,
        0.004,  # 1.89 is close enough; 1.8, the answer for bf16, and 2 are not
        f"{answer!r} is not the ratio of the bytes; count again what is read and written with four bytes each",
    ),
    solution=_WIDE.unfused.total / _WIDE.fused.total,
    traps=(9.03 / 5.03, 2.0, _WIDE.fused.total / _WIDE.unfused.total, 17.03 / 13.03),
    hints=(
        "Two kernels: the norm reads two values and writes one, the quantisation reads that one and writes a byte.",
        "One kernel: two values are read and a byte is written. The scales are 4/128 of a byte either way.",
    ),
    explanation=(
        "17.03 bytes against 9.03 per element. The value in the middle is written and read in full width, and the "
        "codes stay one byte: the wider the value, the nearer the ratio comes to two."
    ),
)

_STEP_US, _LAYERS, _SAVED_US = 12_000.0, 36, 2.5

step_share = Exercise(
    name="exercises.step_share",
    question=(
        f"A fusion saves {_SAVED_US} µs in each of {_LAYERS} layers, and a decode step takes {_STEP_US / 1e3:.0f} ms. "
        "By how many per cent does the step get shorter?"
    ),
    judge=lambda answer: _number(
        answer,
        100 * _LAYERS * _SAVED_US / _STEP_US,
        0.01,
        f"{answer!r} % of the step is not what {_LAYERS} layers save",
    ),
    solution=100 * _LAYERS * _SAVED_US / _STEP_US,
    traps=(_LAYERS * _SAVED_US / _STEP_US, 100 * _SAVED_US / _STEP_US, 50.0),
    hints=(
        "Saved in all layers, over the time of the step.",
        "12 ms are 12,000 µs, and a share times 100 is per cent.",
    ),
    explanation="36 × 2.5 µs are 90 µs of 12,000. Halving something small leaves the whole nearly as long as it was.",
)


def show_rows(rows: Sequence[Row]) -> str:
    """The rows as aligned text, as they stand."""
    lines = [f"{'category':<13}{'name':<18}{'start':>6}{'dur':>6}   arguments"]
    for category, name, start, duration, args in rows:
        known = [f"{key} {args[key]}" if key in args else "" for key in ("correlation", "External id")]
        lines.append(f"{category:<13}{name:<18}{start:>6.1f}{duration:>6.1f}   {known[0]:<16}{known[1]}".rstrip())
    return "\n".join(lines)
