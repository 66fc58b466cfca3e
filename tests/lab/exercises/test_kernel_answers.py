"""Answers as a reader of notebook 05 gives them: with the requested digits, and mistakes with their own message."""

import pytest

from fusionlab.exercises.instructions import fp8_conversion, per_token_bytes


@pytest.mark.parametrize("answer", [5 + 4 / 4096, 5.0010, 5.0009])
def test_four_digits_are_enough(answer):
    assert per_token_bytes.verdict(answer) is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (5, "not free"),
        (5.03, "one scale per 128"),
        (9.03, "two kernels"),
        (9.001, "two kernels"),
        (5.002, "count again"),
    ],
)
def test_a_wrong_count_is_told_what_it_counted(answer, said):
    assert said in per_token_bytes.verdict(answer)


def test_an_instruction_may_be_copied_with_its_registers():
    assert fp8_conversion.verdict("cvt.rn.satfinite.e4m3x2.f32 %rs1, %r2, %r3;") is None
