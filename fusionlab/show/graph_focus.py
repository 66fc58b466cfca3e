"""Folding away what is far from the place of interest in a graph."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Focus:
    """Which nodes are drawn, and which are grouped into a stub.

    `stubs` maps each stub's name to its hidden nodes; `apart` counts hidden nodes that are connected to nothing drawn.
    """

    shown: frozenset[str]
    stubs: Mapping[str, frozenset[str]] = field(default_factory=dict)
    apart: int = 0

    def edges(self, edges: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """`edges` between what is drawn, with hidden ends moved to their stubs."""
        stub = {name: key for key, names in self.stubs.items() for name in names}
        ends = ((a if a in self.shown else stub.get(a), b if b in self.shown else stub.get(b)) for a, b in edges)
        return {(a, b) for a, b in ends if a is not None and b is not None and a != b}


def focus(
    names: Sequence[str], edges: Collection[tuple[str, str]], centre: Collection[str] | None, hops: int = 1
) -> Focus:
    """Show `centre` and what is at most `hops` edges away; each connected part of the rest is one stub.

    Args:
        names: all nodes, in order.
        edges: (source, target) pairs.
        centre: what must be shown; None shows everything.
        hops: 0 shows only the centre.
    """
    if centre is None:
        return Focus(frozenset(names))
    near: dict[str, set[str]] = {name: set() for name in names}
    for a, b in edges:
        near[a].add(b)
        near[b].add(a)
    shown = set(centre)
    for _ in range(hops):
        shown |= {other for name in shown for other in near[name]}
    above = _reached(shown, {(b, a) for a, b in edges})
    stubs, apart = {}, 0
    for hidden in (above, set(names) - above):
        for part in connected([name for name in names if name in hidden - shown], edges):
            if any(near[name] & shown for name in part):
                stubs[f"stub {len(stubs) + 1}"] = frozenset(part)
            else:
                apart += len(part)
    return Focus(frozenset(shown), stubs, apart)


def _reached(start: Collection[str], edges: Collection[tuple[str, str]]) -> set[str]:
    follow: dict[str, list[str]] = {}
    for a, b in edges:
        follow.setdefault(a, []).append(b)
    seen, stack = set(start), list(start)
    while stack:
        new = [name for name in follow.get(stack.pop(), ()) if name not in seen]
        seen.update(new)
        stack += new
    return seen


def connected(names: Iterable[str], edges: Iterable[tuple[str, str]]) -> list[set[str]]:
    """The connected parts of `names`, ignoring the direction of edges, in order of their first name."""
    names = dict.fromkeys(names)
    inside = {(a, b) for a, b in edges if a in names and b in names}
    both_ways, parts, seen = inside | {(b, a) for a, b in inside}, [], set()
    for name in names:
        if name not in seen:
            parts.append(_reached([name], both_ways))
            seen |= parts[-1]
    return parts


def stub_label(count: int) -> list[str]:
    """The text in a stub."""
    return [f"… {count} more node{'s' * (count != 1)}"]
