"""Figures about the kernel's speed: the reference survey's, our recordings', and live measurements; never mixed.

Each builder takes data and returns the drawing with a sentence that states what the data shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from fusionlab.show.drawing import Drawing, Table
from fusionlab.show.kernel_figures import escape
from fusionlab.show.line_styles import IMPLEMENTATIONS
from fusionlab.show.theme import PALETTE

if TYPE_CHECKING:
    from fusionlab.versions.timing import Timed

_DASHES, _SYMBOLS = ("solid", "dash", "dot", "dashdot", "longdash"), ("circle", "square", "diamond", "x", "cross")


def recorded_shares(shares: Mapping[str, Mapping[int, float]], where: str) -> Drawing:
    """Lines of this project's own recordings: the share of the light that the library's kernel reached, over tokens.

    Args:
        shares: case -> tokens -> the light's time / the kernel's, for the same bytes.
        where: what it was measured on.

    Raises:
        ValueError: if there are no shares.
    """
    if not shares or not all(shares.values()):
        raise ValueError("no shares: each case needs at least one size")
    fig, ours = go.Figure(), PALETTE[IMPLEMENTATIONS["fused"].colour]
    for number, (case, series) in enumerate(shares.items()):
        sizes = sorted(series)
        fig.add_scatter(
            x=sizes, y=[100 * series[size] for size in sizes], mode="lines+markers", name=escape(case),
            line={"color": ours, "width": 2.5, "dash": _DASHES[number % 5]},
            marker={"size": 9, "symbol": _SYMBOLS[number % 5]},
            hovertemplate="%{x} tokens: %{y:.1f} %<extra>" + escape(case) + "</extra>",
        )  # fmt: skip
    columns = sorted({size for series in shares.values() for size in series})
    fig.add_hline(y=100, line={"dash": "dash", "width": 1.5, "color": PALETTE["grey"]})
    fig.update_xaxes(type="log", tickvals=columns, ticktext=list(map(str, columns)), title_text="tokens")
    fig.update_yaxes(title_text="share of the light, %")
    fig.update_layout(
        height=420, legend={"orientation": "h", "yanchor": "top", "y": -0.22, "x": 0}, margin={"t": 24, "b": 110}
    )
    words = []
    for case, series in shares.items():
        least, most = min(series, key=series.__getitem__), max(series, key=series.__getitem__)
        words.append(
            f"{case[:1].upper()}{case[1:]}: {series[least]:.0%} of the light at {least} token{'s' * (least != 1)}, the "
            f"least, and {series[most]:.0%} at {most}, the most."
        )
    return Drawing(
        fig,
        caption=f"The library's kernel, {where}.",
        alt=f"{len(shares)} lines over the number of tokens, with a dashed line at 100 %, the light.",
        summary=" ".join(words),
        table=Table(
            "Share of the light, by tokens",
            ("case", *map(str, columns)),
            [
                (case, *(f"{series[size]:.3f}" if size in series else "–" for size in columns))
                for case, series in shares.items()
            ],
        ),
    )


def timings(timed: Sequence[Timed], where: str, tokens: int) -> Drawing:
    """Bars: the measured time of each version and of the light, with the 10th and 90th percentile as whiskers.

    Args:
        timed: what `fusionlab.versions.timing.time_all` returned, or `fusionlab.versions.recorded_times.recorded` read.
        where: who measured it on what, the start of the caption; tokens: of the call.
    """
    names = [escape(one.name) for one in timed]
    colours = [PALETTE[IMPLEMENTATIONS["light" if one.version is None else "fused"].colour] for one in timed]
    fig = go.Figure()
    fig.add_bar(
        x=[one.median_us for one in timed], y=names, orientation="h", marker_color=colours,
        # A wide space: a whisker ends where the words would begin.
        text=[f"\u2003{one.median_us:.2f} µs, {one.gb_s:.0f} GB/s" for one in timed], textposition="outside",
        cliponaxis=False, hovertemplate="%{y}: %{x:.3f} µs<extra></extra>",
        error_x={
            "array": [one.high_us - one.median_us for one in timed],
            "arrayminus": [one.median_us - one.low_us for one in timed],
            "symmetric": False,
        },
    )  # fmt: skip
    fig.update_yaxes(autorange="reversed", showgrid=False)
    fig.update_xaxes(title_text="µs per call", range=[0, 1.5 * max(one.high_us for one in timed)])
    fig.update_layout(height=140 + 44 * len(timed), bargap=0.35)
    return Drawing(
        fig,
        caption=f"{where}, {tokens} token{'s' * (tokens != 1)}.",
        alt=f"Horizontal bars with whiskers: {', '.join(names)}. Each bar says its time and its bandwidth.",
        summary=_steps(timed),
        table=Table(
            "Median and spread",
            ("version", "median µs", "10th percentile", "90th", "bytes", "GB/s"),
            [
                (
                    name,
                    f"{one.median_us:.3f}",
                    f"{one.low_us:.3f}",
                    f"{one.high_us:.3f}",
                    str(one.bytes),
                    f"{one.gb_s:.0f}",
                )
                for name, one in zip(names, timed, strict=True)
            ],
        ),
    )


def _steps(timed: Sequence[Timed]) -> str:
    """What the times show: the fastest against the first, the largest step, regressions, the share of the light."""
    versions = [one for one in timed if one.version is not None]
    first, best = versions[0], min(versions, key=lambda one: one.median_us)
    sentences = [
        f"Version {best.version.number} takes {best.median_us:.2f} µs, version {first.version.number} "
        f"{first.median_us:.2f} µs: {first.median_us / best.median_us:.2f} times as long."
    ]
    steps = list(pairwise(versions))
    before, after = max(steps, key=lambda step: step[0].median_us / step[1].median_us)
    if (factor := before.median_us / after.median_us) > 1:
        numbers = f"{before.version.number} to {after.version.number}"
        sentences.append(f"The largest step is from version {numbers}, {factor:.2f} times as fast.")
    sentences += [
        f"Version {b.version.number} takes {b.median_us / a.median_us:.2f} times as long as version {a.version.number}."
        for a, b in steps
        if b.low_us > a.high_us and b.median_us >= 1.01 * a.median_us  # more than the rounds vary
    ]
    for light in timed:
        if light.version is None:
            share = light.median_us / best.median_us
            sentences.append(
                f"The light takes {light.median_us:.2f} µs: version {best.version.number} is at {share:.0%} of it."
            )
    return " ".join(sentences)
