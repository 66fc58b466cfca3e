"""Floats that modules hold, such as `self.eps`, which `dynamic=True` makes inputs of a graph: read, and guarded.

Dynamo then puts no guard on their values, so a pass that took one for a constant would be wrong as soon as it changes.
The guard that is missing is added here: while a graph is compiled, Dynamo still collects the guards of its frame.
Another value compiles again, as it does without `dynamic=True`. A compile that a cache answers never calls the pass, so
the guards are added, and the values told, where the cache's key is made too.
"""

from __future__ import annotations

import logging
from typing import Any

from torch import fx

from fusionlib.match.graph import CONSTANT

log = logging.getLogger(__name__)

#: After so many values of one attribute it is no constant of the model, and stays an input: compiling again for each
#: value would soon reach Dynamo's limit.
MOST_VALUES = 4


class ModuleFloats:
    """The floats of modules in the graphs of one pass, and the values that each has had."""

    def __init__(self) -> None:
        self._seen: dict[tuple[object, str], set[float]] = {}

    def mark(self, graph: fx.Graph) -> None:
        """Note on each placeholder of `graph` that is a module's float which value it has."""
        values = self.guarded()
        for node in graph.find_nodes(op="placeholder") if values else ():
            index = getattr(node.meta.get("desc"), "idx", None)
            if index in values and getattr(node.meta.get("val"), "ndim", None) == 0:
                node.meta[CONSTANT] = values[index]

    def guarded(self) -> dict[int, float]:
        """The floats of modules among the inputs that Dynamo traces at present, by position, now guarded."""
        try:
            return self._guarded()
        except (ImportError, AttributeError) as error:  # Dynamo's inside, and it may change: sites are refused then
            log.debug("no floats of modules can be read: %s", error)
            return {}

    def _guarded(self) -> dict[int, float]:
        from torch._dynamo.guards import GuardBuilder, install_guard
        from torch._dynamo.symbolic_convert import InstructionTranslator
        from torch._guards import TracingContext
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        if TracingContext.try_get() is None:
            return {}
        tracer = InstructionTranslator.current_tx()
        found = {}
        for index, node in enumerate(tracer.output.placeholders):
            given = node.meta.get("grapharg")
            if given is None or not given.pass_arg_as_tensor or not _is_of_a_module(given.source):
                continue
            with unset_fake_temporarily():
                value = float(given.example)
            seen = self._seen.setdefault((tracer.f_code, str(given.source)), set())
            seen.add(value)
            if len(seen) <= MOST_VALUES:
                install_guard(given.source.make_guard(GuardBuilder.EQUALS_MATCH))
                found[index] = value
        return found


def _is_of_a_module(source: Any) -> bool:
    """Whether Dynamo found a value by attributes of a module."""
    kind = source.guard_source
    kind = kind() if callable(kind) else kind  # a method up to PyTorch 2.11
    asked = ("is_specialized_nn_module", "is_unspecialized_nn_module", "is_unspecialized_builtin_nn_module")
    return any(getattr(kind, name)() for name in (*asked, "is_fsdp_module"))
