"""What a rewrite did to a graph, step by step, as data: the graph before, the events, the graph after.

PyTorch calls hooks on a graph's module when a node is created, replaced or erased, which gives the true order. If a
graph has no module or the module no hooks, the same kinds of events are inferred from the names before and after. The
graph itself is not kept, so a recording can be stored, sent and drawn elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from fusionlib.match.graph import source_line

EventKind = Literal["made", "replaced", "renamed", "erased"]
_HOOKS = tuple(
    f"_{verb}_{what}_node_hook" for verb in ("register", "unregister") for what in ("create", "replace", "erase")
)


@dataclass(frozen=True)
class NodeRecord:
    """One node as data.

    `target` is the op's name, `inputs` the names of the nodes it reads. A size or stride is a number, or the text of a
    symbolic one; `dtype`, `shape` and `stride` are None if the node is not a tensor, `line` if tracing recorded none.
    """

    name: str
    op: str
    target: str
    inputs: tuple[str, ...]
    dtype: str | None = None
    shape: tuple[int | str, ...] | None = None
    stride: tuple[int | str, ...] | None = None
    line: str | None = None

    @classmethod
    def of(cls, node: fx.Node) -> NodeRecord:
        """The record of a node as it is now."""
        inputs = tuple(source.name for source in node.all_input_nodes)
        val = node.meta.get("val")
        tensor: tuple = ()
        if isinstance(val, torch.Tensor):
            strided = val.layout is torch.strided
            tensor = (_dtype(val), _sizes(val.shape), _sizes(val.stride()) if strided else None)
        return cls(node.name, node.op, str(node.target), inputs, *(tensor or (None,) * 3), source_line(node))


def _dtype(val: torch.Tensor) -> str:
    return str(val.dtype).removeprefix("torch.")


def _sizes(sizes: tuple) -> tuple[int | str, ...]:
    return tuple(size if isinstance(size, int) else str(size) for size in sizes)


@dataclass(frozen=True)
class Event:
    """One step. `node` is what was created, replaced, renamed or erased.

    `by` names the replacement of a replaced node, or a renamed node's new name; `user` the node whose input changed.
    """

    order: int
    kind: EventKind
    node: NodeRecord
    by: str | None = None
    user: str | None = None


@dataclass(frozen=True)
class Recording:
    """A rewrite as data; `source` says whether the events come from hooks or from names."""

    before: tuple[NodeRecord, ...]
    events: tuple[Event, ...]
    after: tuple[NodeRecord, ...]
    source: Literal["hooks", "names"]

    def replay(self) -> set[str]:
        """Apply the events to the names before; the result must be the names after."""
        names = {node.name for node in self.before}
        for event in self.events:
            if event.kind in ("erased", "renamed"):
                names.remove(event.node.name)
            if event.kind in ("made", "renamed"):
                names.add(event.node.name if event.kind == "made" else event.by)
        return names

    def to_json(self) -> str:
        """The recording as text; `from_json` reads it back."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Recording:
        """Read a recording written by `to_json`."""
        data = json.loads(text)
        before, after = (tuple(map(_node_from, data[key])) for key in ("before", "after"))
        events = (Event(**{**event, "node": _node_from(event["node"])}) for event in data["events"])
        return cls(before, tuple(events), after, data["source"])


def _node_from(data: dict) -> NodeRecord:
    lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list)}
    return NodeRecord(**{**data, **lists})


def record(graph: fx.Graph, edit: Callable[[fx.Graph], object], *, hooks: bool | None = None) -> Recording:
    """Run `edit(graph)` and return what it did.

    Args:
        graph: changed in place by `edit`.
        edit: a pass, or any other function that changes a graph.
        hooks: True requires hooks and raises ValueError if there are none; False works by names; None uses hooks if
            available.
    """
    has_hooks = _has_hooks(graph)
    if hooks and not has_hooks:
        raise ValueError("hooks=True, but this graph has no module, or its module no hooks: use hooks=None")
    before = snapshot(graph)
    if hooks is False or not has_hooks:
        edit(graph)
        after = snapshot(graph)
        return Recording(before, tuple(events_by_name(before, after)), after, "names")
    log = _HookLog(graph)
    with log.listening():
        edit(graph)
    return Recording(before, log.events(), snapshot(graph), "hooks")


def snapshot(graph: fx.Graph) -> tuple[NodeRecord, ...]:
    """The nodes of `graph` as they are now, in order."""
    return tuple(NodeRecord.of(node) for node in graph.nodes)


def _has_hooks(graph: fx.Graph) -> bool:
    module = graph.owning_module
    return module is not None and all(hasattr(module, name) for name in _HOOKS)


class _HookLog:
    """Listens to a graph's module. Nodes are described when they are erased or when listening ends.

    A newly created node has no metadata yet, so a description at that moment would be empty.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self._graph = graph
        self._steps: list[tuple[EventKind, fx.Node, str | None, fx.Node | None]] = []
        self._gone: dict[fx.Node, NodeRecord] = {}
        self._first_name = {node: node.name for node in graph.nodes}

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Keep the hooks registered for the length of the block."""
        module = self._graph.owning_module
        hooks = {"create": self._made, "replace": self._replaced, "erase": self._erased}
        for what, hook in hooks.items():
            getattr(module, f"_register_{what}_node_hook")(hook)
        try:
            yield
        finally:
            for what, hook in hooks.items():
                getattr(module, f"_unregister_{what}_node_hook")(hook)

    def _made(self, node: fx.Node) -> None:
        if node.graph is self._graph:
            self._first_name[node] = node.name
            self._steps.append(("made", node, None, None))

    def _replaced(self, old: fx.Node, new: str, user: fx.Node) -> None:
        if user.graph is self._graph:
            self._steps.append(("replaced", old, new, user))

    def _erased(self, node: fx.Node) -> None:
        if node.graph is self._graph:
            self._gone[node] = self._describe(node)
            self._steps.append(("erased", node, None, None))

    def _describe(self, node: fx.Node) -> NodeRecord:
        described = NodeRecord.of(node)
        name = self._first_name.get(node, node.name)
        return described if name == node.name else NodeRecord(**{**vars(described), "name": name})

    def events(self) -> tuple[Event, ...]:
        """All recorded events in order, followed by the renamings, which have no hook."""
        records = {node: self._gone.get(node) or self._describe(node) for _, node, _, _ in self._steps}
        events = []
        for kind, node, new, user in self._steps:
            if kind == "replaced" and new == node.name:
                continue  # renaming a node also calls this hook, once per user
            user_name = None if user is None else self._first_name.get(user, user.name)
            events.append(Event(len(events), kind, records[node], new, user_name))
        for node in self._graph.nodes:
            first = self._first_name[node]
            if first != node.name:
                events.append(Event(len(events), "renamed", self._describe(node), node.name))
        return tuple(events)


def events_by_name(before: tuple[NodeRecord, ...], after: tuple[NodeRecord, ...]) -> Iterator[Event]:
    """The smallest set of events that leads from one snapshot to the other.

    Their order is a readable guess: new nodes are created first, then inputs change, then removed nodes are erased,
    last node first. A name that stands for another operation afterwards counts as erased and created again.
    """
    old, new = ({node.name: node for node in nodes} for nodes in (before, after))
    kept = {
        name for name in old.keys() & new.keys() if (old[name].op, old[name].target) == (new[name].op, new[name].target)
    }
    reused = old.keys() & new.keys() - kept
    steps: list[tuple[EventKind, NodeRecord, str | None, str | None]] = []
    steps += [("erased", old[name], None, None) for name in old if name in reused]
    steps += [("made", node, None, None) for node in after if node.name not in kept]
    for node in after:
        if node.name in kept and len(old[node.name].inputs) == len(node.inputs):
            changed = zip(old[node.name].inputs, node.inputs, strict=True)
            steps += [("replaced", old[was], now, node.name) for was, now in changed if was != now]
    steps += [("erased", node, None, None) for node in reversed(before) if node.name not in new]
    return (Event(order, *step) for order, step in enumerate(steps))


class Recorder(CustomGraphPass):
    """A pass that wraps another and records what it does; usable wherever the inner one is.

        recorder = Recorder(fusion)
        torch.compile(model, options={"post_grad_custom_pre_pass": recorder})(inputs)
        recorder.recordings[0].events

    Args:
        inner: the pass to run.
        hooks: as for `record`.
    """

    def __init__(self, inner: Callable[[fx.Graph], object], *, hooks: bool | None = None) -> None:
        self.inner, self.hooks = inner, hooks
        self.recordings: list[Recording] = []

    def __call__(self, graph: fx.Graph) -> None:
        """Run the inner pass on `graph` and keep the recording."""
        self.recordings.append(record(graph, self.inner, hooks=self.hooks))

    def uuid(self) -> None:
        """None, which disables caching: a cached artefact runs no pass, so there would be nothing to record."""
        return None
