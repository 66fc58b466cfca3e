"""Exercises about FP8, scales and rounding points: notebook 01."""

from __future__ import annotations

import math

import torch

from fusionlab.exercises.exercise import Exercise
from fusionlib.reference import group_quant
from fusionlib.spec import GroupQuant

BYTE = 0b0_1001_010
AMAX, GROUP = 3.5, 128
ROUNDINGS = {"norm", "weight", "output"}


def _number(answer: object) -> str | None:
    """What is wrong with an answer that should be a number but is not."""
    if isinstance(answer, bool) or not isinstance(answer, int | float) or not math.isfinite(answer):
        return f"{answer!r} is not a number"
    return None


def _value(answer: float) -> str | None:
    if (wrong := _number(answer)) is not None:
        return wrong
    value = torch.tensor([BYTE], dtype=torch.uint8).view(torch.float8_e4m3fn).item()
    if answer == value:
        return None
    if answer == math.ldexp(0b010 / 8, 0b1001 - 7):
        return "the mantissa of a number with an exponent field above zero has a leading 1 that is not stored"
    if answer == -value:
        return "the sign bit is the first one, and it is zero"
    return f"{answer} is not it; take the exponent field less 7 as the power of two, and 1 + mantissa/8 as the factor"


def _scale(answer: float) -> str | None:
    if (wrong := _number(answer)) is not None:
        return wrong
    if answer <= 0:
        return f"{answer} cannot be a scale: values are divided by it, and keep their sign"
    row = torch.full((1, GROUP), AMAX)
    scale = group_quant(row, GroupQuant.vllm(GROUP))[1].item()
    if math.isclose(answer, scale, rel_tol=1e-6):  # a reader's answer is a float64, the scale a float32
        return None
    if math.isclose(answer, 1 / scale, rel_tol=1e-6):
        return "that is its reciprocal: a code is value / scale, and code × scale gives the value back"
    return f"{answer} would put {AMAX} on {AMAX / answer:g}; it should land on the largest value of the format"


def _exact_roundings(answer: set[str]) -> str | None:
    if not isinstance(answer, set | frozenset | list | tuple):
        return f"{answer!r} is not a set; write names in braces, such as {{'norm', 'output'}}"
    given = set(answer)
    if unknown := given - ROUNDINGS:
        return f"{sorted(unknown)} are no rounding points; choose from {sorted(ROUNDINGS)}"
    if "norm" in given:
        return "normalised values are in fp32 and seldom lie on a bf16 value; this rounding moves most of them"
    if "output" in given:
        return "the gate is applied in fp32, and its product seldom lies on a bf16 value"
    return None if given == {"weight"} else "one of the three multiplies a bf16 value by exactly one"


read_a_byte = Exercise(
    name="exercises.read_a_byte",
    question=f"Which number does the e4m3 byte {BYTE:#010b} stand for? Sign, four bits of exponent, three of mantissa.",
    judge=_value,
    solution=5.0,
    traps=(1.0, -5.0, 2.5, 10.0, "5"),
    hints=("The fields are 0, 1001 and 010.", "The power of two is 9 - 7."),
    explanation="(1 + 2/8) × 2^(9 - 7) = 5.",
)

a_scale = Exercise(
    name="exercises.a_scale",
    question=f"The largest magnitude of a group is {AMAX}. Which scale does float8_e4m3fn get with a floor of 1e-10?",
    judge=_scale,
    solution=AMAX / 448,
    traps=(448 / AMAX, AMAX, AMAX / 240, 448.0, 0),
    hints=("The amax must land on the largest value, 448.",),
    explanation="scale = amax / 448; the floor matters only to groups that are almost zero.",
    solution_text="3.5 / 448 = 0.0078125",
)

free_roundings = Exercise(
    name="exercises.free_roundings",
    question=(
        "A fresh norm has all its weights at one. Which of Qwen3-Next's rounding points ('norm', 'weight', 'output') "
        "then change nothing? Answer with a set."
    ),
    judge=_exact_roundings,
    solution={"weight"},
    traps=(set(), {"norm"}, {"weight", "output"}, {"gate"}, "weight"),
    hints=("What does multiplying a bf16 value by one give?",),
    explanation="One times a bf16 value is that value, so nothing is left to round. Trained weights are not one.",
)
