"""A rewrite as a figure: the graph before, after and both combined, and the events one by one."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from fusionlab.show import graph_parts as parts
from fusionlab.show.controls import room
from fusionlab.show.drawing import Drawing, Table
from fusionlab.show.graph_focus import Focus, connected, focus, stub_label
from fusionlab.show.graph_layout import Layout, lay_out
from fusionlab.show.graph_states import Edge, Playback, State, play
from fusionlab.show.graph_text import COLUMNS, Facts, amount, hover, label, operation, row

if TYPE_CHECKING:
    from fusionlab.recorder import Recording

ABOVE = 60  # pixels above the graph, for the legend
BELOW = 164  # pixels below it, for the sentence, the buttons and the slider
MOST_CHANGED = 120  # nodes drawn together; a site of the fusion changes about thirty
SENTENCE_CHARACTERS = 74  # of the line with the sentence, on a narrow page
#: The kinds of box and of edge that have their own trace, in the traces' order.
EDGES = ("kept", "removed", "added")
BOXES = ("kept", "removed", "added", "stub", "gone", "touched")


@dataclass(frozen=True)
class _View:
    """What is drawn at one position of the controls: the kind of every node, the edges by kind, a sentence."""

    kinds: Mapping[str, str]
    edges: Mapping[str, Collection[Edge]]
    sentence: str
    touched: Collection[str] = ()
    gone: Collection[str] = ()


def graph_diff(
    recording: Recording,
    *,
    facts: Facts | None = None,
    site: str | None = None,
    hops: int | None = 1,
    title: str = "What the pass changed",
) -> Drawing:
    """The union of a graph before and after a rewrite, laid out once, so that what stays does not move.

    Buttons switch between before, both combined, and after; a slider plays the events. Neither needs a kernel.

    Args:
        recording: the rewrite.
        facts: bytes and modules of the nodes, from a capture's stages.
        site: the name of a changed node: only what changed with it is drawn. By default everything that changed, or the
            first connected part if that is too much for one figure.
        hops: how many edges around the changes are drawn; the rest is folded into stubs. None draws everything.
        title: the caption's first words.

    Raises:
        ValueError: if `site` is not a changed node.
    """
    import plotly.graph_objects as go

    facts, ends = facts or Facts(), play(recording, most=1)
    drawn = _focus(ends, site, hops)
    playback = play(recording, about=drawn.shown)
    labels = _labels(playback, drawn)
    layout = lay_out(labels, drawn.edges(playback.edges))
    views = [_at(playback, drawn, state) for state in playback.states]
    both = _both(playback, drawn)
    traces = _traces(layout, labels, _hovers(playback, drawn, facts), both)
    fig = go.Figure(traces, parts.plane(layout, ABOVE, **_controls(layout, labels, views, both)))
    return Drawing(
        fig,
        caption=f"{title}: before, after, and every step between.",
        alt=(
            f"A graph of {len(labels)} boxes from top to bottom, {len(drawn.stubs)} of them standing for what is "
            "folded away. Removed boxes have a dashed border and a cross, added ones a heavy border and a plus, the "
            "others a thin border. Buttons switch between both, before and after; a slider plays the events."
        ),
        summary=_summary(recording, playback, drawn, facts),
        table=_table(playback, facts),
    )


def _focus(playback: Playback, site: str | None, hops: int | None) -> Focus:
    """What to draw: the changed nodes, or one connected part of them, and `hops` around."""
    union, edges = list(playback.nodes), playback.edges
    kept = set(playback.kept)
    changed = [key for key in union if key not in kept]
    if site is not None and site not in changed:
        raise ValueError(f"site={site!r} is no node that changed; those are {', '.join(changed) or 'none'}")
    if hops is None or not changed:
        return focus(union, edges, None)
    if site is not None or len(changed) > MOST_CHANGED:
        # Old and new nodes of a site are connected only through what both read, or what reads one and then the other.
        touching = {edge for edge in edges if set(edge) & set(changed)}
        within = connected(dict.fromkeys([*changed, *(end for edge in touching for end in edge)]), touching)
        changed = set(changed) & next(part for part in within if site is None or site in part)
    return focus(union, edges, changed, hops)


def _labels(playback: Playback, drawn: Focus) -> dict[str, list[str]]:
    labels = {key: label(node) for key, node in playback.nodes.items() if key in drawn.shown}
    return labels | {stub: stub_label(len(names)) for stub, names in drawn.stubs.items()}


def _hovers(playback: Playback, drawn: Focus, facts: Facts) -> dict[str, str]:
    state = {key: "removed by the pass" for key in playback.removed} | {key: "added" for key in playback.added}
    hovers = {key: hover(playback.nodes[key], facts, state.get(key, "")) for key in drawn.shown}
    for stub, names in drawn.stubs.items():
        first = sorted(names, key=list(playback.nodes).index)[:6]
        listed = ", ".join(escape(playback.nodes[key].name) for key in first)
        hovers[stub] = f"<b>{stub_label(len(names))[0]}</b><br>folded away: {listed}{', …' * (len(names) > 6)}"
    return hovers


def _at(playback: Playback, drawn: Focus, state: State) -> _View:
    """The graph in one state: what is there, what has been added so far, what has been removed."""
    live, born = state.live & drawn.shown, state.live - playback.before.live
    kinds = {key: "added" if key in born else "kept" for key in live} | dict.fromkeys(drawn.stubs, "stub")
    new = state.edges - playback.before.edges
    edges = {"kept": drawn.edges(state.edges - new), "added": drawn.edges(new)}
    edges["kept"] -= edges["added"]
    gone = (drawn.shown & playback.before.live) - state.live if state is not playback.after else ()
    touched = (state.touched & drawn.shown) if state is not playback.after else ()
    return _View(kinds, edges, state.sentence, touched, gone)


def _both(playback: Playback, drawn: Focus) -> _View:
    """Before and after combined."""
    before, after = playback.before, playback.after
    kinds = dict.fromkeys(drawn.stubs, "stub")
    for kind in EDGES:
        kinds |= {key: kind for key in getattr(playback, kind) if key in drawn.shown}
    pairs = {"kept": before.edges & after.edges, "removed": before.edges, "added": after.edges}
    edges = {kind: drawn.edges(found) for kind, found in pairs.items()}
    edges["removed"] -= edges["kept"] | edges["added"]
    edges["added"] -= edges["kept"]
    counts = f"{len(playback.removed)} removed, {len(playback.added)} added"
    return _View(kinds, edges, f"Before and after in one: {counts}.")


def _traces(layout: Layout, labels: Mapping, hovers: Mapping, view: _View) -> list[Any]:
    looks, data = parts.looks(), _data(layout, labels, view)
    lines = list(zip(data["x"], data["y"], strict=True))
    edges = [parts.edge_trace(looks[kind], line) for kind, line in zip(EDGES, lines, strict=False)]
    boxes = [parts.box_trace(looks[kind], line) for kind, line in zip(BOXES, lines[len(EDGES) + 1 :], strict=False)]
    head = parts.head_trace(lines[len(EDGES)])
    return [*edges, head, *boxes, parts.node_trace(layout, labels, hovers, view.kinds)]


def _data(layout: Layout, labels: Mapping, view: _View) -> dict[str, list]:
    """What changes from view to view, one value per trace, as for plotly's `update`."""
    edges = [parts.curves(layout, view.edges.get(kind, ())) for kind in EDGES]
    ends = parts.heads(layout, {edge for found in view.edges.values() for edge in found})
    chosen = {kind: [key for key in labels if view.kinds.get(key) == kind] for kind in BOXES}
    chosen |= {kind: [key for key in labels if key in getattr(view, kind)] for kind in ("gone", "touched")}
    boxes = [parts.outlines((layout.boxes[k] for k in chosen[kind]), 4.0 * (kind == "touched")) for kind in BOXES]
    points = parts.node_points(layout, labels, view.kinds)
    lines = [*edges, ends, *boxes, (points["x"], points["y"])]
    data = {"x": [line[0] for line in lines], "y": [line[1] for line in lines]}
    for name, values in points["marker"].items():
        others = [None] * len(EDGES) + [parts.HEAD[name]] + [None] * len(BOXES)
        data[f"marker.{name}"] = [*others, values]
    return data


def _controls(layout: Layout, labels: Mapping, views: list[_View], both: _View) -> dict[str, Any]:
    """Title, buttons and slider; the title says what is shown, and a button also moves the slider."""
    height = layout.height + 2 * parts.MARGIN

    def step(view: _View, name: str, slider: int | None = None) -> dict[str, Any]:
        words = {"title.text": _short(view.sentence)}
        moved = {} if slider is None else {"sliders[0].active": slider}
        return {"method": "update", "label": name, "args": [_data(layout, labels, view), words | moved]}

    buttons = [step(both, "both in one", 0), step(views[0], "before", 1), step(views[-1], "after", len(views))]
    steps = [step(both, "both"), *(step(view, str(number)) for number, view in enumerate(views))]
    return {
        "height": round(ABOVE + height + BELOW),
        "margin": {"l": 6, "r": 6, "t": ABOVE, "b": BELOW},
        "meta": room(below=BELOW - 6),
        "title": {
            "text": _short(both.sentence), "font": {"size": 14}, "yref": "container", "yanchor": "top",
            "y": (BELOW - 12) / (ABOVE + height + BELOW),
        },
        "updatemenus": [
            {
                "type": "buttons", "direction": "right", "buttons": buttons, "showactive": False,
                "y": -40 / height, "yanchor": "top", "pad": {"t": 0},
            }
        ],
        "sliders": [
            {
                "steps": steps, "active": 0, "y": -82 / height, "yanchor": "top", "pad": {"t": 0, "b": 0},
                "currentvalue": {"prefix": "step: ", "font": {"size": 13}, "offset": 6},
            }
        ],
    }  # fmt: skip


def _short(sentence: str) -> str:
    cut = len(sentence) > SENTENCE_CHARACTERS
    return escape(sentence[: SENTENCE_CHARACTERS - 1] + "…" if cut else sentence)


def _summary(recording: Recording, playback: Playback, drawn: Focus, facts: Facts) -> str:
    if not recording.events:
        return f"Nothing changed: {len(recording.before)} nodes before and after."
    names = [operation(playback.nodes[key]) for key in playback.added if not _is_small(playback, key)]
    text = (
        f"{len(playback.removed)} nodes are gone, {len(playback.added)} are new"
        f"{' (' + ', '.join(dict.fromkeys(names)) + ')' if names else ''} and {len(playback.kept)} stay: "
        f"{len(recording.before)} before, {len(recording.after)} after, in {len(recording.events)} steps. "
    )
    hidden = sum(map(len, drawn.stubs.values())) + drawn.apart
    if hidden:
        text += f"{hidden} nodes are folded away. "
    before, after = (sum(_total(playback, facts, keys)) for keys in (playback.removed, playback.added))
    if before or after:
        text += (
            f"Each as a kernel of its own, the removed nodes move {amount(before)} and the new ones {amount(after)}."
        )
    return text.strip()


def _is_small(playback: Playback, key: str) -> bool:
    return operation(playback.nodes[key]) in ("getitem", "reshape", "cast")


def _total(playback: Playback, facts: Facts, keys: Collection[str]) -> list[int]:
    found = (facts.bytes.get(playback.nodes[key].name) for key in keys)
    return [entry.total for entry in found if entry is not None]


def _table(playback: Playback, facts: Facts) -> Table:
    """Every changed node, then the unchanged neighbours of changed ones."""
    fate = dict.fromkeys(playback.nodes, "made and erased")
    for kind, word in (("removed", "removed"), ("added", "added"), ("kept", "stays")):
        fate |= dict.fromkeys(getattr(playback, kind), word)
    changed = {key for key, word in fate.items() if word != "stays"}
    near = changed | {end for edge in playback.edges if changed & set(edge) for end in edge}
    rows = [[fate[key], *row(playback.nodes[key], facts)] for key in playback.nodes if key in near or not changed]
    return Table(f"The nodes that changed and their neighbours, {len(rows)} rows", ("what happens", *COLUMNS), rows)
