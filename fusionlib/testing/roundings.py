"""What PyTorch before 2.13 takes out of a graph before any pass can read it, kept in for exercises and tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def roundings_kept() -> Iterator[None]:
    """Leave `value.to(bfloat16).float()` in the graphs that are traced within.

    Inductor before PyTorch 2.13 drops it in its joint-graph passes (the pattern `pointless_convert`), and what a graph
    no longer says cannot be read from it: there the fused op equals Inductor's unfused code and not eager. What is
    about reading takes that one pattern out, as newer versions do by themselves. A model's own compilation is left
    alone: `FusionPass` does not change what the rest of the model computes.
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
