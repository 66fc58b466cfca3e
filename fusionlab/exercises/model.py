"""Exercises on a whole model: how many sites it has, and what a saved microsecond is worth."""

from __future__ import annotations

import math
import random
from typing import Any

from fusionlab.exercises.exercise import Exercise

_MODEL = "A model has 48 layers; every fourth one is full attention, the others end in a gated norm and a projection."


def _is_number(answer: Any) -> bool:
    return isinstance(answer, int | float) and not isinstance(answer, bool)


def _judge_sites(answer: Any) -> str | None:
    if not _is_number(answer):
        return f"{answer!r} is no number of sites."
    if answer > 48:
        return "there are not that many layers."
    if answer == 48:
        return "a layer with full attention has no gated norm in front of its output projection."
    return None if answer == 36 else "count the layers that end in the path: all but every fourth."


SITES = Exercise(
    "exercises.SITES",
    f"{_MODEL} Every output projection is in FP8, by groups. How many sites will a report list as fused by gated_norm?",
    _judge_sites,
    solution=36,
    traps=(48, 12, 37, "36 layers"),
    hints=(
        "Which layers have a gated norm at all?",
        "48 layers in blocks of four: three linear ones, then a full one.",
    ),
    explanation="12 blocks of three linear layers: 36. This is the number to give as expect={'gated_norm': 36}, so "
    "that a layer that stops fusing stops the compile. What full attention quantises, another fusion takes.",
)


def _judge_expect(answer: Any) -> str | None:
    if not _is_number(answer):
        return f"{answer!r} is no number of sites."
    if answer == 36:
        return "that many were fused before; which of them did the change take away?"
    if answer in (46, 48):
        return "start from the gated norms of the whole model, not from its layers."
    return None if answer == 35 else "of the two changed layers only one had a gated norm."


EXPECT = Exercise(
    "exercises.EXPECT",
    f"{_MODEL} Somebody quantises the first layer and the fourth layer per tensor instead of by groups. Which number "
    "will pass as expect={'gated_norm': ...}?",
    _judge_expect,
    solution=35,
    traps=(36, 34, 46, 1),
    hints=("Layers count from one here. What kind is the fourth?", "A refused site is not counted by expect=."),
    explanation="The first layer is linear: its site is refused as per_tensor_dynamic. The fourth is full attention "
    "and never had a gated norm.",
)


def _judge_share(answer: Any) -> str | None:
    if not callable(answer):
        return "give a function of saved_us, layers and step_ms."
    draw = random.Random(7)
    for _ in range(20):
        saved, layers, step = draw.uniform(0.1, 9.0), draw.randint(1, 96), draw.uniform(1.0, 100.0)
        expected, got = saved * layers / (1000 * step), answer(saved, layers, step)
        if not _is_number(got):
            return f"it returned {got!r} and not a number."
        if math.isclose(got, expected, rel_tol=1e-9):
            continue
        asked = f"saved_us={saved:.3g}, layers={layers}, step_ms={step:.3g}"
        for factor, what in ((1000, "a step in ms and a saving in µs are not the same unit"),
                             (100, "a fraction is asked for, 0.01 for 1 %"),
                             (100_000, "mind the units, and give a fraction"),
                             (1 / layers, "every layer saves it, not one")):  # fmt: skip
            if math.isclose(got, expected * factor, rel_tol=1e-9):
                return f"for {asked} it gives {got:.4g}: {what}."
        return f"for {asked} it gives {got:.4g}, which is not the saved time over the step's."
    return None


def share(saved_us: float, layers: int, step_ms: float) -> float:
    """The fraction of a step that is saved."""
    return saved_us * layers / (1000 * step_ms)


SHARE = Exercise(
    "exercises.SHARE",
    "Write share(saved_us, layers, step_ms): which fraction of a step of step_ms milliseconds is saved if each of "
    "`layers` layers saves saved_us microseconds?",
    _judge_share,
    solution=share,
    traps=(
        lambda saved_us, layers, step_ms: saved_us * layers / step_ms,
        lambda saved_us, layers, step_ms: saved_us / (1000 * step_ms),
        lambda saved_us, layers, step_ms: 100 * saved_us * layers / (1000 * step_ms),
        lambda saved_us, layers, step_ms: 1 - saved_us * layers / (1000 * step_ms),
        lambda saved_us, layers, step_ms: None,
        0.025,
    ),
    hints=("Time saved in the whole step, over the time of the step.", "1 ms is 1000 µs."),
    explanation="This is Amdahl's law for a part that shrinks instead of vanishing.",
)


def _judge_step(answer: Any) -> str | None:
    if not _is_number(answer) or answer <= 0:
        return f"{answer!r} is no time in milliseconds."
    if math.isclose(answer, 7.2, rel_tol=5e-3):
        return None
    if math.isclose(answer, 7200, rel_tol=5e-3):
        return "that is in microseconds."
    if math.isclose(answer, 0.2, rel_tol=5e-3):
        return "that is what a single layer would have to be measured against."
    return "put it back into share(2.0, 36, step_ms): it does not give 0.01."


STEP = Exercise(
    "exercises.STEP",
    "Your kernel saves 2 µs in each of 36 layers. How long may a step take, in milliseconds, for that to be 1 % of it?",
    _judge_step,
    solution=7.2,
    traps=(7200, 0.2, 72, 0.72, "7.2 ms", -7.2),
    hints=("2 µs × 36 are 72 µs per step.", "72 µs are 1 % of what?"),
    explanation="72 µs are 1 % of 7.2 ms. A longer step makes the same kernel worth less.",
)
