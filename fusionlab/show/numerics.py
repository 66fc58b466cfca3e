"""Figures about numbers: which values FP8 has, what quantisation loses, what a rounding point costs.

Each builder takes data and returns the figure with sentences that state what the data shows, so that picture and words
cannot disagree.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

from fusionlab.show.drawing import Drawing
from fusionlab.show.theme import GRID, PALETTE

NEAR_ZERO = 32.0  # half the width of the second number line: wide enough to see the step double a few times
LABEL_WIDTH = 22  # characters per line of a bar's label, so that bars have room on a narrow page


@dataclass(frozen=True)
class Cost:
    """How one way of rounding differs from another: the fraction of the codes and of the scales that differ."""

    codes: float
    scales: float


def fp8_values(dtype: torch.dtype = torch.float8_e4m3fn) -> torch.Tensor:
    """All finite values of an 8-bit float `dtype` in ascending order, the two zeros as one; float32."""
    values = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    return values[values.isfinite()].unique()


def largest_error(dtype: torch.dtype) -> float:
    """The largest relative error of casting a value with full precision to `dtype`.

    Half a step, for a value that far above a power of two: for e4m3 1/16 of a value of 1 + 1/16, or 1/17.
    """
    half = torch.finfo(dtype).eps / 2
    return half / (1 + half)


def number_line(quotients: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn, *, group: int = 0) -> Drawing:
    """The values of `dtype` on a line, and where the cast moves the elements of one group.

    Args:
        quotients: [group_size] float32, each element divided by the scale of the group.
        dtype: the FP8 format that they are cast to.
        group: the number of the group, for the caption.
    """
    values = fp8_values(dtype)
    limit = values[-1].item()
    codes = quotients.clamp(-limit, limit).to(dtype).float()

    reaches = (limit, min(NEAR_ZERO, limit))
    titles = (f"the whole line, −{limit:g} to {limit:g}", f"around zero, −{reaches[1]:g} to {reaches[1]:g}")
    fig = make_subplots(rows=2, cols=1, subplot_titles=titles, vertical_spacing=0.2)
    for row, reach in enumerate(reaches, start=1):
        inside = quotients.abs() <= (reach if row > 1 else torch.inf)
        _number_line_panel(fig, row, quotients[inside], codes[inside], values[values.abs() <= reach])
        fig.update_xaxes(range=[-1.04 * reach, 1.04 * reach], zeroline=False, row=row, col=1)
    labels = ["after the cast", "values that exist", "before the cast"]
    fig.update_yaxes(tickvals=[0, 1, 2], ticktext=labels, range=[-0.5, 2.5], showgrid=False, zeroline=False)
    fig.update_layout(height=500, showlegend=False, margin={"t": 40})

    steps = values.diff()
    inner = values[values > 0].median().item()
    clamped = int((quotients.abs() > limit).sum())
    summary = (
        f"The format has {len(values)} finite values. About half of them lie within ±{inner:g}, because the step "
        f"between neighbours grows from {_fraction(steps.min().item())} beside zero to {steps.max().item():g} below "
        f"{limit:g}. "
        f"The {len(codes)} elements of this group landed on {len(codes.unique())} of these values; "
        f"{int((codes.abs() == limit).sum())} on ±{limit:g}, the end of the line; {clamped} had to be clamped to it."
    )
    alt = (
        "Two number lines, the whole range and the part around zero. In each, the elements of the group before the "
        "cast, the values that the format has as vertical ticks crowding towards zero, and the elements after the "
        "cast, joined to where they came from."
    )
    return Drawing(fig, f"The cast to FP8, group {group}.", alt, summary)


def _fraction(power: float) -> str:
    """A power of two as a fraction: 1/512 rather than 0.00195312."""
    return f"1/{1 / power:g}" if power < 1 else f"{power:g}"


def _number_line_panel(
    fig: go.Figure, row: int, quotients: torch.Tensor, codes: torch.Tensor, values: torch.Tensor
) -> None:
    """Three rows of one panel, top to bottom: before the cast, the representable values, after the cast."""
    path_x = [x for q, c in zip(quotients.tolist(), codes.tolist(), strict=True) for x in (q, c, None)]
    path_y = [2, 0, None] * len(codes)
    fig.add_scatter(
        x=path_x, y=path_y, mode="lines", line={"width": 1, "color": PALETTE["grey"]}, opacity=0.5, hoverinfo="skip",
        row=row, col=1,
    )  # fmt: skip
    dot = {"size": 8, "opacity": 0.75}
    tick = {"symbol": "line-ns-open", "size": 26, "line": {"width": 1.2}, "color": PALETTE["vermillion"]}
    for height, points, marker, hover in (
        (2, quotients, dot | {"color": PALETTE["grey"]}, "value / scale = %{x:.4g}"),
        (1, values, tick, "FP8 value %{x:g}"),
        (0, codes, dot | {"color": PALETTE["blue"]}, "code %{x:g}"),
    ):
        fig.add_scatter(
            x=points.tolist(), y=[height] * len(points), mode="markers", marker=marker,
            hovertemplate=hover + "<extra></extra>", row=row, col=1,
        )  # fmt: skip


def group_errors(
    values: torch.Tensor, restored: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> Drawing:
    """The relative error of every element of a row, group by group, against half a step of the format.

    Args:
        values: [groups, group_size], the quantised values.
        restored: [groups, group_size], the dequantised codes.
        scale: [groups] float32.
        dtype: the FP8 format of the codes.
    """
    values, restored, scale = values.double(), restored.double(), scale.double()
    bound = largest_error(dtype)
    error = ((restored - values).abs() / values.abs()).where(values != 0, 0.0)
    largest = values.abs() == values.abs().amax(-1, keepdim=True)
    small = (values.abs() < torch.finfo(dtype).smallest_normal * scale[:, None]) & ~largest
    ceiling = 1.3 * bound

    groups, size = values.shape
    position = torch.arange(groups * size).view(groups, size)
    fig = go.Figure()
    for name, chosen, marker in (
        ("element", ~largest & ~small, {"size": 5, "opacity": 0.8, "color": PALETTE["blue"]}),
        ("too small for full precision", small, {"size": 9, "symbol": "triangle-up", "color": PALETTE["purple"]}),
        ("largest of its group", largest, {"size": 11, "symbol": "diamond", "color": PALETTE["vermillion"]}),
    ):
        fig.add_scatter(
            x=position[chosen].tolist(), y=(100 * error[chosen].clamp(max=ceiling)).tolist(), mode="markers",
            name=name, marker=marker, cliponaxis=False,
            customdata=torch.stack((values[chosen], restored[chosen], 100 * error[chosen]), -1).tolist(),
            hovertemplate="%{customdata[0]:.6g} became %{customdata[1]:.6g}: %{customdata[2]:.3g} % off<extra></extra>",
        )  # fmt: skip
    fig.add_scatter(
        x=[0, groups * size - 1], y=[100 * bound] * 2, mode="lines", name="half a step",
        line={"dash": "dash", "width": 2, "color": PALETTE["grey"]}, hoverinfo="skip",
    )  # fmt: skip
    for edge in range(1, groups):
        fig.add_vline(x=edge * size - 0.5, line={"width": 1, "color": GRID})
    middles = [size * (group + 0.5) for group in range(groups)]
    fig.update_xaxes(
        tickvals=middles, ticktext=[str(group) for group in range(groups)], title_text="group (one head each)",
        range=[-0.01 * groups * size, 1.01 * groups * size], showgrid=False, zeroline=False,
    )  # fmt: skip
    fig.update_yaxes(title_text="relative error, %", range=[-0.3, 100 * ceiling])
    fig.update_layout(height=440)

    fine, worst = error[~small], error[largest].max().item()
    returns = (
        f"within {worst:.1e} of itself" if worst else "exactly (in other groups it can be off by a float32's last bit)"
    )
    parts = [
        f"Half a step is 1/{1 / bound:.0f}, or {bound:.2%}, of a value at most; the {len(fine)} elements with full "
        f"precision are off by {fine.mean().item():.2%} on average and by {fine.max().item():.2%} at worst.",
        f"The largest element of each group returns {returns}, because the scale was made for it.",
    ]
    if small.any():
        parts.append(
            f"{int(small.sum())} of {values.numel()} elements are so small beside their group's largest that the "
            f"format has fewer bits left for them: up to {error[small].max().item():.1%} off."
        )
        if error[small].max() > ceiling:
            parts.append("Those beyond the upper edge are drawn on it.")
    alt = (
        f"The relative error of {values.numel()} elements in percent, {groups} groups side by side. Dots fill the "
        "space between zero and a dashed line at half a step. A diamond on zero marks the largest element of each "
        "group; triangles mark elements too small for full precision."
    )
    return Drawing(fig, "What the row lost on its way through FP8.", alt, " ".join(parts))


def error_histogram(errors: Mapping[str, torch.Tensor], reach: float, bins: int = 61) -> Drawing:
    """Outlines of histograms: the signed relative error of each format.

    Args:
        errors: by name of the format, the relative error of each nonzero element, as a fraction.
        reach: half the width of the axis, as a fraction.
        bins: number of bins; an odd number puts one in the middle.
    """
    edges = torch.linspace(-reach, reach, bins + 1, dtype=torch.double)
    middles = 100 * (edges[:-1] + edges[1:]) / 2
    fig = go.Figure()
    for (name, error), colour, dash in zip(errors.items(), PALETTE, ("solid", "dash", "dot", "dashdot"), strict=False):
        counts = torch.histogram(error.double().flatten(), edges).hist
        shares = 100 * counts / error.numel()
        fig.add_scatter(
            x=middles.tolist(), y=shares.tolist(), mode="lines", name=name,
            line={"shape": "hvh", "width": 2.2, "dash": dash, "color": PALETTE[colour]},
            hovertemplate=name + ": %{y:.2f} % of the elements at %{x:.2f} %<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(title_text="relative error, %", zeroline=True)
    fig.update_yaxes(title_text="elements, %", rangemode="tozero")
    typical = {name: error.double().abs().median().item() for name, error in errors.items()}
    parts = [f"{name}: {value:.2%}" for name, value in typical.items()]
    order = sorted(typical, key=typical.get)
    least = [name for name in order if typical[name] <= 1.01 * typical[order[0]]]  # smaller differences are chance
    summary = f"Half of the elements are off by no more than: {'; '.join(parts)}. "
    summary += f"{' and '.join(least)} {'lose' if len(least) > 1 else 'loses'} least"
    summary += f", {order[-1]} {typical[order[-1]] / typical[order[0]]:.1f} times as much." if least != order else "."
    outside = {name: (error.double().abs() > reach).double().mean().item() for name, error in errors.items()}
    if any(outside.values()):
        left_out = ", ".join(f"{share:.2%} of {name}'s" for name, share in outside.items() if share)
        summary += f" Beyond the ends of the axis: {left_out}."
    alt = f"Outlines of {len(errors)} histograms of the relative error around zero; the narrower one is better."
    return Drawing(fig, "What each format loses, all tokens.", alt, summary)


def rounding_costs(costs: Mapping[str, Cost], baseline: str) -> Drawing:
    """Bars: the share of scales and of codes that each way of rounding changes against `baseline`."""
    names = list(costs)
    labels = ["<br>".join(textwrap.wrap(name, LABEL_WIDTH)) for name in names]
    titles = ("scales that differ", "codes that differ")
    fig = make_subplots(rows=2, cols=1, subplot_titles=titles, vertical_spacing=0.16)
    for row, (field, colour) in enumerate((("scales", "vermillion"), ("codes", "blue")), start=1):
        shares = [100 * getattr(costs[name], field) for name in names]
        fig.add_bar(
            x=shares, y=labels, orientation="h", marker_color=PALETTE[colour], text=[f"{s:.3g} %" for s in shares],
            textposition="outside", cliponaxis=False, hovertemplate="%{y}: %{x:.4g} %<extra></extra>", row=row, col=1,
        )  # fmt: skip
        fig.update_xaxes(range=[0, 1.25 * max([*shares, 0.01])], ticksuffix=" %", nticks=5, row=row, col=1)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    fig.update_layout(height=160 + 90 * len(names), showlegend=False, bargap=0.35)

    ordered = sorted(names, key=lambda name: costs[name].codes)
    least, most = costs[ordered[0]], costs[ordered[-1]]
    scales = sorted(cost.scales for cost in costs.values())
    summary = (
        f"Compared with {baseline}, between {least.codes:.2%} (“{ordered[0]}”) and {most.codes:.2%} "
        f"(“{ordered[-1]}”) of the codes change, and between {scales[0]:.1%} and {scales[-1]:.1%} of the scales."
    )
    alt = (
        f"Horizontal bars for {len(costs)} ways of rounding, in two panels: the share of scales and of codes that "
        "differ from those of the module's output. Each bar carries its value."
    )
    return Drawing(fig, "FP8 scales and codes that change when rounding points are left out.", alt, summary)


def outlier_sweep(factors: Sequence[float], per_group: Sequence[float], per_tensor: Sequence[float]) -> Drawing:
    """Lines: mean relative error with one scale per group and with one for the tensor, as one element grows.

    Args:
        factors: ascending; how many times larger than the tensor's own maximum the planted element is.
        per_group, per_tensor: the mean relative error at each factor, as a fraction.
    """
    fig = go.Figure()
    for name, errors, colour, symbol in (
        ("one scale per group", per_group, "blue", "circle"),
        ("one scale for the whole tensor", per_tensor, "vermillion", "square"),
    ):
        fig.add_scatter(
            x=list(factors), y=[100 * error for error in errors], mode="lines+markers", name=name,
            line={"width": 2.5, "color": PALETTE[colour]}, marker={"size": 8, "symbol": symbol},
            hovertemplate="outlier %{x:g} times the maximum: %{y:.3g} %<extra></extra>",
        )  # fmt: skip
    fig.update_xaxes(
        type="log", tickvals=list(factors), ticktext=[f"{factor:g}" for factor in factors],
        title_text="outlier, as a multiple of the maximum",
    )  # fmt: skip
    fig.update_yaxes(title_text="mean relative error, %", rangemode="tozero")
    summary = (
        f"On the real values alone the mean relative error is {per_group[0]:.2%} with a scale per group and "
        f"{per_tensor[0]:.2%} with one scale for all. One element {factors[-1]:g} times larger makes that "
        f"{per_group[-1]:.2%} and {per_tensor[-1]:.2%}: it spoils its own group, or everything."
    )
    alt = (
        "The mean relative error over the size of one planted element, logarithmic: one line for a scale per group, "
        "one for a single scale for the whole tensor."
    )
    return Drawing(fig, "One outlier, and the error of everything else.", alt, summary)
