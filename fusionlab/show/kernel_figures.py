"""Figures about the kernel: what a program touches, bytes and chains of its versions, instructions on each target.

Each builder takes computed data and returns the drawing with a sentence that states what the data shows.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from fusionlab.show.controls import SLIDER, room
from fusionlab.show.drawing import Drawing, Table
from fusionlab.show.machine_figures import INSTRUCTIONS
from fusionlab.show.theme import PALETTE

if TYPE_CHECKING:
    from fusionlab.observe.census import Census
    from fusionlab.versions.dependency_chain import Chain
    from fusionlab.versions.watch import Access, View

_COLOURS = ("blue", "vermillion", "green", "purple", "ochre", "violet", "brown", "grey")
_PATTERNS = ("", "/", "x", "\\", "-", "+", ".", "|")


def escape(text: str) -> str:
    """External text for a label inside a figure: plotly would interpret a few tags in it as markup."""
    return html.escape(text, quote=False)


def _pattern(shape: str) -> dict:
    return {"shape": shape, "fillmode": "overlay", "fgcolor": "rgba(255, 255, 255, 0.6)", "solidity": 0.2, "size": 7}


def touch_map(view: View, program: int | None = None, where: str = "") -> Drawing:
    """Where in memory one program of a kernel reads and writes, argument by argument, with a slider over programs.

    Args:
        view: what the interpreter recorded of one launch.
        program: the one shown first; by default the one whose variables were kept.
        where: a few words about the inputs, for the caption.
    """
    chosen = view.program if program is None else program
    if not 0 <= chosen < view.programs:
        raise ValueError(f"program={chosen} does not exist; choose 0 to {view.programs - 1}")
    kernel = view.accesses[-1].kernel
    accesses = [access for access in view.accesses if access.kernel == kernel]
    names = list(dict.fromkeys(access.argument for access in accesses))
    kinds = {access.argument: access.kind for access in accesses}
    fig = make_subplots(rows=len(names), cols=1, vertical_spacing=0.42 / len(names))
    for row, name in enumerate(names, start=1):
        touched = sorted({run for access in accesses if access.argument == name for run in access.runs})
        _runs(fig, row, touched, "touched by any program", {"color": PALETTE["grey"], "opacity": 0.3}, True)
        end = max(first + length for first, length in touched)
        fig.update_xaxes(range=[-0.01 * end, 1.01 * end], nticks=6, tickformat="d", showgrid=False, row=row, col=1)
        label = f"{escape(name)}<br>({kinds[name]})"
        fig.update_yaxes(
            tickvals=[0], ticktext=[label], range=[-0.5, 0.5], showgrid=False, zeroline=False, row=row, col=1
        )
    for number in range(view.programs):
        for row, name in enumerate(names, start=1):
            runs = [run for a in accesses if a.program == number and a.argument == name for run in a.runs]
            load = kinds[name] == "load"
            look = {"color": PALETTE["blue" if load else "vermillion"]}
            look["pattern"] = _pattern("" if load else "/")
            _runs(fig, row, runs, f"program {number}", look, number == chosen)
    fixed = [True] * len(names)
    steps = [
        {
            "label": str(number),
            "method": "update",
            "args": [{"visible": [*fixed, *(n == number for n in range(view.programs) for _ in names)]}],
        }
        for number in range(view.programs)
    ]
    slider = {
        "name": "program", "active": chosen, "steps": steps, "currentvalue": {"prefix": "program "}, "pad": {"t": 34},
    }  # fmt: skip
    fig.update_xaxes(title_text="element", row=len(names), col=1)
    fig.update_layout(
        height=90 + 70 * len(names) + SLIDER, margin={"t": 16, "b": 62 + SLIDER}, meta=room(below=SLIDER),
        barmode="overlay", bargap=0.2, showlegend=False, sliders=[slider],
    )  # fmt: skip
    mine = [access for access in accesses if access.program == chosen]
    return Drawing(
        fig,
        caption=f"What each program of version {view.version.number} touches{', ' + where if where else ''}.",
        alt=(
            f"{len(names)} strips, one for each argument of the kernel. Each shows the argument's memory from its "
            "first element on; what one program loads or stores is coloured, what the others do is pale. A slider "
            "changes the program."
        ),
        summary=f"As first drawn, program {chosen} (of 0 to {view.programs - 1}) {'; '.join(map(_touch_words, mine))}.",
        table=Table(
            "What every program touches",
            ("program", "access", "argument", "elements", "bytes", "runs as first+length"),
            [
                (
                    str(access.program),
                    access.kind,
                    access.argument,
                    str(access.elements),
                    str(access.elements * access.element_bytes),
                    _runs_words(access),
                )
                for access in accesses
            ],
        ),
    )


def _runs(fig: go.Figure, row: int, runs: Sequence[tuple[int, int]], name: str, look: dict, visible: bool) -> None:
    fig.add_bar(
        base=[first for first, _ in runs], x=[length for _, length in runs], y=[0] * len(runs), orientation="h",
        marker={**look, "line": {"width": 0}}, name=name, visible=visible,
        customdata=[[first, first + length - 1] for first, length in runs],
        hovertemplate="elements %{customdata[0]} to %{customdata[1]}<extra>%{fullData.name}</extra>", row=row, col=1,
    )  # fmt: skip


def _runs_words(access: Access, most: int = 8) -> str:
    words = ", ".join(f"{first}+{length}" for first, length in access.runs[:most])
    return words if len(access.runs) <= most else f"{words}, … ({len(access.runs)} in all)"


def _touch_words(access: Access) -> str:
    runs = access.runs
    words = f"{access.kind}s {access.elements} element{'s' * (access.elements != 1)} of {access.argument}"
    if len(runs) == 1:
        return f"{words} from {access.first} on, in one run"
    gaps = {after[0] - before[0] for before, after in pairwise(runs)}
    apart = f", {min(gaps)} apart" if len(gaps) == 1 else ""
    return f"{words} from {access.first} on, in {len(runs)} runs{apart}"


def bytes_per_version(cases: Mapping[str, Mapping[str, Mapping[str, float]]]) -> Drawing:
    """Stacked bars: bytes that must move per element, by version and part, one panel per case.

    Args:
        cases: case -> version -> part -> bytes per element. Parts are in stacking order.
    """
    labels = list(cases)
    versions = list(next(iter(cases.values())))
    parts = list(dict.fromkeys(part for case in cases.values() for version in case.values() for part in version))
    parts = [part for part in parts if any(v.get(part, 0) >= 0.005 for case in cases.values() for v in case.values())]
    fig = make_subplots(
        rows=len(labels), cols=1, shared_xaxes=True, subplot_titles=list(map(escape, labels)), vertical_spacing=0.1
    )
    most = max(sum(version.values()) for case in cases.values() for version in case.values())
    for row, label in enumerate(labels, start=1):
        case = cases[label]
        for number, part in enumerate(parts):
            fig.add_bar(
                x=[case[version].get(part, 0) for version in versions], y=list(map(escape, versions)),
                orientation="h", name=escape(part), legendgroup=part, showlegend=row == 1,
                marker={"color": PALETTE[_COLOURS[number]], "pattern": _pattern(_PATTERNS[number])},
                hovertemplate="%{y}, " + escape(part) + ": %{x:.3f} B<extra></extra>", row=row, col=1,
            )  # fmt: skip
        totals = [sum(case[version].values()) for version in versions]
        fig.add_scatter(
            x=totals, y=list(map(escape, versions)), mode="text", text=[f" {total:.2f} B" for total in totals],
            textposition="middle right", hoverinfo="skip", showlegend=False, cliponaxis=False, row=row, col=1,
        )  # fmt: skip
    fig.update_yaxes(autorange="reversed", showgrid=False)
    fig.update_xaxes(range=[0, 1.16 * most])
    fig.update_xaxes(title_text="bytes per element", row=len(labels), col=1)
    fig.update_layout(
        barmode="stack", height=150 + (34 * len(versions) + 60) * len(labels), bargap=0.35, margin={"t": 110},
        legend={"y": 1.0 + 46 / (34 * len(versions) * len(labels)), "traceorder": "normal"},
    )  # fmt: skip
    sentences = []
    for label, case in cases.items():
        totals = {version: sum(case[version].values()) for version in versions}
        first, last = totals[versions[0]], totals[versions[-1]]
        sentences.append(
            f"With a {label}: {first:.2f} bytes per element in “{versions[0]}”, {last:.2f} in “{versions[-1]}”, "
            f"{first / last:.2f} times fewer."
        )
    return Drawing(
        fig,
        caption="Bytes that each version must move.",
        alt=f"Stacked horizontal bars for {len(versions)} versions in {len(labels)} panels, one colour per tensor.",
        summary=" ".join(sentences),
        table=Table(
            "Bytes per element, part by part",
            ("case", "version", *parts, "all"),
            [
                (
                    label,
                    version,
                    *(f"{case[version].get(part, 0):.3f}" for part in parts),
                    f"{sum(case[version].values()):.3f}",
                )
                for label, case in cases.items()
                for version in versions
            ],
        ),
    )


_CENSUS_PANELS = (
    ("16-byte loads", lambda c: dict(c.loads).get(16, 0)),
    ("other loads", lambda c: sum(count for width, count in c.loads if width != 16)),
    ("conversions to FP8", lambda c: c.fp8_conversions),
    ("correctly rounded divisions", lambda c: c.divisions),
    ("approximate divisions", lambda c: c.reciprocals),
    ("fused multiply-adds", lambda c: c.fused_multiply_adds),
    ("exchanges between lanes", lambda c: c.shuffles),
    ("barriers", lambda c: c.barriers),
    ("registers per thread", lambda c: c.registers),
    ("instructions", lambda c: c.instructions),
)


def census_bars(censuses: Sequence[Census], labels: Sequence[str] | None = None, of: str = "the kernel") -> Drawing:
    """Bars of the instruction counts that matter, one panel per count and one bar per census.

    Args:
        censuses: of listings to compare.
        labels: their labels; by default their targets.
        of: what was compiled, for the caption.
    """
    names = list(labels or [census.target for census in censuses])
    rows = -(-len(_CENSUS_PANELS) // 2)
    fig = make_subplots(
        rows=rows, cols=2, subplot_titles=[title for title, _ in _CENSUS_PANELS], shared_yaxes=True,
        vertical_spacing=0.3 / rows, horizontal_spacing=0.09,
    )  # fmt: skip
    for place, (title, count) in enumerate(_CENSUS_PANELS):
        row, column = divmod(place, 2)
        counts = [count(census) for census in censuses]
        fig.add_bar(
            x=counts, y=list(map(escape, names)), orientation="h", text=list(map(str, counts)), textposition="outside",
            cliponaxis=False, marker_color=PALETTE["blue"],
            hovertemplate="%{y}: %{x}<extra>" + title + "</extra>", row=row + 1, col=column + 1,
        )  # fmt: skip
        fig.update_xaxes(range=[0, 1.2 * max([*counts, 1])], showticklabels=False, row=row + 1, col=column + 1)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    fig.update_layout(height=80 + rows * (62 + 22 * len(names)), showlegend=False, bargap=0.3)
    fig.update_annotations(font={"size": 14})
    same = [
        f"{title} ({counts.pop()})"
        for title, count in _CENSUS_PANELS
        if len(counts := {count(census) for census in censuses}) == 1
    ]
    spills = sum(census.spills for census in censuses)
    words = [
        f"The {len(names)} listings agree on {', '.join(same)}."
        if same
        else f"No count that is drawn is the same in all {len(names)} listings."
    ]
    words.append("None of them spills a register." if not spills else f"Together they spill {spills} registers.")
    return Drawing(
        fig,
        caption=f"What {of} is made of, counted in the compiled listings.",
        alt=f"{len(_CENSUS_PANELS)} small bar charts, one for each kind of instruction, with {len(names)} bars each.",
        summary=" ".join(words),
        table=Table(
            "Every count",
            ("", *(title for title, _ in _CENSUS_PANELS), "spills"),
            [
                (name, *(str(count(census)) for _, count in _CENSUS_PANELS), str(census.spills))
                for name, census in zip(names, censuses, strict=True)
            ],
        ),
    )


def chain_bars(chains: Mapping[str, Chain]) -> Drawing:
    """Stacked bars: the links of each longest chain by kind."""
    names = list(chains)
    kinds = {name: chain.kinds() for name, chain in chains.items()}
    order = list(next(iter(kinds.values())))
    fig = go.Figure()
    for kind in order:
        fig.add_bar(
            x=[kinds[name][kind] for name in names], y=list(map(escape, names)), orientation="h", name=kind,
            marker={"color": PALETTE[INSTRUCTIONS[kind][0]], "pattern": _pattern(INSTRUCTIONS[kind][1])},
            hovertemplate="%{y}, " + kind + ": %{x}<extra></extra>",
        )  # fmt: skip
    lengths = [len(chains[name].mnemonics) for name in names]
    fig.add_scatter(
        x=lengths, y=list(map(escape, names)), mode="text", text=[f" {n}" for n in lengths], hoverinfo="skip",
        textposition="middle right", showlegend=False, cliponaxis=False,
    )  # fmt: skip
    fig.update_yaxes(autorange="reversed", showgrid=False)
    fig.update_xaxes(title_text="instructions, each waiting for the one before", range=[0, 1.1 * max(lengths)])
    fig.update_layout(
        barmode="stack", height=190 + 44 * len(names), bargap=0.35, legend={"traceorder": "normal"}, margin={"t": 100}
    )
    shortest, longest = (
        min(names, key=lambda n: len(chains[n].mnemonics)),
        max(names, key=lambda n: len(chains[n].mnemonics)),
    )
    last = names[-1]
    return Drawing(
        fig,
        caption="The longest chain of instructions that must wait for each other.",
        alt=f"Stacked horizontal bars for {len(names)} kernels: links of the chain by kind, with their sum at the end.",
        summary=(
            f"From {len(chains[shortest].mnemonics)} links (“{shortest}”) to {len(chains[longest].mnemonics)} "
            f"(“{longest}”). In “{last}” {len(chains[last].mnemonics)} of {chains[last].instructions} "
            f"instructions lie on it, among them {kinds[last]['loads from memory']} load from memory and "
            f"{kinds[last]['exchanges between lanes']} exchanges between lanes."
        ),
        table=Table(
            "Links by kind",
            ("kernel", *order, "chain", "instructions"),
            [
                (
                    name,
                    *(str(kinds[name][kind]) for kind in order),
                    str(len(chains[name].mnemonics)),
                    str(chains[name].instructions),
                )
                for name in names
            ],
        ),
    )
