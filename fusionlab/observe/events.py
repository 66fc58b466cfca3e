"""The words of trace events: the categories that are read, and how each writer spells the fields.

Sources: Kineto's output_json.cpp and ActivityType.cpp from PyTorch 1.8 to 2.13; PyTorch's own exporter, which builds
without Kineto use; what tools that merge the traces of several ranks add to the events.
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

#: How PyTorch called them up to 1.12.
_FORMER = {
    "Kernel": "kernel",
    "Memcpy": "gpu_memcpy",
    "Memset": "gpu_memset",
    "Runtime": "cuda_runtime",
    "Operator": "cpu_op",
}
#: PyTorch without Kineto gives no category, and says with the process what an event is.
_WITHOUT_KINETO = {"CPU functions": "cpu_op", "CUDA functions": "kernel"}
#: From here on the steps of a float are no longer small beside a nanosecond; in microseconds, 2.4 hours.
_COARSE = float(1 << 33)
_NO_TIME = (1 << 63) // 1000
_NUMBERS = (int, float, Decimal)


def category(event: Mapping[str, Any]) -> str | None:
    """The category of `event` in today's words; None where it has none."""
    found = event.get("cat")
    if isinstance(found, str):
        return _FORMER.get(found, found)
    pid = event.get("pid")
    return _WITHOUT_KINETO.get(pid) if isinstance(pid, str) else None


def exact_float(text: str) -> float | Decimal:
    """A float, or a Decimal where a float of microseconds would blur nanoseconds: at 1.7e15 it has steps of 0.25."""
    value = float(text)
    return value if abs(value) < _COARSE or math.isinf(value) else Decimal(text)


def number(value: Any) -> float | None:
    """`value` as a finite float, or None if it is no number (a bool is none) or has none."""
    if isinstance(value, bool) or not isinstance(value, _NUMBERS):
        return None
    try:
        result = float(value)
    except OverflowError:
        return None
    return result if math.isfinite(result) else None


def nanoseconds(value: Any) -> int | None:
    """Microseconds as whole nanoseconds, in which every profiler counts; None if `value` is no time.

    Some writers quote their numbers. A time fits 64 bits, as it does where it was taken.
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
    """`text` as it can be printed: halves of characters, which JSON can spell and UTF-8 cannot, become �."""
    return text if text.isascii() else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def arguments(event: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The event's arguments, none being none; None if they are no object."""
    args = event.get("args", {})
    return args if isinstance(args, dict) else None


def integer(args: Mapping[str, Any], key: str) -> int | None:
    """A whole number, or None where the writer had none (Kineto writes "N/A", NaN or nothing)."""
    found = args.get(key)
    if type(found) is int:
        return found
    value = number(found)
    return int(found) if value is not None and value.is_integer() else None


def triple(args: Mapping[str, Any], key: str) -> tuple[int, int, int] | None:
    """Three whole numbers, or None where there are none."""
    value = args.get(key)
    whole = isinstance(value, list) and len(value) == 3 and all(type(part) is int for part in value)
    return tuple(value) if whole else None


def external_id(args: Mapping[str, Any]) -> int | None:
    """The External id, which PyTorch up to 1.12 wrote in lower case; zero is Kineto's word for none."""
    return integer(args, "External id") or integer(args, "external id") or None


def label(event: Mapping[str, Any], args: Mapping[str, Any]) -> str:
    """What a tool that merged several traces calls the one that `event` is from; empty if it does not say.

    `[TP01] 4242` for a process (SGLang), or a rank among the arguments (TraceLens).
    """
    rank, pid = args.get("rank"), event.get("pid")
    if type(rank) in (int, str):
        return readable(str(rank)[:40])
    return readable(re.sub(r"\s*\d+$", "", pid)[:40]) if isinstance(pid, str) else ""
