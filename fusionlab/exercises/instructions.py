"""Exercises of notebook 05: addresses, bytes, and one instruction."""

from __future__ import annotations

import math
from typing import Any

from fusionlab.exercises.exercise import Exercise

_TOKEN_STRIDE, _PAIR_STRIDE, _HEAD_DIM = 12288, 768, 128
_TOKEN, _HEAD = 2, 7


def _gate_offset(answer: Any) -> str | None:
    if isinstance(answer, bool) or not isinstance(answer, int):
        return f"an offset is a whole number of elements, and this is {answer!r}"
    if answer == (_TOKEN * 32 + _HEAD) * _HEAD_DIM:
        return "that is where the head would begin if the gate were contiguous"
    if answer == (_TOKEN * _TOKEN_STRIDE + _HEAD // 2 * _PAIR_STRIDE + _HEAD % 2 * _HEAD_DIM) * 2:
        return "that counts bytes; the kernel's offsets count elements"
    if answer < _TOKEN * _TOKEN_STRIDE:
        return f"token {_TOKEN} begins further on: look at the first stride"
    if answer == _TOKEN * _TOKEN_STRIDE + _HEAD * _PAIR_STRIDE:
        return "the second stride leads from one pair of heads to the next, not from head to head"
    if answer == _TOKEN * _TOKEN_STRIDE + _HEAD // 2 * _PAIR_STRIDE:
        return "that is where the pair begins; the head is the other one of the two"
    right = _TOKEN * _TOKEN_STRIDE + _HEAD // 2 * _PAIR_STRIDE + _HEAD % 2 * _HEAD_DIM
    return None if answer == right else "the head does not begin there; write down token, pair and place in the pair"


gate_offset = Exercise(
    name="exercises.gate_offset",
    question=(
        f"Qwen3-Next's gate is [tokens, 16, 256] with strides ({_TOKEN_STRIDE}, {_PAIR_STRIDE}, 1), and the kernel sees"
        f" 32 heads of {_HEAD_DIM}. At which element, counted from the gate's first, does head {_HEAD} of token "
        f"{_TOKEN} begin?"
    ),
    judge=_gate_offset,
    solution=_TOKEN * _TOKEN_STRIDE + _HEAD // 2 * _PAIR_STRIDE + _HEAD % 2 * _HEAD_DIM,
    traps=(
        (_TOKEN * 32 + _HEAD) * _HEAD_DIM,
        _TOKEN * _TOKEN_STRIDE + _HEAD * _HEAD_DIM,
        _TOKEN * _TOKEN_STRIDE + _HEAD * _PAIR_STRIDE,
        _TOKEN * _TOKEN_STRIDE + _HEAD // 2 * _PAIR_STRIDE,
        (_TOKEN * _TOKEN_STRIDE + _HEAD // 2 * _PAIR_STRIDE + _HEAD % 2 * _HEAD_DIM) * 2,
        float(_TOKEN * _TOKEN_STRIDE),
        True,
    ),
    hints=(
        "One run of 256 elements holds two heads. Which run holds head 7, and is it the first or the second in it?",
        "token * 12288 + run * 768 + place in the run * 128",
    ),
    explanation=(
        "2 * 12288 + 3 * 768 + 1 * 128: token, run, place in the run. No single stride from head to head gives this."
    ),
)


def _per_token_bytes(answer: Any) -> str | None:
    if isinstance(answer, bool) or not isinstance(answer, int | float) or not math.isfinite(answer):
        return f"a number of bytes is asked for, and this is {answer!r}"
    if math.isclose(answer, 5 + 4 / 128, abs_tol=2e-3):
        return "that is one scale per 128 elements; here a whole row of 4096 shares one"
    if math.isclose(answer, 5, abs_tol=1e-6):
        return "the scale is not free: it has four bytes for all elements of a row"
    if math.isclose(answer, 9 + 4 / 4096, abs_tol=4e-2):
        return "that is what two kernels move; the value in the middle does not go to memory here"
    if math.isclose(answer, 5 + 4 / 4096, abs_tol=1e-4):  # four digits, rounded or cut off
        return None
    return "count again: what is read of x and of the gate, and what is written of the codes and of the scale"


per_token_bytes = Exercise(
    name="exercises.per_token_bytes",
    question=(
        "With one scale for a whole token of 4096 elements, bf16 inputs and FP8 codes: how many bytes per element must "
        "the fused kernel move? Leave the weight out; four digits behind the point."
    ),
    judge=_per_token_bytes,
    solution=5 + 4 / 4096,
    traps=(5.0, 5.03125, 9.001, 4.001, 3.001, "5.001", None),
    hints=("x 2 + gate 2 + code 1, and a share of one float32.", "4 bytes of scale, shared by 4096 elements."),
    explanation="2 + 2 + 1 + 4/4096 = 5.0010. The scales of groups of 128 cost 0.03 bytes per element more.",
)


def _fp8_conversion(answer: Any) -> str | None:
    if not isinstance(answer, str) or not answer.strip():
        return f"the name of an instruction is asked for, as text, and this is {answer!r}"
    name = answer.split()[0].rstrip(";")
    if not name.startswith("cvt."):
        return f"{name!r} converts nothing; conversions begin with cvt"
    if "bf16" in name:
        return "that one converts to or from bf16: one of the rounding points, or a load"
    if name == "cvt.rn.satfinite.e4m3x2.f32":
        return None
    if "e5m2" in name:
        return "e5m2 is the other FP8 format; the codes are e4m3"
    return "that is not the instruction in the listing; copy its whole name, without the registers"


fp8_conversion = Exercise(
    name="exercises.fp8_conversion",
    question="Which PTX instruction turns float32 quotients into FP8 codes? Its name as in the listing.",
    judge=_fp8_conversion,
    solution="cvt.rn.satfinite.e4m3x2.f32",
    traps=(
        "cvt.rn.bf16x2.f32",
        "cvt.rn.bf16.f32",
        "cvt.f32.bf16",
        "cvt.rn.satfinite.e5m2x2.f32",
        "cvt.e4m3",
        "st.global.v2.b32",
        "",
        8,
    ),
    hints=(
        "Search the PTX for cvt. There are several kinds: which format do the codes have?",
        "x2 at the end of a format's name says that the instruction converts two values at once.",
    ),
    explanation=(
        "rn: to the nearest, ties to even; satfinite: what is too large becomes the largest finite value; e4m3x2: two "
        "codes at once, packed in 16 bits."
    ),
)
