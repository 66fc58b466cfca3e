"""Keeps roundings in the graph, for exercises and tests: PyTorch before 2.13 removes them before any pass runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def roundings_kept() -> Iterator[None]:
    """Leave `value.to(bfloat16).float()` in the graphs that are traced inside this context.

    Before PyTorch 2.13, Inductor drops it in its joint-graph passes (the pattern `pointless_convert`), so a matcher
    cannot see it: the fused op then equals Inductor's unfused code, not eager. Exercises and tests about reading graphs
    disable that one pattern, as newer versions do by default. A model's own compilation is unaffected: `FusionPass`
    does not change what the rest of the model computes.
    """
    from torch._inductor.fx_passes import joint_graph

    table = joint_graph.patterns.patterns if torch.__version__ < "2.13" else {}
    before = {key: list(entries) for key, entries in table.items()}
    for entries in table.values():
        entries[:] = [e for e in entries if getattr(getattr(e, "handler", None), "__name__", "") != "pointless_convert"]
    try:
        yield
    finally:
        for key, entries in before.items():
            table[key][:] = entries
