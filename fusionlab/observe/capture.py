"""A function's graph at named stages of torch.compile, as data, without generating code.

    dynamo   what Dynamo traced: the Python code's calls, under their Python names
    aten     AOTAutograd's result: ATen operations, decomposed, without in-place writes
    before   what a `post_grad_custom_pre_pass` gets, after Inductor's early passes
    after    the result of the pass

Every stage is captured where PyTorch itself calls a backend or a custom pass, so none of them is imitated.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from fusionlab.observe.byte_ledger import Bytes, Entry, ledger
from fusionlab.recorder import NodeRecord, Recording, record
from fusionlib.devices import DEVICES
from fusionlib.explanation import apart_from_caches, inductor_until, stand_in_for, to_the_pass
from fusionlib.rewrite.fusion_pass import FusionPass

#: The stages in the order in which a graph passes through them.
STAGES = ("dynamo", "aten", "before", "after")


class CaptureError(RuntimeError):
    """A graph did not reach a stage; the message says which one and why that may be."""


@dataclass(frozen=True)
class Stage:
    """The graph at one stage.

    `module` is a copy that shares parameters and metadata; `modules` maps a node to the module of the model it belongs
    to, `origins` to the call of the `dynamo` stage it comes from. Nodes without one are absent there.
    """

    name: str
    nodes: tuple[NodeRecord, ...]
    module: fx.GraphModule = field(repr=False, compare=False)
    modules: Mapping[str, str] = field(repr=False, default_factory=dict)
    origins: Mapping[str, str] = field(repr=False, default_factory=dict)

    @classmethod
    def of(cls, name: str, graph: fx.Graph) -> Stage:
        """A snapshot of `graph`, unaffected by later changes."""
        copy = _copy(graph)
        nodes = tuple(map(_record, copy.graph.nodes))
        found = {what: {node.name: read(node) for node in copy.graph.nodes} for what, read in _READERS.items()}
        present = {what: {node: text for node, text in of.items() if text} for what, of in found.items()}
        return cls(name, nodes, copy, **present)

    def __getitem__(self, name: str) -> NodeRecord:
        """The node called `name`."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(f"no node {name!r} at stage {self.name!r}; `[node.name for node in stage.nodes]` lists them")

    @functools.cached_property
    def ledger(self) -> tuple[Entry, ...]:
        """The byte ledger of its calls; empty for `dynamo`, whose calls become operations only later."""
        return () if self.name == "dynamo" else tuple(ledger(self.module))

    @property
    def bytes(self) -> dict[str, Bytes]:
        """The bytes each call moves as a separate kernel, by name."""
        return {entry.node: entry.bytes for entry in self.ledger}


@dataclass(frozen=True)
class Capture:
    """One graph at all stages, and what the pass did between the last two.

    `recording` holds the events; `outcome` is what the pass returned, a `CompileRecord` for `FusionPass`.
    """

    dynamo: Stage
    aten: Stage
    before: Stage
    after: Stage
    recording: Recording
    outcome: Any = None

    @property
    def stages(self) -> tuple[Stage, ...]:
        """All stages in order."""
        return tuple(getattr(self, name) for name in STAGES)


def capture(
    fn: Callable[..., Any],
    *args: Any,
    graph_pass: Callable[[fx.Graph], Any] | None = None,
    devices: Sequence[str] = DEVICES,
    dynamic: bool | None = None,
    **kwargs: Any,
) -> list[Capture]:
    """Every graph of `fn(*args, **kwargs)` at all stages; one entry unless Dynamo splits the function into several.

    Args:
        fn: a function or module; it is traced, and Python code outside its graphs runs.
        graph_pass: what runs between `before` and `after`; by default the rewrite of `FusionPass(devices)`.
        devices: where the default pass rewrites; everywhere unless named, since every graph here is to be looked at.
        dynamic: as in `torch.compile`.

    Raises:
        CaptureError: if a graph does not reach every stage. With gradients enabled, the backward graph is left out.
    """
    graph_pass = graph_pass or FusionPass(devices).rewrite
    found: list[dict[str, Any]] = []

    def backend(module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        into: dict[str, Any] = {"dynamo": Stage.of("dynamo", module.graph)}
        found.append(into)
        inner = functools.partial(_to_the_pass, into=into, graph_pass=graph_pass)
        with _patched(joint_custom_pre_pass=lambda graph: into.setdefault("aten", Stage.of("aten", graph))):
            return inductor_until(inner)(module, example_inputs)

    with apart_from_caches():
        torch.compile(fn, backend=backend, dynamic=dynamic)(*args, **kwargs)
    return [_complete(into) for into in found]


def _to_the_pass(module: fx.GraphModule, example_inputs: Sequence[Any], *, into: dict, graph_pass: Callable, **how):
    """Replaces Inductor's code generation: only its post-grad passes run."""
    stand_in = stand_in_for(module)
    if "recording" in into or how.get("is_backward"):
        return stand_in

    def listen(graph: fx.Graph) -> None:
        if graph.owning_module is not module:  # the body of a condition or a loop, not this graph
            return
        outcome: list[Any] = []
        into["before"] = Stage.of("before", graph)
        into["recording"] = record(graph, lambda graph: outcome.append(graph_pass(graph)))
        into["after"] = Stage.of("after", graph)
        into["outcome"] = outcome[0]

    to_the_pass(module, example_inputs, listen, is_inference=bool(how.get("is_inference")))
    return stand_in


def _patched(**options: Any):
    import torch._inductor.config as inductor_config

    return inductor_config.patch(**options)


def _complete(into: dict[str, Any]) -> Capture:
    for name in STAGES:
        if name not in into:
            raise CaptureError(
                f"the graph with {len(into['dynamo'].nodes)} nodes from Dynamo never reached stage {name!r}: Inductor "
                "handed it to nothing, as it does with a graph that computes no tensor; leave that part out of `fn`"
            )
    return Capture(**into)


def _copy(graph: fx.Graph) -> fx.GraphModule:
    """A new module around a copy of `graph`; Dynamo's example values become `val`, as in the later stages."""
    owner = graph.owning_module if graph.owning_module is not None else torch.nn.Module()
    copy, mapped = fx.Graph(), {}
    copy.output(copy.graph_copy(graph, mapped)).name = graph.output_node().name
    for node, twin in mapped.items():
        twin.name = node.name
        if "val" not in twin.meta and "example_value" in twin.meta:
            twin.meta["val"] = twin.meta["example_value"]
    return fx.GraphModule(owner, copy)


def _record(node: fx.Node) -> NodeRecord:
    return dataclasses.replace(NodeRecord.of(node), target=target_name(node))


def target_name(node: fx.Node) -> str:
    """What `node` calls, as written in code; a function's own repr contains its address."""
    if isinstance(node.target, str | torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(node.target)
    module = getattr(node.target, "__module__", None) or "torch"
    return f"{module.removeprefix('_')}.{getattr(node.target, '__name__', type(node.target).__name__)}"


def _module_of(node: fx.Node) -> str:
    """`path (Class)` of the innermost module that made `node`; empty at top level."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return ""
    path, kind = stack[-1]
    name = kind if isinstance(kind, str) else getattr(kind, "__name__", str(kind))
    path = re.sub(r"^L\[[^]]*\]\.?|_modules|[\"'\[\]]", "", str(path)).strip(".")
    return f"{path or 'the module itself'} ({name.rpartition('.')[2]})"


def _origin_of(node: fx.Node) -> str:
    sources = node.meta.get("from_node") or []
    return str(sources[0].name) if sources else ""


_READERS: dict[str, Callable[[fx.Node], str]] = {"modules": _module_of, "origins": _origin_of}
