"""Several passes as one, for PyTorch before 2.13, whose pass options take no list."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass


class Chain(CustomGraphPass):
    """Runs `passes` in order, as `options={"post_grad_custom_pre_pass": Chain(mine, fusion)}`.

    Its uuid combines theirs; a plain function has none, and Inductor then caches nothing that the chain made.
    """

    def __init__(self, *passes: Callable[[fx.Graph], None]) -> None:
        self.passes = passes

    def __call__(self, graph: fx.Graph) -> None:
        """Run every pass on `graph`, in place."""
        for each in self.passes:
            each(graph)

    def uuid(self) -> str | None:
        """The uuids of the passes, or None if one has none."""
        uuids = [each.uuid() if isinstance(each, CustomGraphPass) else None for each in self.passes]
        return None if None in uuids else "+".join(map(str, uuids))
