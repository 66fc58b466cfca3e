"""The rows of a timeline: bars, arrows and labels collected variant by variant, then drawn as one figure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go

from fusionlab.observe.structure import nest
from fusionlab.observe.trace import Kernel, Launch, Op, Trace
from fusionlab.show.controls import room
from fusionlab.show.line_styles import styles
from fusionlab.show.names import short_name, us, wrapped
from fusionlab.show.theme import CLEAR, GRID, PALETTE, shades

CHARACTER = 0.0125  # width of a character as a share of the plot, at 12 px on a page of 700
ROW, GAPPED, HEADER = 1.0, 1.35, 0.8  # heights in rows: a plain row, one with labelled gaps, a headline
BAR, SLIM, GAP = 0.66, 0.4, 0.44  # heights of bars in rows: full, over another, a gap
VISIBLE = 0.004  # the smallest share of the axis at which a gap is labelled: about two pixels
LABEL = 0.52  # how far below the middle of a row its gaps are labelled, in rows
PIXELS = 42  # per row
MENU = 64  # height above the legend for the menu: on a narrow page the legend takes two lines

#: Ranges, not operators, that torch.compile's runtime adds to a trace around what it calls.
_FRAME = re.compile(
    r"Torch-Compiled Region|TorchDynamo Cache Lookup|Pregraph bytecode|AOTDispatcher|CompiledFunction|## Call Compiled"
)
#: Kinds of bar: name in the legend, colour, and the hatching that identifies it without colour. Bars of computation
#: have the colour of their variant, as in every other figure.
KINDS = {
    "launch": ("launch call (CPU)", PALETTE["grey"], ""),
    "kernel": ("kernel (GPU), in two shades", "", ""),
    "operator": ("operator (CPU), in two shades", "", ""),
    "frame": ("torch.compile (CPU)", PALETTE["grey"], "."),
    "gap": ("gap: nothing runs", PALETTE["grey"], "/"),
}


def launches(trace: Trace) -> list[Launch]:
    """The calls that started something, once each, in order of start; other calls only wait."""
    found = {kernel.launch for kernel in trace.kernels if kernel.launch}
    return sorted(found, key=lambda launch: (launch.start_us, launch.process, launch.correlation))


def operator_levels(trace: Trace) -> list[tuple[Op, int]]:
    """The two outermost levels of operators in a CPU trace, as (operator, level), in order of start.

    Level 0 is not an operator but a range of torch.compile's own code, 1 is a top-level operator, 2 one called by such
    an operator; deeper ones are left out.
    """
    tree, level, found = nest(trace.ops), {}, []
    for place, entry in enumerate(tree):
        above = 0 if entry.parent is None else level[entry.parent]
        level[place] = 0 if above == 0 and _FRAME.match(entry.op.name) else above + 1
        if level[place] in (1, 2) or entry.parent is None:  # of nested ranges, the outermost is enough
            found.append((entry.op, level[place]))
    return found


def origin_us(trace: Trace) -> float:
    """When the step begins: at its first launch, kernel or, on a CPU, operator."""
    if not trace.kernels:
        return min(op.start_us for op in trace.ops)
    return min([*(k.start_us for k in trace.kernels), *(launch.start_us for launch in launches(trace))])


def extent_us(trace: Trace) -> float:
    """The time from the origin to the end of the last of them."""
    events = [*trace.kernels, *launches(trace)] if trace.kernels else trace.ops
    return max((event.start_us + event.duration_us for event in events), default=0.0) - origin_us(trace)


@dataclass(frozen=True)
class _Bar:
    start: float
    duration: float
    row: float
    name: str
    hover: str
    id: str
    label: str
    nodes: str = ""
    height: float = BAR

    def text(self, extent: float) -> str:
        """As much of the name as fits if the axis is `extent` µs long; gaps have none."""
        room = int(self.duration / extent / CHARACTER) - 1
        return escape(short_name(self.name, room)) if room >= 4 else ""


class Canvas:
    """Collects bars and arrows by kind, row by row, and makes one figure of them."""

    def __init__(self, extent: float, labels: Iterable[str]) -> None:
        self.extent = max(extent, 1e-3)
        self.shades = {label: shades(style.colour) for label, style in styles(labels).items()}
        self.bars: dict[str, list[_Bar]] = {kind: [] for kind in KINDS}
        self.arrows: list[tuple[float, float, float, float]] = []
        self.ticks: list[tuple[float, str]] = []
        self.headers: list[tuple[float, str]] = []
        self.spans: list[tuple[str, float]] = []
        self.height = 0.0

    def variant(self, label: str, trace: Trace, on_gpu: bool) -> None:
        """Add the rows of one variant below the existing ones."""
        self.headers.append((self.height + HEADER / 2, f"<b>{escape(label)}</b>"))
        self.height += HEADER
        self.spans.append((label, extent_us(trace)))
        (self.gpu_rows if on_gpu else self.cpu_rows)(label, trace)

    def row(self, name: str, height: float = ROW) -> float:
        """Start a row; returns the middle of its bars, below which a taller row has room."""
        middle = self.height + ROW / 2
        self.ticks.append((middle, name))
        self.height += height
        return middle

    def gpu_rows(self, label: str, trace: Trace) -> None:
        """Launches, then each stream with its kernels and gaps."""
        origin, starts = origin_us(trace), {}
        rows: dict[str, float] = {}  # by process
        calls = launches(trace)
        several = len({call.process for call in calls}) > 1
        for call in calls:
            if call.process not in rows:
                rows[call.process] = self.row(f"launches\n{call.process}" if several else "launches")
            row = rows[call.process]
            starts[call] = (call.start_us - origin, row)
            self.add("launch", label, call.name, call.start_us - origin, call.duration_us, row, _call_hover(call))
        streams: dict[tuple, float] = {}
        reached: dict[tuple, float] = {}  # gaps are drawn inside the step only
        for kernel in trace.kernels:
            place = (kernel.process, kernel.device, kernel.stream)
            if place not in streams:
                streams[place] = self.row(_place(kernel, "\n"), GAPPED)
            row, start = streams[place], kernel.start_us - origin
            # What begins before the previous one has ended is drawn slimmer, so that both are visible.
            height = SLIM if start < reached.get(place, start) else BAR
            self.add(
                "kernel", label, kernel.name, start, kernel.duration_us, row, kernel_hover(kernel), kernel.nodes, height
            )
            if place in reached and start > reached[place]:
                self.gap(label, reached[place], start - reached[place], row)
            reached[place] = max(reached.get(place, start), start + kernel.duration_us)
            if kernel.launch in starts:
                self.arrows.append((*starts.pop(kernel.launch), start, row))

    def cpu_rows(self, label: str, trace: Trace) -> None:
        """torch.compile's ranges around operators, if any; the operators with their gaps; the operators they call."""
        origin, levels = origin_us(trace), operator_levels(trace)
        present = {level for _, level in levels}
        rows = {
            level: self.row(name, GAPPED if level == 1 else ROW)
            for level, name in enumerate(("torch.compile", "operators", "called by them"))
            if level in present
        }
        reached: float | None = None
        for op, level in levels:
            start = op.start_us - origin
            hover = f"{wrapped(op.name)}<br>{us(op.duration_us)} µs, from {us(start)} µs"
            self.add("operator" if level else "frame", label, op.name, start, op.duration_us, rows[level], hover)
            if level == 1:
                if reached is not None and start > reached:
                    self.gap(label, reached, start - reached, rows[level])
                reached = max(reached or 0.0, start + op.duration_us)

    def add(
        self, kind: str, label: str, name: str, start: float, duration: float, row: float, hover: str,
        nodes: Sequence[str] = (), height: float = BAR,
    ) -> None:  # fmt: skip
        """One bar."""
        bars = self.bars[kind]
        hover = f"<b>{escape(label)}</b><br>{hover}"
        bars.append(_Bar(start, duration, row, name, hover, f"{kind} {len(bars) + 1}", label, ", ".join(nodes), height))

    def gap(self, label: str, start: float, duration: float, row: float) -> None:
        """One hatched bar."""
        hover = f"<b>{escape(label)}</b><br>gap: {us(duration)} µs in which nothing runs here"
        gaps = self.bars["gap"]
        gaps.append(_Bar(start, duration, row, "", hover, f"gap {len(gaps) + 1}", label, height=GAP))

    def gap_labels(self) -> list[tuple[float, float, str]]:
        """Lengths of gaps and their positions below the bars: the longest first, without overlaps."""
        placed: dict[float, list[tuple[float, float]]] = {}  # row -> middles and widths
        labels = []
        for bar in sorted(self.bars["gap"], key=lambda bar: -bar.duration):
            text = f"{us(bar.duration)} µs"
            room = (len(text) + 1) * CHARACTER * self.extent
            middle = bar.start + bar.duration / 2
            middle = min(max(middle, room / 2), 1.01 * self.extent - room / 2)  # keep labels inside the plot
            others = placed.setdefault(bar.row, [])
            apart = all(abs(middle - other) >= (room + width) / 2 for other, width in others)
            if bar.duration / self.extent >= VISIBLE and apart:
                others.append((middle, room))
                labels.append((middle, bar.row + LABEL, text))
        return labels

    def figure(self) -> go.Figure:
        """The figure of everything collected."""
        fig = go.Figure()
        for kind, bars in self.bars.items():
            if bars:
                fig.add_trace(self.bar_trace(kind, bars))
        self.draw_arrows(fig)
        if labels := self.gap_labels():
            x, y, text = zip(*labels, strict=True)
            fig.add_scatter(x=x, y=y, text=text, mode="text", textfont={"size": 12}, hoverinfo="skip", showlegend=False)
        for middle, text in self.headers:
            fig.add_annotation(
                x=0, xref="paper", xanchor="left", y=middle, text=text, showarrow=False, font={"size": 14}
            )
        fig.update_xaxes(
            title_text="µs since the first bar of the step", range=[-0.01 * self.extent, 1.02 * self.extent]
        )
        fig.update_yaxes(
            tickvals=[middle for middle, _ in self.ticks],
            ticktext=[escape(name).replace("\n", "<br>") for _, name in self.ticks],
            range=[self.height, 0], showgrid=False, zeroline=False, fixedrange=True,
        )  # fmt: skip
        fig.update_layout(
            barmode="overlay", bargap=0, clickmode="event+select", dragmode="zoom", hovermode="closest",
            height=int(150 + PIXELS * self.height) + MENU * (len(self.spans) > 1),
            uniformtext={"minsize": 12, "mode": "hide"},
            legend={"y": 1.0, "yanchor": "bottom"}, margin={"t": 60 + MENU * (len(self.spans) > 1)},
        )  # fmt: skip
        if len(self.spans) > 1:
            fig.update_layout(updatemenus=[self.zoom_menu()], meta=room(above=MENU))
        return fig

    def zoom_menu(self) -> dict:
        """Buttons that stretch the axis to one variant, since the shared axis makes short ones small."""
        spans = [
            ("all on one axis", self.extent),
            *((f"zoom: {escape(short_name(label, 24))}", span) for label, span in self.spans),
        ]
        kinds = [bars for bars in self.bars.values() if bars]  # the figure's first traces, in this order

        def view(span: float) -> list:
            texts = [[bar.text(span) for bar in bars] for bars in kinds]  # a longer bar has room for more text
            return [{"text": texts}, {"xaxis.range": [-0.01 * span, 1.02 * span]}, list(range(len(kinds)))]

        buttons = [{"label": label, "method": "update", "args": view(span)} for label, span in spans]
        return {
            "type": "dropdown", "buttons": buttons, "direction": "down", "x": 1, "xanchor": "right",
            "y": 1, "yanchor": "bottom", "pad": {"b": MENU - 8}, "showactive": True,
            "bgcolor": "rgba(128, 128, 128, 0.12)", "bordercolor": GRID,
        }  # fmt: skip

    def bar_trace(self, kind: str, bars: list[_Bar]) -> go.Bar:
        """The bars of one kind as one trace, so that a search covers all of them."""
        name, colour, pattern = KINDS[kind]
        # Touching neighbours differ in lightness; the outline keeps the shortest visible.
        filled, before = [], dict.fromkeys((b.row for b in bars), 0)
        for bar in bars:
            filled.append(colour or self.shades[bar.label][before[bar.row] % 2])
            before[bar.row] += 1
        marker = {"color": filled, "line": {"color": filled, "width": 1}}
        if pattern:
            marker = {
                "color": GRID, "line": {"color": colour, "width": 1},
                "pattern": {"shape": pattern, "fgcolor": colour, "bgcolor": CLEAR, "size": 7, "solidity": 0.2},
            }  # fmt: skip
        found = not colour  # a kernel or an operator
        return go.Bar(
            orientation="h", name=name, base=[b.start for b in bars], x=[b.duration for b in bars],
            y=[b.row for b in bars], width=[b.height for b in bars], marker=marker,
            text=[b.text(self.extent) for b in bars], textposition="inside", insidetextanchor="middle", textangle=0,
            insidetextfont={"size": 12, "color": "#000000"}, constraintext="inside", cliponaxis=True,
            hovertext=[b.hover for b in bars], hovertemplate="%{hovertext}<extra></extra>",
            customdata=[b.nodes for b in bars], ids=[b.id for b in bars], meta={"search": True} if found else None,
            selected={"marker": {"opacity": 1}}, unselected={"marker": {"opacity": 0.25}},
        )  # fmt: skip

    def draw_arrows(self, fig: go.Figure) -> None:
        """One line from each launch to the first event that it started; a graph replay starts many."""
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


def _place(kernel: Kernel, separator: str = ", ") -> str:
    """Where a GPU event ran, and for which process if the trace holds several."""
    place = f"GPU {_known(kernel.device)}, stream {_known(kernel.stream)}"
    return place if kernel.process is None else f"{place}{separator}{kernel.process}"


def _call_hover(call: Launch) -> str:
    return f"{wrapped(call.name)}<br>{us(call.duration_us)} µs on the CPU<br>correlation {call.correlation}"


def kernel_hover(kernel: Kernel) -> str:
    """Everything the trace says about a GPU event, escaped, one fact per line."""
    lines = [wrapped(kernel.name), f"{us(kernel.duration_us)} µs on {escape(_place(kernel))}"]
    if kernel.queue_us is not None:
        late = " (it started before the call returned)" if kernel.queue_us < 0 else ""
        lines.append(f"queue delay {us(kernel.queue_us)} µs after the launch call{late}")
    if kernel.gap_us is not None:
        lines.append(f"gap before it {us(kernel.gap_us)} µs{' (overlaps the one before)' if kernel.gap_us < 0 else ''}")
    for name, shape in (("grid", kernel.grid), ("block", kernel.block)):
        if shape is not None:
            lines.append(f"{name} {' × '.join(map(str, shape))}")
    if kernel.registers is not None:
        lines.append(f"{kernel.registers} registers per thread")
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
