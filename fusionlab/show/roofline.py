"""Bytes and time: how close each implementation came to the memory bandwidth, and what bytes do not explain.

The classical roofline has operations per byte on its axis. Kernels that only move memory would all lie on top of each
other on its slope, so here the axis is the bytes themselves and the roof is the bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from plotly.subplots import make_subplots

from fusionlab.observe.byte_ledger import Bytes, Residual, residual
from fusionlab.show import Drawing, Table
from fusionlab.show.line_styles import line_of, styles
from fusionlab.show.names import us
from fusionlab.show.theme import PALETTE


@dataclass(frozen=True)
class Point:
    """One measurement: the implementation, tokens, the bytes that it must move by the ledger, and its time.

    Raises:
        ValueError: for no bytes, or a time that is not finite and > 0.
    """

    name: str
    tokens: int
    moved: Bytes
    measured_us: float

    def __post_init__(self) -> None:
        if self.moved.total <= 0 or not (math.isfinite(self.measured_us) and self.measured_us > 0):
            raise ValueError(f"{self}: needs bytes > 0 and a finite time > 0")

    @property
    def gb_s(self) -> float:
        """Achieved bandwidth in 1e9 bytes per second."""
        return self.moved.total / self.measured_us / 1e3


def roofline(points: Sequence[Point], bandwidth_gb_s: float, *, roof: str, where: str) -> Drawing:
    """Achieved bandwidth under the roof, and below it measured time / predicted time, both over the bytes to move.

    Args:
        points: in any order; those with the same name become one line.
        bandwidth_gb_s: the roof, in 1e9 bytes per second.
        roof: a description of the roof.
        where: whose measurements these are and on what, for the caption.

    Raises:
        ValueError: without points, or for a bandwidth that is not finite and > 0.
    """
    if not points:
        raise ValueError("no points were given; a roofline needs at least one measurement")
    lines: dict[str, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.moved.total):
        lines.setdefault(point.name, []).append(point)
    rest = {point: residual(point.moved, bandwidth_gb_s, point.measured_us) for point in points}

    titles = ("achieved bandwidth, GB/s", "time, µs, and what the bytes take at the roof")
    fig = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.12, subplot_titles=titles)
    names = list(dict.fromkeys(point.name for point in points))
    looks = styles(names)
    for place, name in enumerate(names):
        group, chosen = lines[name], looks[name]
        hover = [
            f"<b>{escape(name)}</b><br>{p.tokens} tokens, {_bytes(p.moved.total)}<br>{p.gb_s:.0f} GB/s<br>"
            f"predicted {us(rest[p].predicted_us)} µs, measured {us(p.measured_us)} µs<br>"
            f"not explained by bytes: {us(rest[p].residual_us)} µs"
            for p in group
        ]
        for row, values in enumerate(([p.gb_s for p in group], [p.measured_us for p in group]), start=1):
            fig.add_scatter(
                x=[p.moved.total for p in group], y=values, mode="lines+markers", name=escape(name),
                legendgroup=str(place), showlegend=row == 1, marker={"size": 9, "symbol": chosen.symbol},
                line=line_of(chosen),
                hovertext=hover, hovertemplate="%{hovertext}<extra></extra>", row=row, col=1,
            )  # fmt: skip
    ends = [min(p.moved.total for p in points) / 1.5, max(p.moved.total for p in points) * 1.5]
    for row, values in enumerate(([bandwidth_gb_s] * 2, [end / bandwidth_gb_s / 1e3 for end in ends]), start=1):
        fig.add_scatter(
            x=ends, y=values, mode="lines", name=f"{escape(roof)}: {bandwidth_gb_s:.0f} GB/s", legendgroup="roof",
            showlegend=row == 1, line={"dash": "dash", "width": 3, "color": PALETTE["grey"]}, hoverinfo="skip",
            row=row, col=1,
        )  # fmt: skip
    fig.update_xaxes(type="log", range=[math.log10(end) for end in ends], exponentformat="SI", dtick=1)
    fig.update_xaxes(title_text="bytes to move", row=2, col=1)
    top = max(bandwidth_gb_s, *(p.gb_s for p in points))
    fig.update_yaxes(range=[0, 1.1 * top], row=1, col=1)
    fig.update_yaxes(type="log", dtick=1, row=2, col=1)
    fig.update_layout(height=720, legend={"y": 1.06}, margin={"t": 110})
    return Drawing(
        fig,
        caption=f"The memory roof, and what bytes do not explain ({where}).",
        alt=(
            f"Two panels over the bytes to move, logarithmic, with a line for each of {len(names)} implementations: "
            "the achieved bandwidth under a dashed roof, and the time above a dashed line, what the bytes alone take."
        ),
        summary=_summary(points, rest, roof, bandwidth_gb_s),
        table=Table(
            "Predicted, measured, and the difference",
            ["implementation", "tokens", "bytes", "predicted, µs", "measured, µs", "difference, µs", "of the roof"],
            [_row(p, rest[p]) for name in names for p in lines[name]],
        ),
    )


def _row(point: Point, rest: Residual) -> list[str]:
    numbers = (us(rest.predicted_us), us(rest.measured_us), us(rest.residual_us), f"{rest.share:.1%}")
    return [point.name, str(point.tokens), _bytes(point.moved.total), *numbers]


def _bytes(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} B"


def _summary(points: Sequence[Point], rest: Mapping[Point, Residual], roof: str, bandwidth_gb_s: float) -> str:
    sizes = sorted({p.tokens for p in points})
    sentences = []
    for tokens in dict.fromkeys((sizes[-1], sizes[0])):
        here = [p for p in points if p.tokens == tokens]
        share, unexplained = [rest[p].share for p in here], [rest[p].residual_us for p in here]
        best = max(here, key=lambda p: rest[p].share)
        text = f"At {tokens} token{'s' * (tokens != 1)} bytes explain {_range(share, _percent)} of the time"
        text += f", most of it for “{best.name}”" if len(here) > 1 else ""
        sentences.append(f"{text}; {_range(unexplained, us)} µs are left.")
    above = sorted({f"“{p.name}”" for p in points if p.gb_s > bandwidth_gb_s})
    if above:
        sentences.append(
            f"Above the roof ({roof}), where a cache must have served part of the bytes: {', '.join(above)}."
        )
    return " ".join(sentences)


def _percent(value: float) -> str:
    return f"{value:.1%}"


def _range(values: Sequence[float], say: Callable[[float], str]) -> str:
    low, high = say(min(values)), say(max(values))
    return low if low == high else f"{low} to {high}"
