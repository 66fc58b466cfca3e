"""The composition of a kernel's machine code per element, which makes kernels that do different work comparable."""

from __future__ import annotations

import html
from collections.abc import Mapping

import plotly.graph_objects as go

from fusionlab.show.drawing import Drawing, Table
from fusionlab.show.theme import PALETTE

#: Colour and hatching of each kind of instruction, named as in `versions.dependency_chain` and `observe.machine_code`.
INSTRUCTIONS = {
    **dict.fromkeys(("memory", "loads from memory"), ("blue", "")),
    **dict.fromkeys(("exchanges between lanes", "exchanges and shared memory"), ("green", "x")),
    "through shared memory": ("brown", "|"),
    **dict.fromkeys(("divisions and roots", "slow unit: exp, reciprocals, single conversions"), ("vermillion", "/")),
    **dict.fromkeys(("conversions", "conversions in pairs"), ("purple", "\\")),
    "float arithmetic": ("ochre", "-"),
    **dict.fromkeys(("arithmetic and addresses", "integers, addresses, moves"), ("grey", "+")),
}


def machine_bars(code: Mapping[str, tuple[Mapping[str, int], int]], of: str) -> Drawing:
    """Stacked bars: machine instructions per element, by kind, one bar per kernel.

    Args:
        code: kernel -> (kind -> instructions per thread, elements per thread). All have the same kinds.
        of: what it was compiled for, for the caption.

    Raises:
        ValueError: for no kernel, or a thread without elements.
    """
    if not code or any(elements < 1 for _, elements in code.values()):
        raise ValueError("machine_bars needs at least one kernel, and at least one element per thread in each")
    each = {name: {kind: n / elements for kind, n in kinds.items()} for name, (kinds, elements) in code.items()}
    names, totals = list(each), {name: sum(kinds.values()) for name, kinds in each.items()}
    labels = [f"{html.escape(name, quote=False)}<br>({code[name][1]} per thread)" for name in names]
    fig = go.Figure()
    kinds = list(next(iter(each.values())))
    for kind in kinds:
        colour, shape = INSTRUCTIONS[kind]
        pattern = {"shape": shape, "fillmode": "overlay", "fgcolor": "rgba(255, 255, 255, 0.6)", "solidity": 0.2}
        fig.add_bar(
            x=[each[name][kind] for name in names], y=labels, orientation="h", name=html.escape(kind, quote=False),
            marker={"color": PALETTE[colour], "pattern": {**pattern, "size": 7}},
            hovertemplate="%{y}, " + kind + ": %{x:.2f}<extra></extra>",
        )  # fmt: skip
    fig.add_scatter(
        x=list(totals.values()), y=labels, mode="text", text=[f" {total:.1f}" for total in totals.values()],
        textposition="middle right", hoverinfo="skip", showlegend=False, cliponaxis=False,
    )  # fmt: skip
    fig.update_yaxes(autorange="reversed", showgrid=False)
    fig.update_xaxes(title_text="machine instructions per element", range=[0, 1.12 * max(totals.values())])
    legend = {"orientation": "h", "yanchor": "top", "x": 0, "traceorder": "normal"}
    legend["y"] = -60 / (64 + 52 * len(names))
    height = 230 + 52 * len(names)
    fig.update_layout(barmode="stack", height=height, bargap=0.3, margin={"t": 16, "b": 150}, legend=legend)
    first, last = names[0], names[-1]
    changed = sorted(kinds, key=lambda kind: each[last][kind] - each[first][kind])
    most = changed[0]
    return Drawing(
        fig,
        caption=f"Machine instructions per element, {of}.",
        alt=f"Stacked horizontal bars for {len(names)} kernels, one colour per kind, the sum at the end.",
        summary=(
            f"From {totals[first]:.1f} instructions per element in “{first}” to {totals[last]:.1f} in “{last}”, "
            f"{totals[last] / totals[first]:.0%}. The kind that changed most for the better is “{most}”: "
            f"{each[first][most]:.2f} to {each[last][most]:.2f} per element."
        ),
        table=Table(
            "Machine instructions per element, by kind",
            ("kernel", "elements per thread", *kinds, "all"),
            [
                (name, str(code[name][1]), *(f"{each[name][kind]:.2f}" for kind in kinds), f"{totals[name]:.2f}")
                for name in names
            ],
        ),
    )
