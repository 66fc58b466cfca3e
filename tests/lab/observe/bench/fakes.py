"""A timer that needs no GPU: every call takes the time given for its name, plus a known pattern of noise."""

from __future__ import annotations

from fusionlab.observe.bench.results import Row


class FakeTimer:
    """Runs each first call once, so that failures occur as on a device, and takes times from a script."""

    l2_bytes = 40_000

    def __init__(self, times=None):
        self.times = times or {}
        self.prepared = []
        self.sampled = []

    def prepare(self, calls):
        calls[0]()
        handle = len(self.prepared)
        self.prepared.append(len(calls))
        return handle

    def release(self):
        self.released = getattr(self, "released", 0) + 1

    def sample(self, handle):
        self.sampled.append(handle)
        return self.times.get(handle, 10.0 + handle) * (1.0 + 0.1 * (self.sampled.count(handle) % 3))


def row(variant, us, tokens=64, gate="contiguous", shape="32x128", context="alone", **changes):
    name = f"{shape}/{tokens}/{gate}/{context}"
    values = {"samples": 3, "copies": 2, "bytes": 1000, "gb_s": 1000 / us / 1e3} | changes
    return Row(name, shape, tokens, gate, context, variant, us, us * 0.9, us * 1.1, **values)
