"""A recording as the states that a figure steps through: the nodes, what reads what, and a description of the event."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fusionlab.show.graph_text import operation

if TYPE_CHECKING:
    from fusionlab.recorder import Event, NodeRecord, Recording

#: (source, target): data flows from the first to the second.
Edge = tuple[str, str]


@dataclass(frozen=True)
class State:
    """The graph between two events.

    Nodes are identified by keys: a node's first name, marked if that name later stands for another node. `touched`
    holds the nodes affected by the events since the last state.
    """

    live: frozenset[str]
    edges: frozenset[Edge]
    touched: frozenset[str]
    sentence: str


@dataclass(frozen=True)
class Playback:
    """All nodes that ever existed, by key in reading order, and the states from before to after."""

    nodes: Mapping[str, NodeRecord]
    states: tuple[State, ...]

    @property
    def before(self) -> State:
        """The state before the first event."""
        return self.states[0]

    @property
    def after(self) -> State:
        """The state after the last event."""
        return self.states[-1]

    @cached_property
    def removed(self) -> list[str]:
        """Keys of nodes that were removed."""
        return self._in_order(self.before.live - self.after.live)

    @cached_property
    def added(self) -> list[str]:
        """Keys of nodes that were added."""
        return self._in_order(self.after.live - self.before.live)

    @cached_property
    def kept(self) -> list[str]:
        """Keys of nodes that were there all along."""
        return self._in_order(self.before.live & self.after.live)

    def _in_order(self, keys: Collection[str]) -> list[str]:
        return [key for key in self.nodes if key in keys]

    @cached_property
    def edges(self) -> set[Edge]:
        """Every edge that ever existed."""
        return {edge for state in self.states for edge in state.edges}


def play(recording: Recording, most: int = 60, about: Collection[str] | None = None) -> Playback:
    """The states of `recording`.

    Args:
        recording: what to play.
        most: maximum number of steps; if there are more events, several make one step.
        about: keys; an event about none of them gets no step. None includes every event.
    """
    trial, told = _Player(recording.before), []
    for position, event in enumerate(recording.events):
        if about is None or set(trial.apply(event)) & set(about):
            told.append(position)
    per_step = -(-len(told) // most) or 1
    ends = {position: number for number, position in enumerate(told[per_step - 1 :: per_step], start=1)}
    if told:
        ends.setdefault(told[-1], len(ends) + 1)
    player = _Player(recording.before)
    states, touched, words = [player.state((), "Before the pass.")], [], []
    for position, event in enumerate(recording.events):
        keys = list(player.apply(event))
        if about is None or set(keys) & set(about):
            touched += keys
            words.append(sentence(event))
        if position in ends:
            text = f"Step {ends[position]} of {len(ends)}: {'; '.join(dict.fromkeys(words))}"
            states.append(player.state(touched, text))
            touched, words = [], []
    if recording.events:
        player.finish(recording.after)
        last = states.pop() if len(states) > 1 else states[0]
        states.append(player.state(last.touched, last.sentence))
    order = {key: place for place, key in enumerate(_reading_order(recording, player))}
    nodes = {key: player.nodes[key] for key in sorted(player.nodes, key=lambda key: order[key])}
    return Playback(nodes, tuple(states))


def sentence(event: Event) -> str:
    """An event in words."""
    what = operation(event.node)
    name = event.node.name + ("" if what == event.node.name else f" ({what})")
    if event.kind == "replaced":
        return f"{event.user} now reads {event.by} instead of {event.node.name}"
    if event.kind == "renamed":
        return f"renamed {event.node.name} to {event.by}"
    return f"{event.kind} {name}"


class _Player:
    """The graph as the events change it."""

    def __init__(self, before: Iterable[NodeRecord]) -> None:
        self.nodes: dict[str, NodeRecord] = {}
        self._reads: dict[str, list[str]] = {}
        self._key: dict[str, str] = {}  # of the node that a name currently stands for
        for node in before:
            self._enter(node)

    def _enter(self, node: NodeRecord) -> str:
        key = node.name
        while key in self.nodes:
            key += "′"
        self.nodes[key] = node
        self._reads[key] = [self._key[name] for name in node.inputs if name in self._key]
        self._key[node.name] = key
        return key

    def apply(self, event: Event) -> Iterator[str]:
        """Apply `event`; yields the keys that it affects."""
        name = event.node.name
        if event.kind == "made":
            yield self._enter(event.node)
        elif event.kind == "erased":
            key = self._key.pop(name)
            del self._reads[key]
            yield key
        elif event.kind == "renamed":
            self._key[event.by] = self._key.pop(name)
            yield self._key[event.by]
        else:
            user, old, new = (self._key.get(n) for n in (event.user, name, event.by))
            if user is not None and new is not None:
                self._reads[user] = [new if key == old else key for key in self._reads[user]]
                yield from (user, new)

    def finish(self, after: Iterable[NodeRecord]) -> None:
        """Take inputs and descriptions from the final snapshot: an argument can be set without an event."""
        for node in after:
            key = self._key[node.name]
            self.nodes[key] = node
            self._reads[key] = [self._key[name] for name in node.inputs]

    def state(self, touched: Iterable[str], sentence: str) -> State:
        """The current state."""
        edges = {(source, key) for key, reads in self._reads.items() for source in reads if source in self._reads}
        return State(frozenset(self._reads), frozenset(edges), frozenset(touched), sentence)

    def key_of(self, name: str) -> str:
        """What `name` stands for at the end."""
        return self._key[name]


def _reading_order(recording: Recording, player: _Player) -> list[str]:
    """Keys in graph order: the old nodes, and each new one after the last old one that precedes it."""
    old, behind, last = {node.name for node in recording.before}, {}, ""
    for node in recording.after:
        key = player.key_of(node.name)
        if key in old:
            last = key
        else:
            behind.setdefault(last, []).append(key)
    order = behind.get("", []) + [key for node in recording.before for key in (node.name, *behind.get(node.name, ()))]
    return order + [key for key in player.nodes if key not in set(order)]
