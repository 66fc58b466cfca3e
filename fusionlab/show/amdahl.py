"""What a faster kernel is worth to a whole step: Amdahl's law as a figure with a slider.

The share of a step that a fusion saves is `saved per layer x layers / time of the step`
(`fusionlab.observe.whatif`), so every saving is a falling curve over the step time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import plotly.graph_objects as go

from fusionlab.show.controls import SLIDER, room
from fusionlab.show.drawing import Drawing, Table
from fusionlab.show.theme import PALETTE

SAVINGS_US = (0.5, 1.0, 2.0, 3.0, 4.5, 6.0, 9.0)  # the slider's positions; 4.5 is what PR #40710 states
BAND = (0.01, 0.03)  # the "1-3 %" claimed for fusions like this one
TOP = 0.06  # share at the upper edge: twice the band
POINTS = 121  # per curve, so that it is smooth at any width


@dataclass(frozen=True)
class Claim:
    """A published claim: in a step of `step_us` microseconds the saving was `share` (0.025 for 2.5 %)."""

    name: str
    step_us: float
    share: float


def share_of_step(saved_us: float, layers: int, step_us: float) -> float:
    """Amdahl's law for a shrinking part: `layers` * `saved_us` / `step_us`, all times in microseconds."""
    return saved_us * layers / step_us


def worth(
    saved_us: float,
    layers: int,
    step_ms: float,
    claims: Sequence[Claim] = (),
    *,
    choices_us: Iterable[float] = SAVINGS_US,
    steps_ms: tuple[float, float] = (1.0, 100.0),
) -> Drawing:
    """Share of a step that is saved, over the step time; a slider chooses what one layer saves.

    Args:
        saved_us: saved per layer, microseconds; the slider's initial position.
        layers: how many layers save it.
        step_ms: time of the whole step, milliseconds, marked on each curve; within `steps_ms`.
        claims: claims to mark as points.
        choices_us: the slider's other positions.
        steps_ms: both ends of the axis, milliseconds.

    Raises:
        ValueError: for a number that is not positive, or a step outside the axis.
    """
    if not (saved_us > 0 and layers > 0):
        raise ValueError(f"saved_us={saved_us!r} and layers={layers!r} must be > 0")
    if not steps_ms[0] <= step_ms <= steps_ms[1]:
        raise ValueError(f"step_ms={step_ms!r} must lie within the axis, {steps_ms[0]:g} to {steps_ms[1]:g}")
    savings = sorted({*choices_us, saved_us})
    fig = go.Figure()
    _draw_band(fig, steps_ms)
    fixed = len(fig.data) + _draw_claims(fig, claims)
    axis = [steps_ms[0] * (steps_ms[1] / steps_ms[0]) ** (i / (POINTS - 1)) for i in range(POINTS)]
    for saving in savings:
        _draw_curve(fig, saving, layers, axis, step_ms, visible=saving == saved_us)
    fig.update_xaxes(
        type="log", range=[math.log10(end) for end in steps_ms], title_text="time of one step, ms",
        tickvals=(ticks := [t for t in (1, 2, 5, 10, 20, 50, 100) if steps_ms[0] <= t <= steps_ms[1]]),
        ticktext=[f"{t}" for t in ticks],
    )  # fmt: skip
    fig.update_yaxes(range=[0, 100 * TOP], title_text="share of the step saved, %")
    fig.update_layout(
        height=430 + SLIDER, margin={"b": 60 + SLIDER}, showlegend=True, meta=room(below=SLIDER),
        sliders=[_slider(savings, savings.index(saved_us), fixed)],
    )  # fmt: skip
    return Drawing(
        fig,
        f"What a saving in each of {layers} layers is worth.",
        f"The share of a step that is saved, in percent, against the time of the step from {steps_ms[0]:g} to "
        f"{steps_ms[1]:g} ms: a curve that falls as the step grows, a shaded band from {BAND[0]:.0%} to "
        f"{BAND[1]:.0%}, a diamond at {step_ms:g} ms, and {len(claims)} published statements as marks. A slider "
        "chooses what one layer saves.",
        _summary(saved_us, layers, step_ms, claims),
        _table(savings, layers, step_ms),
    )


def _draw_band(fig: go.Figure, steps_ms: tuple[float, float]) -> None:
    low, high = (100 * share for share in BAND)
    fig.add_scatter(
        x=[*steps_ms, *reversed(steps_ms)], y=[low, low, high, high], fill="toself", mode="lines",
        line={"width": 1, "dash": "dot", "color": PALETTE["grey"]}, fillcolor="rgba(125, 125, 125, 0.16)",
        name=f"{low:g} to {high:g} %", hoverinfo="skip",
    )  # fmt: skip


def _draw_claims(fig: go.Figure, claims: Sequence[Claim]) -> int:
    """One mark for each claim; returns how many traces that took."""
    symbols = ("square", "triangle-up", "cross", "x")
    for i, claim in enumerate(claims):
        fig.add_scatter(
            x=[claim.step_us / 1000], y=[100 * claim.share], mode="markers", name=claim.name,
            marker={"symbol": symbols[i % len(symbols)], "size": 12, "color": PALETTE["vermillion"]},
            zorder=2,  # above the curve, although that is drawn later
            hovertemplate="%{x:.2f} ms, %{y:.2f} %<extra></extra>",
        )  # fmt: skip
    return len(claims)


def _draw_curve(
    fig: go.Figure, saved_us: float, layers: int, axis: list[float], step_ms: float, *, visible: bool
) -> None:
    """Two traces: the curve, and the chosen step on it."""
    share = share_of_step(saved_us, layers, 1000 * step_ms)
    fig.add_scatter(
        x=axis, y=[100 * share_of_step(saved_us, layers, 1000 * ms) for ms in axis], mode="lines", visible=visible,
        name=f"{saved_us:g} µs × {layers} layers", line={"width": 3, "color": PALETTE["blue"]},
        hovertemplate="a step of %{x:.3g} ms: %{y:.2f} %<extra></extra>",
    )  # fmt: skip
    drawn = min(share, 0.97 * TOP)  # a mark above the frame would be invisible; its text shows the number
    fig.add_scatter(
        x=[step_ms], y=[100 * drawn], mode="markers+text", visible=visible, name=f"at {step_ms:g} ms",
        text=[f"{share:.2%}"], textposition="top right", textfont={"size": 15},
        marker={"symbol": "diamond", "size": 14, "color": PALETTE["blue"]}, hoverinfo="skip", zorder=2,
    )  # fmt: skip


def _slider(savings: Sequence[float], active: int, fixed: int) -> dict:
    """Position i shows the two traces of saving i, and the fixed ones."""
    steps = []
    for i, saving in enumerate(savings):
        visible = [True] * fixed + [j == i for j in range(len(savings)) for _ in range(2)]
        steps.append({"method": "restyle", "args": [{"visible": visible}], "label": f"{saving:g}"})
    return {
        "name": "saved_us", "active": active, "steps": steps, "pad": {"t": 62}, "len": 1.0,
        "currentvalue": {"prefix": "saved in each layer: ", "suffix": " µs", "font": {"size": 14}},
    }  # fmt: skip


def _summary(saved_us: float, layers: int, step_ms: float, claims: Sequence[Claim]) -> str:
    total = saved_us * layers
    share = share_of_step(saved_us, layers, 1000 * step_ms)
    slow, fast = (total / bound / 1000 for bound in BAND)
    text = (
        f"If each saves {saved_us:g} µs, {layers} layers save {total:g} µs per step: {share:.2%} of {step_ms:g} ms. "
        f"They are {BAND[0]:.0%} to {BAND[1]:.0%} of a step for steps of {slow:.3g} down to {fast:.3g} ms, and less "
        "for any longer one."
    )
    off = [c for c in claims if abs(share_of_step(saved_us, layers, c.step_us) - c.share) > 5e-4]
    if claims and not off:
        text += f" The published statements lie on the curve of {saved_us:g} µs, each at the step time that it implies."
    elif off:
        text += (
            f" {len(off)} of {len(claims)} published statements lie off the curve of {saved_us:g} µs: they are "
            "about another saving."
        )
    return text


def _table(savings: Sequence[float], layers: int, step_ms: float) -> Table:
    steps = sorted({step_ms, 3.0, 10.0, 30.0})
    columns = ["saved in a layer", f"in {layers} layers", *(f"of {ms:g} ms" for ms in steps)]
    rows = [
        [f"{s:g} µs", f"{s * layers:g} µs", *(f"{share_of_step(s, layers, 1000 * ms):.2%}" for ms in steps)]
        for s in savings
    ]
    return Table("Share of the step that is saved, by saving and by time of the step", columns, rows)
