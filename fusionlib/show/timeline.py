"""Traces as timelines: several variants of a step on one time axis, with what each kernel waited for.

A GPU trace is drawn as launch calls on the CPU above the kernels they started; a trace without GPU events as operators
above the operators that they call. Every variant starts at its own first event, so that spans can be compared by eye.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go

from fusionlib.observe.nesting import Nested, nested
from fusionlib.observe.trace import Kernel, Launch, Op, Trace
from fusionlib.show import Drawing, Table
from fusionlib.show.names import short_name, wrapped
from fusionlib.show.theme import GRID, PALETTE

CHARACTER = 0.0125  # width of a character as a share of the plot, at 12 px on a page of 700
ROW, GAPPED, HEADER = 1.0, 1.35, 0.8  # heights in the figure, in rows: plain, with labelled gaps, of a headline
VISIBLE = 0.004  # the least share of the axis at which a gap is labelled: about two pixels
LABEL = 0.52  # how far below the middle of a row its gaps are labelled, in rows
PIXELS = 42  # of a row


class TimelineError(ValueError):
    """Traces that make no timeline; the message says which and what would."""


@dataclass(frozen=True)
class Times:
    """The times of one variant, in microseconds.

    Args:
        on_gpu: whether they are of kernels; otherwise of operators on the CPU.
        events: kernels with copies and fills, or top-level operators.
        busy_us: sum of their durations.
        gap_us: time between the first one's start and the last one's end in which none ran.
        span_us: from the first one's start to the last one's end.
        whole_us: the same from the first launch; equal to `span_us` on a CPU.
    """

    on_gpu: bool
    events: int
    busy_us: float
    gap_us: float
    span_us: float
    whole_us: float


def times(trace: Trace) -> Times:
    """The times of all that `trace` holds.

    Raises:
        TimelineError: if it holds neither GPU events nor operators.
    """
    events: Sequence[Kernel] | Sequence[Op] = trace.kernels or [entry.op for entry in _top(trace)]
    if not events:
        raise TimelineError(f"{trace.path.name}: no GPU events and no operators; record a step that runs something")
    spans = sorted((event.start_us, event.start_us + event.duration_us) for event in events)
    first, reached, gap = spans[0][0], spans[0][0], 0.0
    for start, end in spans:
        gap += max(0.0, start - reached)
        reached = max(reached, end)
    begin = min([first, *(kernel.launch.start_us for kernel in trace.kernels if kernel.launch)])
    busy = sum(event.duration_us for event in events)
    return Times(bool(trace.kernels), len(events), busy, gap, reached - first, reached - begin)


def timeline(variants: Mapping[str, Trace], *, where: str = "", full: Mapping[str, str] | None = None) -> Drawing:
    """The steps in `variants`, label -> trace of one step, one below the other.

    Args:
        where: what they were recorded on, for the caption: a GPU's name, for instance.
        full: label -> path of the whole trace relative to the repository, offered for Perfetto.

    Raises:
        TimelineError: if there are no variants, or one has nothing to draw.
    """
    if not variants:
        raise TimelineError("no traces were given; give at least one, as label -> trace")
    measured = {label: times(trace) for label, trace in variants.items()}
    canvas = _Canvas(max(_extent(trace) for trace in variants.values()))
    for label, trace in variants.items():
        canvas.variant(label, trace, measured[label])
    kinds = {True: "GPU timeline", False: "CPU timeline"}
    on_gpu = {entry.on_gpu for entry in measured.values()}
    kind = kinds[on_gpu.pop()] if len(on_gpu) == 1 else "GPU and CPU timelines"
    names = ", ".join(variants)
    return Drawing(
        canvas.figure(),
        caption=f"{kind} of {names}{f' ({where})' if where else ''}.",
        alt=_alt(variants, measured),
        summary=_summary(measured) + _offer(full),
        table=delta_table(measured),
    )


def delta_table(measured: Mapping[str, Times]) -> Table:
    """Kernels or operators, time in them, time between them, and span of each variant, against the first."""
    base = next(iter(measured.values()))
    on_gpu = all(entry.on_gpu for entry in measured.values())
    what = "kernels" if on_gpu else "events" if any(entry.on_gpu for entry in measured.values()) else "operators"
    columns = ["variant", what, f"in {what}, µs", "gaps, µs", "span, µs", "saved, µs"]
    columns += ["from first launch, µs"] * on_gpu
    rows = []
    for label, entry in measured.items():
        row = [label, str(entry.events), us(entry.busy_us), us(entry.gap_us), us(entry.span_us)]
        comparable = entry is not base and entry.on_gpu == base.on_gpu
        row.append(us(base.span_us - entry.span_us) if comparable else "–")
        rows.append(row + [us(entry.whole_us)] * on_gpu)
    return Table("The same in numbers", columns, rows)


def us(value: float) -> str:
    """Microseconds with as many digits as a reader can use."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.2f}"


def _summary(measured: Mapping[str, Times]) -> str:
    sentences = []
    base = next(iter(measured.values()))
    for label, entry in measured.items():
        what = "kernel" if entry.on_gpu else "operator on the CPU"
        many = "kernels" if entry.on_gpu else "operators on the CPU"
        text = f"{label}: {entry.events} {what if entry.events == 1 else many}, {us(entry.busy_us)} µs in them"
        text += f" and {us(entry.gap_us)} µs between them, {us(entry.span_us)} µs from first to last"
        if entry is not base and entry.on_gpu == base.on_gpu and entry.span_us > 0:
            ratio = base.span_us / entry.span_us
            text += f", {ratio:.{0 if ratio >= 100 else 2}f} times as fast as {next(iter(measured))}"
        sentences.append(text + ".")
    if not any(entry.on_gpu for entry in measured.values()):
        sentences.append("This is a CPU timeline: there are operators and no kernels, and it says nothing about a GPU.")
    return " ".join(sentences)


def _offer(full: Mapping[str, str] | None) -> str:
    if not full:
        return ""
    listed = ", ".join(dict.fromkeys(full.values()))
    return (
        f" To see everything that was recorded, open {listed} in ui.perfetto.dev, which reads the file in the browser."
    )


def _alt(variants: Mapping[str, Trace], measured: Mapping[str, Times]) -> str:
    parts = [f"A time axis in microseconds with {len(variants)} step{'s' * (len(variants) > 1)} below one another."]
    if any(entry.on_gpu for entry in measured.values()):
        parts.append(
            "On the GPU each has a row of launch calls and a row of kernels for every stream; arrows lead from a launch "
            "to what it started, and hatched bars fill the gaps."
        )
    if not all(entry.on_gpu for entry in measured.values()):
        parts.append("On the CPU each has a row of operators, a row of the operators these call, and hatched gaps.")
    return " ".join(parts)


def _top(trace: Trace) -> list[Nested]:
    return [entry for entry in nested(trace.ops) if entry.depth == 0]


def _launches(trace: Trace) -> list[Launch]:
    """The calls that started something, once each, in order of start; others only wait."""
    found = {kernel.launch.correlation: kernel.launch for kernel in trace.kernels if kernel.launch}
    return sorted(found.values(), key=lambda launch: launch.start_us)


def _origin(trace: Trace) -> float:
    if not trace.kernels:
        return min(op.start_us for op in trace.ops)
    return min([*(k.start_us for k in trace.kernels), *(launch.start_us for launch in _launches(trace))])


def _extent(trace: Trace) -> float:
    events = [*trace.kernels, *_launches(trace)] if trace.kernels else trace.ops
    return max((event.start_us + event.duration_us for event in events), default=0.0) - _origin(trace)


@dataclass(frozen=True)
class _Bar:
    start: float
    duration: float
    row: float
    text: str
    hover: str
    id: str
    nodes: str = ""


class _Canvas:
    """Collects bars and arrows by kind, row below row, and makes one figure of them."""

    KINDS = {
        "launch": ("launch call (CPU)", PALETTE["blue"], ""),
        "kernel": ("kernel (GPU)", PALETTE["vermillion"], ""),
        "operator": ("operator (CPU)", PALETTE["blue"], ""),
        "gap": ("gap: nothing runs", PALETTE["grey"], "/"),
    }

    def __init__(self, extent: float) -> None:
        self.extent = max(extent, 1e-3)
        self.bars: dict[str, list[_Bar]] = {kind: [] for kind in self.KINDS}
        self.arrows: list[tuple[float, float, float, float]] = []
        self.ticks: list[tuple[float, str]] = []
        self.headers: list[tuple[float, str]] = []
        self.spans: list[tuple[str, float]] = []
        self.gap_labels: list[tuple[float, float, str]] = []
        self.height = 0.0

    def variant(self, label: str, trace: Trace, measured: Times) -> None:
        """Add the rows of one variant below those that are there."""
        self.headers.append((self.height + HEADER / 2, f"<b>{escape(label)}</b>"))
        self.height += HEADER
        self.spans.append((label, _extent(trace)))
        (self.gpu_rows if measured.on_gpu else self.cpu_rows)(label, trace)

    def row(self, name: str, height: float = ROW) -> float:
        """Start a row; returns the middle of its bars, below which a higher row has room."""
        middle = self.height + ROW / 2
        self.ticks.append((middle, name))
        self.height += height
        return middle

    def gpu_rows(self, label: str, trace: Trace) -> None:
        """Launches, then each stream with its kernels and gaps."""
        origin, starts = _origin(trace), {}
        calls = _launches(trace)
        if calls:
            row = self.row("launches")
            for call in calls:
                starts[call.correlation] = (call.start_us - origin, row)
                self.add("launch", label, call.name, call.start_us - origin, call.duration_us, row, _call_hover(call))
        streams: dict[tuple, float] = {}
        for kernel in trace.kernels:
            place = (kernel.device, kernel.stream)
            if place not in streams:
                streams[place] = self.row(f"GPU {_known(kernel.device)}, stream {_known(kernel.stream)}", GAPPED)
            row, start = streams[place], kernel.start_us - origin
            self.add("kernel", label, kernel.name, start, kernel.duration_us, row, kernel_hover(kernel), kernel.nodes)
            if kernel.gap_us is not None and kernel.gap_us > 0:
                self.gap(label, start - kernel.gap_us, kernel.gap_us, row)
            if kernel.launch is not None:
                self.arrows.append((*starts[kernel.launch.correlation], start, row))

    def cpu_rows(self, label: str, trace: Trace) -> None:
        """Top-level operators with their gaps, then what they call."""
        origin, tree = _origin(trace), nested(trace.ops)
        rows = [self.row("operators", GAPPED)]
        if any(entry.depth == 1 for entry in tree):
            rows.append(self.row("called by them"))
        reached: float | None = None
        for entry in tree:
            if entry.depth > 1:
                continue
            op, start = entry.op, entry.op.start_us - origin
            hover = [wrapped(op.name), f"{us(op.duration_us)} µs, from {us(start)} µs"]
            if entry.parent is not None:
                hover.append(f"called by {escape(short_name(tree[entry.parent].op.name))}")
            row = rows[entry.depth]
            self.add("operator", label, op.name, start, op.duration_us, row, "<br>".join(hover))
            if entry.depth == 0:
                if reached is not None and start > reached:
                    self.gap(label, reached, start - reached, row)
                reached = max(reached or 0.0, start + op.duration_us)

    def add(
        self, kind: str, label: str, name: str, start: float, duration: float, row: float, hover: str,
        nodes: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """One bar, with as much of its name as fits in it."""
        room = int(duration / self.extent / CHARACTER) - 1
        text = escape(short_name(name, room)) if room >= 4 else ""
        bars = self.bars[kind]
        hover = f"<b>{escape(label)}</b><br>{hover}"
        bars.append(_Bar(start, duration, row, text, hover, f"{kind} {len(bars) + 1}", ", ".join(nodes)))

    def gap(self, label: str, start: float, duration: float, row: float) -> None:
        """One hatched bar, and its length below it unless that would run into the label before."""
        text = f"{us(duration)} µs"
        hover = f"<b>{escape(label)}</b><br>gap: {text} in which nothing runs here"
        self.bars["gap"].append(_Bar(start, duration, row, "", hover, f"gap {len(self.bars['gap']) + 1}"))
        if duration / self.extent < VISIBLE:
            return
        room = (len(text) + 1) * CHARACTER * self.extent
        middle = max(start + duration / 2, room / 2)  # the first one's label must not run out to the left
        before = [x for x, y, _ in self.gap_labels if y == row + LABEL]
        if not before or middle - before[-1] >= room:
            self.gap_labels.append((middle, row + LABEL, text))

    def figure(self) -> go.Figure:
        """All that was collected."""
        fig = go.Figure()
        for kind, bars in self.bars.items():
            if bars:
                fig.add_trace(self.bar_trace(kind, bars))
        self.draw_arrows(fig)
        if self.gap_labels:
            x, y, text = zip(*self.gap_labels, strict=True)
            fig.add_scatter(x=x, y=y, text=text, mode="text", textfont={"size": 12}, hoverinfo="skip", showlegend=False)
        for middle, text in self.headers:
            fig.add_annotation(
                x=0, xref="paper", xanchor="left", y=middle, text=text, showarrow=False, font={"size": 14}
            )
        fig.update_xaxes(title_text="µs since the step's first event", range=[-0.01 * self.extent, 1.02 * self.extent])
        fig.update_yaxes(
            tickvals=[middle for middle, _ in self.ticks], ticktext=[escape(name) for _, name in self.ticks],
            range=[self.height, 0], showgrid=False, zeroline=False, fixedrange=True,
        )  # fmt: skip
        fig.update_layout(
            barmode="overlay", bargap=0, clickmode="event+select", dragmode="zoom", hovermode="closest",
            height=int(150 + PIXELS * self.height) + 44 * (len(self.spans) > 1),
            uniformtext={"minsize": 12, "mode": "hide"},
            legend={"y": 1.0, "yanchor": "bottom"}, margin={"t": 60 + 44 * (len(self.spans) > 1)},
        )  # fmt: skip
        if len(self.spans) > 1:
            fig.update_layout(updatemenus=[self.zoom_menu()])
        return fig

    def zoom_menu(self) -> dict:
        """Buttons that stretch the axis to one variant: the shared axis makes a short one small."""
        spans = [
            ("all on one axis", self.extent),
            *((escape(short_name(label, 24)), span) for label, span in self.spans),
        ]
        buttons = [
            {"label": label, "method": "update", "args": [{}, {"xaxis.range": [-0.01 * span, 1.02 * span]}]}
            for label, span in spans
        ]
        return {
            "type": "dropdown", "buttons": buttons, "direction": "down", "x": 1, "xanchor": "right",
            "y": 1, "yanchor": "bottom", "pad": {"b": 34}, "showactive": True, "bgcolor": "rgba(128, 128, 128, 0.12)",
            "bordercolor": GRID,
        }  # fmt: skip

    def bar_trace(self, kind: str, bars: list[_Bar]) -> go.Bar:
        """The bars of one kind as one trace, so that one search finds any of them."""
        name, colour, pattern = self.KINDS[kind]
        # Neighbours that touch differ in lightness; the line keeps the shortest visible.
        shades = [(colour, PALETTE["sky"])[kind == "operator" and place % 2] for place in range(len(bars))]
        marker = {"color": shades, "line": {"color": shades, "width": 1}}
        if pattern:
            marker = {
                "color": GRID, "line": {"color": colour, "width": 1},
                "pattern": {"shape": pattern, "fgcolor": colour, "bgcolor": "rgba(0, 0, 0, 0)", "size": 7, "solidity": 0.2},
            }  # fmt: skip
        found = kind in ("kernel", "operator")
        return go.Bar(
            orientation="h", name=name, base=[b.start for b in bars], x=[b.duration for b in bars],
            y=[b.row for b in bars], width=[0.44 if kind == "gap" else 0.66] * len(bars), marker=marker,
            text=[b.text for b in bars], textposition="inside", insidetextanchor="middle", textangle=0,
            insidetextfont={"size": 12, "color": "#000000"}, constraintext="inside", cliponaxis=True,
            hovertext=[b.hover for b in bars], hovertemplate="%{hovertext}<extra></extra>",
            customdata=[b.nodes for b in bars], ids=[b.id for b in bars], meta={"search": True} if found else None,
            selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 0.25}},
        )  # fmt: skip

    def draw_arrows(self, fig: go.Figure) -> None:
        """One line from each launch to each thing that it started."""
        if not self.arrows:
            return
        half = 0.33
        fig.add_scatter(
            x=[x for x0, _, x1, _ in self.arrows for x in (x0, x1, None)],
            y=[y for _, y0, _, y1 in self.arrows for y in (y0 + half, y1 - half, None)],
            mode="lines+markers", name="launch → kernel", hoverinfo="skip",
            line={"width": 1, "color": PALETTE["grey"]},
            marker={
                "symbol": "arrow", "angleref": "previous", "color": PALETTE["grey"],
                "size": [size for _ in self.arrows for size in (0, 9, 0)],
            },
        )  # fmt: skip


def _known(value: object) -> str:
    return "?" if value is None else str(value)


def _call_hover(call: Launch) -> str:
    return f"{wrapped(call.name)}<br>{us(call.duration_us)} µs on the CPU<br>correlation {call.correlation}"


def kernel_hover(kernel: Kernel) -> str:
    """All that the trace says about a GPU event, escaped, a line each; what it does not say is left out."""
    lines = [
        wrapped(kernel.name),
        f"{us(kernel.duration_us)} µs on GPU {_known(kernel.device)}, stream {_known(kernel.stream)}",
    ]
    if kernel.queue_us is not None:
        late = " (it started before the call returned)" if kernel.queue_us < 0 else ""
        lines.append(f"queue delay {us(kernel.queue_us)} µs after the launch call{late}")
    if kernel.gap_us is not None:
        lines.append(f"gap before it {us(kernel.gap_us)} µs{' (overlaps the one before)' if kernel.gap_us < 0 else ''}")
    for name, shape in (("grid", kernel.grid), ("block", kernel.block)):
        if shape is not None:
            lines.append(f"{name} {' × '.join(map(str, shape))}")
    if kernel.registers is not None:
        lines.append(f"{kernel.registers} registers a thread")
    if kernel.shared_bytes is not None:
        lines.append(f"{kernel.shared_bytes} bytes of shared memory a block")
    if kernel.occupancy_percent is not None:
        lines.append(f"occupancy {kernel.occupancy_percent:g} % (estimated by the profiler)")
    if kernel.launch is not None:
        lines.append(f"launched by {escape(short_name(kernel.launch.name))}, correlation {kernel.launch.correlation}")
    if kernel.graph_node is not None:
        lines.append(f"node {kernel.graph_node} of a CUDA graph")
    if kernel.op is not None:
        lines.append(f"operator {escape(short_name(kernel.op, 48))}")
    if kernel.nodes:
        lines.append(f"FX nodes: {wrapped(', '.join(kernel.nodes))}")
    return "<br>".join(lines)
