"""Float32 arithmetic spelled in another order: how many codes it moves, as docs/scoreboard.md states it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fusionlab.codes import code_steps
from fusionlab.scoreboard import RESPELLED, respelled
from tests.spellings import NormSpelling, QuantSpelling, inputs, run_rewritten, site

LIMIT = 10  # of 1,048,576 codes: 1e-5, the bound on what another order of summation moves

SPELLINGS = {
    "x * (1 / sqrt(v))": NormSpelling(root="1/sqrt"),
    "x / sqrt(v)": NormSpelling(root="x/sqrt"),
    "v ** -0.5": NormSpelling(root="pow(-0.5)"),
    "sum(x * x) / n": NormSpelling(mean="sum/n"),
    "z * sigmoid(z)": NormSpelling(activation="z*sigmoid(z)"),
    "z / (1 + exp(-z))": NormSpelling(activation="z/(1+exp(-z))"),
    "z * (1 / (1 + exp(-z)))": NormSpelling(activation="z*(1/(1+exp(-z)))"),
    "1 / (1 + exp(-z)) as the sigmoid": NormSpelling(activation="1/(1+exp(-z))"),
    "x * (weight * act(gate))": NormSpelling(gate_inside=True),
}


@pytest.mark.parametrize("name", RESPELLED)
def test_codes_that_a_respelling_moves(name):
    fn, tensors = site(SPELLINGS[name], QuantSpelling()), inputs(tokens=2048)
    (codes, scale), report, _ = run_rewritten(fn, *tensors)
    assert len(report.fused) == 1, str(report)
    eager_codes, eager_scale = fn(*tensors)
    steps = code_steps(codes, eager_codes)
    assert steps.numel() == 1_048_576 and steps.max() <= 1
    assert int(steps.sum()) <= LIMIT and abs(int(steps.sum()) - RESPELLED[name][0]) <= LIMIT
    assert (scale != eager_scale).sum() <= 2


@pytest.mark.parametrize("name", RESPELLED)
def test_scales_of_a_value_left_in_float32_show_its_last_bit(name):
    spelling = replace(SPELLINGS[name], round_output=False)
    fn, tensors = site(spelling, QuantSpelling()), inputs(tokens=2048)
    (codes, scale), report, _ = run_rewritten(fn, *tensors)
    assert len(report.fused) == 1, str(report)
    eager_codes, eager_scale = fn(*tensors)
    torch.testing.assert_close(scale, eager_scale, rtol=4e-7, atol=0)
    assert code_steps(codes, eager_codes).max() <= 1
    differ, of = int((scale != eager_scale).sum()), scale.numel()
    assert of == 8192 and (differ > 0) == (RESPELLED[name][1] > 0)


def test_the_documentation_has_the_counts():
    page = Path(__file__).resolve().parents[2] / "docs" / "scoreboard.md"
    assert respelled() in page.read_text(encoding="utf-8")
    assert SPELLINGS.keys() == RESPELLED.keys() and max(codes for codes, _ in RESPELLED.values()) <= LIMIT
