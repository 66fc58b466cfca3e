"""One graph as a figure: what flows where, which calls move bytes and which are views."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from fusionlab.show import graph_parts as parts
from fusionlab.show.drawing import Drawing, Table
from fusionlab.show.graph_focus import Focus, focus, stub_label
from fusionlab.show.graph_layout import lay_out
from fusionlab.show.graph_text import COLUMNS, Facts, amount, hover, label, row

if TYPE_CHECKING:
    from fusionlab.recorder import NodeRecord

ABOVE = 60  # pixels above the graph, for the legend
KINDS = ("value", "plain", "call", "view", "stub")


def graph_view(
    nodes: Sequence[NodeRecord],
    *,
    facts: Facts | None = None,
    centre: Collection[str] | None = None,
    hops: int = 1,
    with_bytes: bool = False,
    title: str = "The graph",
) -> Drawing:
    """The nodes of a graph as boxes, data flowing downwards.

    Args:
        nodes: a snapshot, such as `Stage.nodes`.
        facts: bytes and modules of the nodes; without bytes no call counts as a view.
        centre, hops: draw these nodes and what is at most `hops` edges away, the rest in stubs; None draws all.
        with_bytes: show in each box what the call moves.
        title: the caption.

    Raises:
        ValueError: if `centre` names a node that does not exist.
    """
    import plotly.graph_objects as go

    facts, found = facts or Facts(), {node.name: node for node in nodes}
    missing = sorted(set(centre or ()) - set(found))
    if missing:
        raise ValueError(f"centre names {', '.join(missing)}, which the graph with {len(found)} nodes does not have")
    edges = {(source, node.name) for node in nodes for source in node.inputs if source in found}
    drawn = focus(list(found), edges, centre, hops)
    told = facts if with_bytes else None
    labels = {name: label(node, told) for name, node in found.items() if name in drawn.shown}
    labels |= {stub: stub_label(len(names)) for stub, names in drawn.stubs.items()}
    hovers = {name: hover(found[name], facts) for name in drawn.shown}
    hovers |= {stub: f"<b>{stub_label(len(names))[0]}</b>" for stub, names in drawn.stubs.items()}
    kinds = {name: _kind(found.get(name), facts) for name in labels}
    layout, looks = lay_out(labels, drawn.edges(edges)), parts.looks()
    boxes = {kind: [layout.boxes[name] for name in labels if kinds[name] == kind] for kind in KINDS}
    fig = go.Figure(
        [
            parts.edge_trace(looks["kept"], parts.curves(layout, set(layout.lines))),
            parts.head_trace(parts.heads(layout, set(layout.lines))),
            *(parts.box_trace(looks[kind], parts.outlines(boxes[kind])) for kind in KINDS if boxes[kind]),
            parts.node_trace(layout, labels, hovers, kinds),
        ],
        parts.plane(layout, ABOVE),
    )
    return Drawing(
        fig,
        caption=title if title.endswith(".") else f"{title}.",
        alt=(
            f"A graph of {len(labels)} boxes from top to bottom, with an arrow wherever one reads the other. Calls "
            "that move bytes have a solid border, views a dashed one; dotted boxes stand for what is folded away."
        ),
        summary=_summary(found, kinds, drawn, facts),
        table=Table(f"The {len(drawn.shown)} nodes that are drawn", COLUMNS,
                    [row(node, facts) for name, node in found.items() if name in drawn.shown]),
    )  # fmt: skip


def _kind(node: NodeRecord | None, facts: Facts) -> str:
    if node is None:
        return "stub"
    if not node.op.startswith("call_"):
        return "value"
    found = facts.bytes.get(node.name)
    if found is None:
        return "plain"
    return "call" if found.total else "view"


def _summary(found: dict[str, NodeRecord], kinds: dict[str, str], drawn: Focus, facts: Facts) -> str:
    calls = [name for name in drawn.shown if found[name].op.startswith("call_")]
    folded = sum(map(len, drawn.stubs.values()))
    text = f"{len(drawn.shown)} of {len(found)} nodes are drawn, {len(calls)} of them calls."
    text += f" {folded} are folded into the dotted boxes." if folded else ""
    text += f" {drawn.apart} are connected to none of these." if drawn.apart else ""
    if not any(name in facts.bytes for name in calls):
        return text
    moving = {name: facts.bytes[name].total for name in calls if kinds[name] == "call" and name in facts.bytes}
    total, rest = amount(sum(moving.values())), len(calls) - len(moving)
    text += f" Of the calls {len(moving)} move bytes, {total} together, and {rest} none."
    if moving:
        most = max(sorted(moving), key=moving.__getitem__)
        text += f" {most} moves most: {amount(moving[most])}."
    return text
