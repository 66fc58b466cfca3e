"""The timeline draws what the trace says: bars at known times, arrows, gaps, and words computed from them."""

from itertools import pairwise

import pytest

pytest.importorskip("plotly", reason="the notebooks extra is not installed")

from fusionlab.show.line_styles import IMPLEMENTATIONS
from fusionlab.show.theme import shades
from fusionlab.show.timeline import TimelineError, delta_table, timeline, times
from tests.lab.observe.traces import kernel, launch, op
from tests.lab.show import traces
from tests.lab.show.traces import trace_of

HOSTILE = "<script>alert(1)</script><a href='x'>"


@pytest.fixture
def steps(tmp_path):
    named = {"two": traces.TWO, "one": traces.ONE, "graph": traces.GRAPH, "cpu": traces.CPU}
    return {name: trace_of(tmp_path / name, events) for name, events in named.items()}


def bars(fig, name):
    (trace,) = [trace for trace in fig.data if trace.name and trace.name.startswith(name)]
    return trace


def gap_labels(fig):
    return [trace for trace in fig.data if trace.type == "scatter" and trace.mode == "text"]


def test_times_of_two_kernels(steps):
    found = times(steps["two"])
    assert (found.on_gpu, found.events, found.busy_us, found.gap_us) == (True, 2, 7.0, 1.5)
    assert (found.span_us, found.whole_us) == (8.5, 15.5)  # 107 to 115.5 on the GPU, from the launch at 100


def test_times_count_an_overlap_once(steps):
    """Two streams: 9 µs of kernels in a span of 7.5, of which only 0.5 µs has nothing running."""
    found = times(steps["graph"])
    assert (found.events, found.busy_us, found.gap_us, found.span_us) == (6, 9.0, 0.5, 7.5)


def test_times_on_a_cpu_are_of_top_level_operators(steps):
    found = times(steps["cpu"])
    assert (found.on_gpu, found.events, found.busy_us, found.gap_us, found.span_us) == (False, 2, 15.0, 2.0, 17.0)


def test_nothing_to_draw_is_named(tmp_path):
    empty = trace_of(tmp_path / "empty.json", [])
    with pytest.raises(TimelineError, match=r"empty\.json: no GPU events and no operators"):
        timeline({"empty": empty})
    with pytest.raises(TimelineError, match="at least one"):
        timeline({})


def test_a_trace_too_long_for_one_figure_is_refused_with_the_way_out(tmp_path):
    long = trace_of(tmp_path / "t", [kernel(i + 1, float(i), 0.5, "k") for i in range(2001)])
    with pytest.raises(TimelineError, match=r"mine: 2001 events, over the limit of 2000 .*window_us"):
        timeline({"mine": long})


def test_every_variant_starts_at_its_own_first_event(steps):
    fig = timeline({"two": steps["two"], "one": steps["one"]}).fig
    calls, kernels = bars(fig, "launch call"), bars(fig, "kernel")
    assert list(calls.base) == [0, 7, 0] and list(calls.x) == [5, 2, 6]
    assert list(kernels.base) == [7, 12.5, 5.5] and list(kernels.x) == [4, 3, 4.25]
    assert kernels.y[0] == kernels.y[1] < kernels.y[2]  # rows grow downwards
    assert calls.y[0] < kernels.y[0] < calls.y[2]


def test_arrows_lead_from_each_launch_to_the_first_that_it_started(steps):
    arrows = bars(timeline({"two": steps["two"]}).fig, "launch → kernel")
    assert list(arrows.x) == [0, 7, None, 7, 12.5, None]
    arrows = bars(timeline({"graph": steps["graph"]}).fig, "launch → kernel")
    assert [x for x in arrows.x if x is not None] == [
        0,
        min(bars(timeline({"graph": steps["graph"]}).fig, "kernel").base),
    ]  # of six kernels


def test_gaps_lie_between_kernels_of_one_stream_and_carry_their_length(steps):
    fig = timeline({"two": steps["two"]}).fig
    gaps = bars(fig, "gap")
    assert (list(gaps.base), list(gaps.x)) == ([11], [1.5])
    assert gaps.marker.pattern.shape == "/"
    assert [list(trace.text) for trace in gap_labels(fig)] == [["1.50 µs"]]


def test_a_gap_that_began_before_the_step_is_not_drawn(tmp_path, steps):
    """A step cut from a longer trace keeps the wait for what ran before it, which is outside the picture."""
    from dataclasses import replace

    cut = replace(steps["two"], kernels=steps["two"].kernels[1:])
    assert cut.kernels[0].gap_us == 1.5
    assert not [trace for trace in timeline({"cut": cut}).fig.data if trace.name and trace.name.startswith("gap")]


def test_hover_says_what_the_trace_says(steps):
    named = steps["two"].with_nodes({"norm": ["mul", "rsqrt"]})
    first, second = bars(timeline({"two": named}).fig, "kernel").hovertext
    for said in (
        "queue delay 2.00 µs", "grid 32 × 1 × 1", "block 256 × 1 × 1", "40 registers per thread", "operator mul",
        "1024 bytes of shared memory", "occupancy 75 %", "GPU 0, stream 7", "FX nodes: mul, rsqrt", "4.00 µs",
        "cudaLaunchKernel, correlation 1",
    ):  # fmt: skip
        assert said in first
    assert "vectorized_elementwise_kernel&lt;4," in second and "gap before it 1.50 µs" in second
    assert "registers" not in second and "FX nodes" not in second  # what is not known is not said


def test_a_negative_queue_delay_is_shown_and_explained(steps):
    (hover,) = bars(timeline({"one": steps["one"]}).fig, "kernel").hovertext
    assert "queue delay -0.50 µs after the launch call (it started before the call returned)" in hover


def test_nodes_travel_with_the_kernels_and_search_finds_them(steps):
    kernels = bars(timeline({"two": steps["two"].with_nodes({"norm": ["mul", "rsqrt"]})}).fig, "kernel")
    assert list(kernels.customdata) == ["mul, rsqrt", ""]
    assert kernels.meta == {"search": True} and len(set(kernels.ids)) == len(kernels.ids)
    assert kernels.unselected.marker.opacity < kernels.selected.marker.opacity


def test_a_cpu_timeline_says_that_it_is_one(steps):
    drawing = timeline({"cpu": steps["cpu"]}, where="a laptop")
    operators = bars(drawing.fig, "operator")
    assert list(operators.base) == [0, 1, 12]  # what _to_copy calls is a level too deep
    assert operators.y[0] == operators.y[2] != operators.y[1]
    assert "CPU timeline of cpu (a laptop)" in drawing.caption
    assert "2 operators on the CPU, 15.00 µs in them and 2.00 µs between them" in drawing.summary
    assert "no kernels, and it says nothing about a GPU" in drawing.summary
    assert "kernel" not in drawing.alt
    assert not [t for t in drawing.fig.data if t.name and ("kernel" in t.name or "launch" in t.name)]


def test_what_torch_compile_adds_is_no_operator(tmp_path):
    """The region's own ranges get a separate row; the time between the operators inside it is a gap."""
    events = [
        op(None, 0, 100, "Torch-Compiled Region: 0/0"),
        op(None, 10, 80, "## Call CompiledFxGraph f5asumvyuj ##"),
        op(1, 20, 10, "graph_0_cpp_fused_mean_mul"),
        op(2, 40, 30, "fusionlib::group_quant"),
        op(3, 45, 5, "aten::amax"),
        op(4, 110, 5, "aten::mm"),
    ]
    trace = trace_of(tmp_path / "t", events)
    found = times(trace)
    assert (found.events, found.busy_us, found.gap_us, found.span_us) == (3, 45.0, 50.0, 95.0)
    fig = timeline({"compiled": trace}).fig
    assert list(bars(fig, "torch.compile").base) == [0]  # of nested ranges the outermost
    operators = bars(fig, "operator")
    assert list(operators.base) == [20, 40, 45, 110] and len(set(operators.y)) == 2
    assert list(bars(fig, "gap").base) == [30, 70]


def test_words_and_table_of_gpu_variants(steps):
    drawing = timeline({"two": steps["two"], "one": steps["one"]}, full={"two": "data/traces/x/two.json.gz"})
    assert "two: 2 kernels, 7.00 µs in them and 1.50 µs between them, 8.50 µs from first to last." in drawing.summary
    assert "one: 1 kernel, 4.25 µs in it; 1.59 times as fast as two from the first launch." in drawing.summary
    assert "in ui.perfetto.dev, from the folder data/traces/x: two.json.gz." in drawing.summary
    assert "CPU timeline" not in drawing.summary
    table = drawing.table
    assert table.columns[1] == "kernels"
    assert [list(row) for row in table.rows] == [
        ["two", "2", "7.00", "1.50", "8.50", "15.50", "–"],
        ["one", "1", "4.25", "0.00", "4.25", "9.75", "5.75"],
    ]


def test_replays_are_compared_without_their_launch(tmp_path, steps):
    """A model's graph is launched once for all layers, so a replay is never compared with single launches."""

    def replay(name, *kernels):
        events = [kernel(1, start, long, "k", **{"graph node id": i}) for i, (start, long) in enumerate(kernels, 1)]
        return trace_of(tmp_path / name, [launch(1, 0, 90, name="cudaGraphLaunch"), *events])

    two, one = replay("a", (100.0, 4.0), (105.0, 3.0)), replay("b", (50.0, 4.0))
    assert times(two).replayed and not times(steps["two"]).replayed
    drawing = timeline({"two": two, "one": one})
    assert drawing.summary.endswith("one: 1 kernel, 4.00 µs in it; 2.00 times as fast as two.")
    assert drawing.table.rows[1][-1] == "4.00"
    mixed = timeline({"launched": steps["two"], "replayed": two})
    assert "as fast as" not in mixed.summary and mixed.table.rows[1][-1] == "–"


def test_a_gpu_and_a_cpu_variant_are_not_compared(steps):
    drawing = timeline({"two": steps["two"], "cpu": steps["cpu"]})
    assert "GPU and CPU timelines" in drawing.caption and "as fast as" not in drawing.summary
    assert delta_table({name: times(steps[name]) for name in ("two", "cpu")}).rows[1][-1] == "–"


def test_foreign_names_are_escaped_everywhere(tmp_path):
    events = [op(1, 0, 9, HOSTILE), launch(1, 1, 5, 1, name=HOSTILE), kernel(1, 8, 90, HOSTILE, stream=HOSTILE)]
    drawing = timeline({HOSTILE: trace_of(tmp_path / "t", events)})
    text = drawing.fig.to_json() + drawing.table.html()
    assert "<script" not in text and "\\u003cscript" not in text and "<a href" not in text
    assert "&lt;script&gt;" in text


def test_a_short_variant_can_be_stretched(steps):
    (menu,) = timeline({"two": steps["two"], "one": steps["one"]}).fig.layout.updatemenus
    assert [button.label for button in menu.buttons] == ["all on one axis", "zoom: two", "zoom: one"]
    assert menu.buttons[2].args[1]["xaxis.range"][1] == pytest.approx(1.02 * 9.75)
    assert not timeline({"two": steps["two"]}).fig.layout.updatemenus


def test_where_the_axis_is_stretched_names_get_room(tmp_path):
    events = [launch(1, 0, 1), kernel(1, 1, 2, "short_kernel")], [launch(1, 0, 1), kernel(1, 1, 200, "long_kernel")]
    fig = timeline({name: trace_of(tmp_path / name, found) for name, found in zip("ab", events, strict=True)}).fig
    assert [trace.name for trace in fig.data[:2]] == ["launch call (CPU)", "kernel (GPU), in two shades"]
    assert list(fig.data[1].text) == ["", "long_kernel"]
    whole, short, _ = (button.args for button in fig.layout.updatemenus[0].buttons)
    assert whole[0]["text"][1] == ["", "long_kernel"] and list(whole[2]) == [0, 1]
    assert short[0]["text"][1] == ["short_kernel", "long_kernel"]


def test_labels_of_gaps_do_not_run_into_each_other(tmp_path):
    """Forty gaps are more than there is room to label; those labelled are a label apart."""
    events = [kernel(i + 1, 2.0 * i, 1.0, "k") for i in range(41)]
    fig = timeline({"many": trace_of(tmp_path / "t", events)}).fig
    (labels,) = gap_labels(fig)
    assert len(bars(fig, "gap").x) == 40 and 5 <= len(labels.x) < 40
    placed = sorted(labels.x)
    apart = [b - a for a, b in pairwise(placed)]
    assert min(apart) >= len("1.00 µs") * 0.0125 * 81


def test_the_longest_gap_is_labelled_whatever_shorter_ones_come_first(tmp_path):
    events = [kernel(1, 0.0, 1.0, "k"), kernel(2, 3.0, 1.0, "k"), kernel(3, 60.0, 1.0, "k"), kernel(4, 64.0, 36.0, "k")]
    (labels,) = gap_labels(timeline({"four": trace_of(tmp_path / "t", events)}).fig)
    assert labels.text[0] == "56.00 µs"


def test_what_is_saved_says_since_when(steps):
    assert (
        delta_table({"a": times(steps["two"]), "b": times(steps["one"])}).columns[-1] == "saved from first launch, µs"
    )
    replays = {name: times(steps["graph"]) for name in "ab"}
    assert delta_table(replays).columns[-1] == "saved of the span, µs"
    assert delta_table({name: times(steps["cpu"]) for name in "ab"}).columns[-1] == "saved, µs"


def test_a_kernel_that_begins_before_the_one_in_front_has_ended_is_slimmer(tmp_path):
    events = [kernel(1, 0.0, 5.0, "first"), kernel(2, 4.2, 4.0, "second"), kernel(3, 8.2, 1.0, "third")]
    drawn = bars(timeline({"three": trace_of(tmp_path / "t", events)}).fig, "kernel")
    assert drawn.width[1] < drawn.width[0] == drawn.width[2]


def test_a_kernel_has_the_colour_of_its_variant_and_neighbours_differ(steps):
    variants = {"two kernels": steps["two"], "one kernel": steps["one"]}
    kernels = bars(timeline(variants).fig, "kernel")
    two, one = shades(IMPLEMENTATIONS["two_kernel"].colour), shades(IMPLEMENTATIONS["fused"].colour)
    assert list(kernels.marker.color) == [*two, one[0]]
    alone = bars(timeline({"one kernel": steps["one"]}).fig, "kernel")
    assert list(alone.marker.color) == [one[0]]


def test_a_lone_kernel_s_span_is_its_duration_to_the_digit(tmp_path):
    """The end of a kernel minus its start is a float next to its duration, and would be printed a hundredth shorter."""
    events = [launch(1, 1e6, 0.5, name="cudaGraphLaunch"), kernel(1, 1e6 + 0.7, 2.305)]
    found = times(trace_of(tmp_path / "one.json", events))
    assert found.busy_us == found.span_us == 2.305 and found.gap_us == 0
