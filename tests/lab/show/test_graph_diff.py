"""The figures of a rewrite and of a graph: the controls show what the recording says."""

import dataclasses
import json

import pytest
import torch

pytest.importorskip("plotly", reason="the notebooks extra is not installed")
pytest.importorskip("graphlay", reason="the notebooks extra is not installed")

from fusionlab.observe.capture import capture
from fusionlab.recorder import NodeRecord, Recording
from fusionlab.show import graph_parts as parts
from fusionlab.show.figure import figure_bundle
from fusionlab.show.graph_diff import BOXES, EDGES, graph_diff
from fusionlab.show.graph_layout import lay_out
from fusionlab.show.graph_states import play
from fusionlab.show.graph_text import Facts, amount, label, operation, place
from fusionlab.show.graph_view import graph_view
from fusionlib.layers import AttentionOutput

MOST_BYTES = 1_500_000
BOX = len(EDGES) + 1  # number of the first trace of boxes


@pytest.fixture(scope="module")
def captured():
    x, gate = torch.randn(2, 6, 4, 128, dtype=torch.bfloat16)
    with torch.no_grad():
        return capture(AttentionOutput(4, 128, 256).eval(), x, gate)[0]


@pytest.fixture(scope="module")
def facts(captured):
    stages = captured.before, captured.after
    return Facts(stages[0].bytes | stages[1].bytes, {**stages[0].modules, **stages[1].modules})


@pytest.fixture(scope="module")
def drawing(captured, facts):
    return graph_diff(captured.recording, facts=facts)


def update(control: dict) -> dict:
    """The data of an `update` by a button or a step, as the page gets it."""
    return control["args"][0]


def boxes(data: dict, kind: str) -> int:
    """How many boxes of `kind` the data draws: each ends with a None."""
    return data["x"][BOX + BOXES.index(kind)].count(None)


def controls(drawing) -> tuple[list[dict], list[dict]]:
    payload = figure_bundle(drawing)[0]["application/vnd.plotly.v1+json"]
    layout = payload["layout"]
    return layout["updatemenus"][0]["buttons"], layout["sliders"][0]["steps"]


def test_the_buttons_show_before_both_and_after(drawing, captured):
    playback = play(captured.recording)
    both, before, after = map(update, controls(drawing)[0])
    assert [boxes(both, kind) for kind in ("removed", "added")] == [len(playback.removed), len(playback.added)]
    assert boxes(before, "removed") == boxes(before, "added") == boxes(after, "removed") == 0
    assert boxes(after, "added") == len(playback.added)
    assert boxes(before, "kept") == boxes(both, "kept") + len(playback.removed)
    assert boxes(after, "kept") == boxes(both, "kept")


def test_the_slider_plays_every_event(drawing, captured):
    steps = controls(drawing)[1]
    events = captured.recording.events
    assert [step["label"] for step in steps] == ["both", *(str(i) for i in range(len(events) + 1))]
    for event, step in zip(events, steps[2:], strict=True):
        assert event.node.name in step["args"][1]["title.text"]
    made = sum(event.kind == "made" for event in events[:5])
    assert boxes(update(steps[6]), "added") == made > 0
    middle = update(steps[-2])
    assert boxes(middle, "touched") >= 1 and boxes(middle, "gone") >= 1


def test_ends_of_the_slider_are_the_buttons(drawing):
    (both, before, after), steps = controls(drawing)
    assert update(steps[0]) == update(both)
    assert update(steps[1]) == update(before)
    assert update(steps[-1]) == update(after)


def test_what_is_seen_first_is_what_the_slider_and_the_title_say(drawing):
    layout = drawing.fig.layout
    first = layout.sliders[0].steps[layout.sliders[0].active]
    assert first.label == "both" and layout.title.text == first.args[1]["title.text"]
    for number, trace in enumerate(drawing.fig.data):
        assert list(trace.x) == list(first.args[0]["x"][number])


def test_the_controls_stand_below_beside_what_is_added(drawing):
    layout = drawing.fig.layout
    assert layout.sliders[0].y < 0 and layout.updatemenus[0].y < 0
    assert layout.height * layout.title.y < layout.margin.b and layout.meta["controls"]["below"] <= layout.margin.b


def test_nothing_moves(drawing):
    """At every position of every control, each drawn node is at its place."""
    buttons, steps = controls(drawing)
    home = {}
    for control in (*buttons, *steps):
        data = update(control)
        for number, (x, y) in enumerate(zip(data["x"][-1], data["y"][-1], strict=True)):
            if x is not None:
                assert home.setdefault(number, (x, y)) == (x, y)


def test_every_update_has_a_value_for_every_trace(drawing):
    buttons, steps = controls(drawing)
    for control in (*buttons, *steps):
        assert control["method"] == "update"
        assert {len(values) for values in update(control).values()} == {len(drawing.fig.data)}


def test_kinds_differ_without_colour(drawing):
    looks = {trace.name: (trace.line.dash, trace.line.width) for trace in drawing.fig.data if trace.fill == "toself"}
    assert len(set(looks.values())) == len(looks) == len(BOXES)
    symbols = set(drawing.fig.data[-1].marker.symbol)
    assert {"x", "cross", "circle", "circle-open"} <= symbols


def test_the_search_contract(drawing, captured):
    nodes = drawing.fig.data[-1]
    assert nodes.meta == {"search": True} and len(nodes.ids) == len(nodes.hovertext) == len(nodes.x)
    hover = next(text for name, text in zip(nodes.ids, nodes.hovertext, strict=True) if "rms_norm" in name)
    for part in ("fusionlib.rms_norm_gated_group_quant.default", "module: out_proj (BlockFP8Linear)", "added"):
        assert part in hover
    assert nodes.selected.marker.size != nodes.marker.size[0]


def test_hover_says_shape_dtype_stride_bytes_and_line(drawing):
    nodes = drawing.fig.data[-1]
    text = next(hover for hover in nodes.hovertext if "aten.rsqrt.default" in hover)
    for part in (
        "shape: 24×1×1",
        "dtype: float32",
        "stride: [1, 1, 1]",
        "moves: 96 B read, 96 B written",
        "line: refer",
    ):
        assert part in text
    assert not any("/" in hover.split("line: ")[1] for hover in nodes.hovertext if "line: " in hover)


def test_the_words_say_what_changed(drawing, captured):
    playback = play(captured.recording)
    assert f"{len(playback.removed)} nodes are gone, {len(playback.added)} are new" in drawing.summary
    assert f"in {len(captured.recording.events)} steps" in drawing.summary
    assert "rms_norm_gated_group_quant" in drawing.summary


def test_the_table_says_what_the_figure_says(drawing, captured):
    playback = play(captured.recording)
    fate = {row[1]: row[0] for row in drawing.table.rows}
    assert [name for name in fate if fate[name] == "removed"] == playback.removed
    assert [name for name in fate if fate[name] == "added"] == playback.added
    assert "/" not in " ".join(row[-1] for row in drawing.table.rows)


def test_the_payload_is_small(drawing):
    assert len(json.dumps(figure_bundle(drawing)[0])) < MOST_BYTES


def test_a_long_recording_stays_small(captured):
    """Twenty sites in one graph: the events are bundled."""
    one = captured.recording

    def renamed(node: NodeRecord, site: int) -> NodeRecord:
        return dataclasses.replace(
            node, name=f"{node.name}_s{site}", inputs=tuple(f"{name}_s{site}" for name in node.inputs)
        )

    before, after, events = [], [], []
    for site in range(20):
        before += [renamed(node, site) for node in one.before]
        after += [renamed(node, site) for node in one.after]
        for event in one.events:
            by, user = (name and f"{name}_s{site}" for name in (event.by, event.user))
            events.append(
                dataclasses.replace(event, order=len(events), node=renamed(event.node, site), by=by, user=user)
            )
    many = Recording(tuple(before), tuple(events), tuple(after), one.source)
    assert one.replay() and many.replay() == {node.name for node in after}
    for small, site in ((graph_diff(many), "s0"), (graph_diff(many, site="rsqrt_s3"), "s3")):
        assert len(json.dumps(figure_bundle(small)[0])) < MOST_BYTES
        nodes = [name for name in small.fig.data[-1].ids if not name.startswith("…")]
        assert nodes and all(name.endswith(site) for name in nodes)
        assert len(controls(small)[1]) == len(one.events) + 2


def test_a_site_that_did_not_change_is_an_error(captured):
    with pytest.raises(ValueError, match="site='nope' is no node that changed; those are"):
        graph_diff(captured.recording, site="nope")


def test_nothing_changed_is_said():
    nodes = (NodeRecord("x", "placeholder", "x", ()), NodeRecord("output", "output", "output", ("x",)))
    drawing = graph_diff(Recording(nodes, (), nodes, "names"))
    assert drawing.summary == "Nothing changed: 2 nodes before and after."


EVIL = "<img src=x onerror=alert(1)>"


def test_foreign_names_are_escaped():
    nodes = (
        NodeRecord(EVIL, "placeholder", EVIL, (), "float32", (3,), (1,), f"/home/someone/{EVIL}.py:3"),
        NodeRecord("y", "call_function", f"aten.{EVIL}.default", (EVIL,), "float32", (3,), (1,)),
        NodeRecord("output", "output", "output", ("y",)),
    )
    facts = Facts(modules={"y": EVIL})
    for drawing in (graph_diff(Recording(nodes, (), nodes, "names"), facts=facts), graph_view(nodes, facts=facts)):
        fig = drawing.fig.data[-1]
        assert not any("<img" in text for text in (*fig.text, *fig.hovertext))
        assert "someone" not in " ".join(fig.hovertext)
        assert "<img" not in drawing.table.html()


def test_a_view_of_one_graph(captured):
    stage = captured.before
    facts = Facts(stage.bytes, stage.modules)
    drawing = graph_view(stage.nodes, facts=facts, with_bytes=True)
    calls = [entry for entry in stage.ledger if entry.bytes.total]
    total = amount(sum(entry.bytes.total for entry in calls))
    assert f"{len(calls)} move bytes, {total} together" in drawing.summary
    assert (
        f"{len(stage.nodes)} of {len(stage.nodes)} nodes are drawn, " in drawing.summary
        and "folded" not in drawing.summary
    )
    views = next(trace for trace in drawing.fig.data if trace.name and "nothing" in trace.name)
    assert list(views.x).count(None) == len(stage.ledger) - len(calls)
    texts = " ".join(drawing.fig.data[-1].text)
    assert "moves nothing" in texts and "moves 24.6 kB" in texts


def test_a_view_is_focused_and_an_unknown_centre_is_an_error(captured):
    stage = captured.before
    rsqrt = next(node.name for node in stage.nodes if "rsqrt" in node.target)
    drawing = graph_view(stage.nodes, centre=[rsqrt], hops=2)
    assert f"6 of {len(stage.nodes)} nodes are drawn" in drawing.summary
    with pytest.raises(ValueError, match="names nope, which the graph with"):
        graph_view(stage.nodes, centre=["nope"])


@pytest.mark.parametrize(
    ("target", "short"),
    [
        ("aten.mul.Tensor", "mul"),
        ("prims.convert_element_type.default", "cast"),
        ("fusionlib.group_quant.default", "group_quant"),
        ("fusionlib.group_quant", "group_quant"),
        ("<built-in function getitem>", "getitem"),
        ("<built-in method rsqrt of type object at 0x7f1ffd8cea40>", "rsqrt"),
        ("<function silu at 0x7f1fdeb3e0c0>", "silu"),
        ("torch.nn.functional.silu", "silu"),
        ("torch._C._log_api_usage_once", "_log_api_usage_once"),
        ("reshape", "reshape"),
    ],
)
def test_operations_are_named_in_short(target, short):
    assert operation(NodeRecord("n", "call_function", target, ())) == short


def test_places_hold_no_folder():
    assert place("/tmp/ipykernel_77/123.py:5") == "a cell of the notebook, line 5"
    assert place("/home/someone/lib/modeling.py:72") == "modeling.py:72"
    assert place("C:\\users\\someone\\a.py:9") == "a.py:9"
    assert place(None) == ""


def test_a_long_name_is_broken_in_two_lines():
    node = NodeRecord("n", "call_function", "fusionlib.rms_norm_gated_group_quant.default", ())
    assert label(node) == ["rms_norm_gated_", "group_quant"]


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (999, "999 B"), (65536, "65.5 kB"), (1048576, "1.05 MB")])
def test_amounts(count, text):
    assert amount(count) == text


def test_two_boxes_that_say_the_same_are_both_drawn():
    """plotly draws only the first of several points with one id; a graph can be folded into stubs of equal size."""
    labels = {"stub 1": ["… 1 more node"], "stub 2": ["… 1 more node"]}
    hovers = dict.fromkeys(labels, "<b>… 1 more node</b>")
    trace = parts.node_trace(lay_out(labels, []), labels, hovers, dict.fromkeys(labels, "stub"))
    assert list(trace.ids) == ["… 1 more node", "… 1 more node (2)"] and len(set(trace.x)) == 2
