"""Time over the number of tokens: several implementations, and how far each is from the lower bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape

from plotly.subplots import make_subplots

from fusionlab.show import Drawing, Table
from fusionlab.show.line_styles import IMPLEMENTATIONS, line_of, styles
from fusionlab.show.names import us

Series = Mapping[str, Mapping[int, float]]


def latency(series: Series, *, floor: str, where: str) -> Drawing:
    """Time of a call over tokens, both logarithmic, and below it each time as a multiple of the lower bound.

    Args:
        series: implementation -> tokens -> microseconds; sizes that were not measured are left out.
        floor: the name in `series` of the lower bound, such as a kernel that only moves the bytes.
        where: whose measurements these are and on what, for the caption.

    Raises:
        ValueError: if `floor` is not in `series`, something has no time, or a time is not finite and > 0.
    """
    _check(series, floor)
    fig = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.1, row_heights=[0.62, 0.38],
        subplot_titles=("time of one call, µs", f"the same, as a multiple of “{escape(floor)}”"),
    )  # fmt: skip
    names = [name for name in series if name != floor] + [floor]
    looks = styles(names) | {floor: IMPLEMENTATIONS["light"]}
    for place, name in enumerate(names):
        times = dict(sorted(series[name].items()))
        ratios = {tokens: value / series[floor][tokens] for tokens, value in times.items() if tokens in series[floor]}
        chosen = looks[name]
        line = line_of(chosen, 4 if name == floor else 2.5)
        for row, values in enumerate((times, ratios), start=1):
            fig.add_scatter(
                x=list(values), y=list(values.values()), mode="lines+markers", name=escape(name), line=line,
                marker={"size": 8, "symbol": chosen.symbol}, legendgroup=str(place), showlegend=row == 1,
                hovertext=[
                    f"<b>{escape(name)}</b><br>{tokens} tokens: {us(times[tokens])} µs"
                    + (f"<br>{ratios[tokens]:.2f} times {floor}" if tokens in ratios else "")
                    for tokens in values
                ],
                hovertemplate="%{hovertext}<extra></extra>", row=row, col=1,
            )  # fmt: skip
    sizes = sorted({tokens for times in series.values() for tokens in times})
    fig.update_xaxes(type="log", tickvals=sizes, ticktext=[str(size) for size in sizes])
    fig.update_xaxes(title_text="tokens", row=2, col=1)
    fig.update_yaxes(type="log", dtick="D2", row=1, col=1)
    fig.update_yaxes(rangemode="tozero", row=2, col=1)
    fig.update_layout(height=700, legend={"y": 1.06}, margin={"t": 110})
    return Drawing(
        fig,
        caption=f"Latency against tokens ({where}).",
        alt=(
            f"Two panels over the number of tokens, logarithmic, with a line for each of {len(names)} implementations: "
            f"the time of a call, and the same as a multiple of the dotted line, {floor}."
        ),
        summary=_summary(series, floor),
        table=Table(
            "Times in µs",
            ["tokens", *names],
            [
                [str(size), *(us(series[name][size]) if size in series[name] else "–" for name in names)]
                for size in sizes
            ],
        ),
    )


def _check(series: Series, floor: str) -> None:
    if floor not in series:
        raise ValueError(f"floor={floor!r} is none of {', '.join(series) or 'no series'}; name one of them")
    for name, times in series.items():
        wrong = {tokens: value for tokens, value in times.items() if not (math.isfinite(value) and value > 0)}
        if not times or wrong:
            raise ValueError(f"{name}: needs finite times > 0 for some number of tokens, got {dict(times)!r:.80}")


def _summary(series: Series, floor: str) -> str:
    sentences = []
    others = {name: times for name, times in series.items() if name != floor}
    shared = sorted({tokens for times in others.values() for tokens in times} & set(series[floor]))
    for tokens in dict.fromkeys(shared[:1] + shared[-1:]):
        here = {name: times[tokens] for name, times in others.items() if tokens in times}
        fast, slow = min(here, key=here.__getitem__), max(here, key=here.__getitem__)
        text = f"For {tokens} token{'s' * (tokens != 1)} “{fast}” is the fastest, {us(here[fast])} µs"
        text += f" or {here[fast] / series[floor][tokens]:.2f} times {floor}"
        if slow != fast:
            text += f"; “{slow}” takes {here[slow] / here[fast]:.2f} times as long as that"
        sentences.append(text + ".")
    under = sorted(
        {
            name
            for name, times in others.items()
            for tokens in shared
            if times.get(tokens, math.inf) < series[floor][tokens]
        }
    )
    if under:
        sentences.append(f"Below {floor} in places, which bounds nothing there: {', '.join(under)}.")
    return " ".join(sentences) or f"Nothing but {floor} was measured."
