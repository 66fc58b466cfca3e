"""The vocabulary of trace events: the categories that are read, and how each writer spells the fields.

Sources: Kineto's output_json.cpp and ActivityType.cpp from PyTorch 1.8 to 2.13; PyTorch's own exporter, used by builds
without Kineto; what tools that merge the traces of several ranks add to the events.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal, InvalidOperation
from typing import Any

GPU_CATEGORIES = ("kernel", "gpu_memcpy", "gpu_memset")
#: The calls that launch: Kineto's categories (HIP's calls are in CUDA's), and those of other writers and devices.
LAUNCH_CATEGORIES = tuple(
    f"{device}_{layer}" for device in ("cuda", "hip", "xpu", "musa", "privateuse1") for layer in ("runtime", "driver")
)
OP_CATEGORIES = ("cpu_op",)
MARK_CATEGORIES = ("user_annotation",)
CATEGORIES = frozenset((*GPU_CATEGORIES, *LAUNCH_CATEGORIES, *OP_CATEGORIES, *MARK_CATEGORIES))

#: Their names in PyTorch up to 1.12.
_FORMER = {
    "Kernel": "kernel",
    "Memcpy": "gpu_memcpy",
    "Memset": "gpu_memset",
    "Runtime": "cuda_runtime",
    "Operator": "cpu_op",
}
#: PyTorch without Kineto gives no category; the process says what an event is.
_WITHOUT_KINETO = {"CPU functions": "cpu_op", "CUDA functions": "kernel"}
#: Beyond this, a float's resolution is no longer small compared to a nanosecond; in microseconds, 2.4 hours.
_COARSE = float(1 << 33)
_NO_TIME = (1 << 63) // 1000
_NUMBERS = (int, float, Decimal)


def category(event: Mapping[str, Any]) -> str | None:
    """The category of `event` in current terms; None if it has none."""
    found = event.get("cat")
    if isinstance(found, str):
        return _FORMER.get(found, found)
    pid = event.get("pid")
    return _WITHOUT_KINETO.get(pid) if isinstance(pid, str) else None


def exact_float(text: str) -> float | Decimal:
    """A float, or a Decimal if a float of microseconds could not hold nanoseconds: at 1.7e15 its steps are 0.25."""
    value = float(text)
    return value if abs(value) < _COARSE or math.isinf(value) else Decimal(text)


def number(value: Any) -> float | None:
    """`value` as a finite float, or None if it is not one; a bool does not count."""
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def nanoseconds(value: Any) -> int | None:
    """Microseconds as whole nanoseconds, the unit of every profiler; None if `value` is not a time.

    Some writers quote their numbers. A time must fit in 64 bits, as it does in the profiler.
    """
    if isinstance(value, str):
        try:
            value = Decimal(value)
        except InvalidOperation:
            return None
        if not value.is_finite():
            return None
    if number(value) is None or abs(value) >= _NO_TIME:
        return None
    return value * 1000 if isinstance(value, int) else round(value * 1000)


def readable(text: str) -> str:
    """`text` made printable: lone surrogates, which JSON can contain and UTF-8 cannot, become �."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def arguments(event: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The event's arguments, empty if missing; None if they are not an object."""
    args = event.get("args", {})
    return args if isinstance(args, dict) else None


def integer(args: Mapping[str, Any], key: str) -> int | None:
    """An integer, or None if the writer had none (Kineto writes "N/A", NaN or nothing)."""
    found = args.get(key)
    if type(found) is int:
        return found
    value = number(found)
    return int(found) if value is not None and value.is_integer() else None


def triple(args: Mapping[str, Any], key: str) -> tuple[int, int, int] | None:
    """Three integers, or None if there are none."""
    value = args.get(key)
    whole = isinstance(value, list) and len(value) == 3 and all(type(part) is int for part in value)
    return tuple(value) if whole else None


def external_id(args: Mapping[str, Any]) -> int | None:
    """The External id, which PyTorch up to 1.12 wrote in lower case; zero means none in Kineto."""
    return integer(args, "External id") or integer(args, "external id") or None


def label(event: Mapping[str, Any], args: Mapping[str, Any]) -> str:
    """The name that a trace-merging tool gave the trace `event` is from; empty if there is none.

    `[TP01] 4242` for a process (SGLang), or a rank among the arguments (TraceLens).
    """
    rank, pid = args.get("rank"), event.get("pid")
    if type(rank) in (int, str):
        return readable(str(rank)[:40])
    return readable(re.sub(r"\s*\d+$", "", pid)[:40]) if isinstance(pid, str) else ""
