"""Kineto events made by hand, with known times; nothing in them was measured. Times are in µs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

GEOMETRY = {
    "grid": [32, 1, 1],
    "block": [256, 1, 1],
    "registers per thread": 40,
    "shared memory": 1024,
    "est. achieved occupancy %": 75,
}


def op(external: int | None, start: float, duration: float, name: str) -> dict[str, Any]:
    args = {} if external is None else {"External id": external}
    return {"ph": "X", "cat": "cpu_op", "name": name, "pid": 9, "tid": 9, "ts": start, "dur": duration, "args": args}


def launch(
    correlation: int,
    start: float,
    duration: float,
    external: int | None = None,
    cat: str = "cuda_runtime",
    name: str = "cudaLaunchKernel",
    **args: Any,
) -> dict[str, Any]:
    args |= {"correlation": correlation} | ({} if external is None else {"External id": external})
    return {"ph": "X", "cat": cat, "name": name, "pid": 9, "tid": 9, "ts": start, "dur": duration, "args": args}


def kernel(
    correlation: int,
    start: float,
    duration: float,
    name: str = "k",
    stream: int = 7,
    device: int = 0,
    cat: str = "kernel",
    **args: Any,
) -> dict[str, Any]:
    args |= {"correlation": correlation, "stream": stream, "device": device}
    event = {"ph": "X", "cat": cat, "name": name, "pid": device, "tid": stream}
    return event | {"ts": start, "dur": duration, "args": args}


#: Three kernels, two operators and what else a file holds; out of order, as in real files.
EVENTS = [
    {"ph": "M", "name": "process_name", "pid": 9, "args": {"name": "python"}},
    kernel(2, 130.25, 4.5, "fused", **GEOMETRY, **{"graph node id": 0}),
    kernel(1, 110.0, 10.0, "first"),
    kernel(3, 131.0, 5.0, "Memcpy HtoD", stream=8, cat="gpu_memcpy", bytes=4),
    op(11, 90.0, 40.0, "aten::mul"),
    op(12, 140.0, 1.0, "aten::add"),
    launch(1, 100.0, 8.0, external=11),
    launch(2, 125.0, 7.0, external=12, cat="cuda_driver", name="cuLaunchKernel"),
    {"ph": "s", "cat": "ac2g", "id": 1, "pid": 9, "tid": 9, "ts": 100.0},
    {"ph": "X", "cat": "gpu_user_annotation", "name": "first", "pid": 0, "tid": 7, "ts": 0, "dur": 999},
]


def write(path: Path, events: list[dict], compress: bool = False, **top: Any) -> Path:
    """A trace file of `events`, with the fields `top` beside them."""
    text = json.dumps({"schemaVersion": 1, **top, "traceEvents": events, "traceName": "t.json"}).encode()
    path.write_bytes(gzip.compress(text) if compress else text)
    return path
