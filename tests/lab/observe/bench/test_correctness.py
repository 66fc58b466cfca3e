"""Agreement: counted correctly, and wrong results are reported as wrong."""

import pytest
import torch

from fusionlab.observe.bench.correctness import CLOSE_SCALE, agreement
from fusionlib import GroupQuant

QUANT = GroupQuant()


@pytest.fixture
def result():
    codes = torch.randn(64, 256).to(torch.float8_e4m3fn)
    return codes, torch.rand(64, 2) + 0.5


def with_codes(codes, count, value):
    bits = codes.clone().view(torch.uint8).flatten()
    bits[:count] = value
    return bits.view(codes.shape).view(codes.dtype)


def test_equal_is_zero_in_any_strides(result):
    codes, scale = result
    column = scale.t().contiguous().t()
    found = agreement((codes, column), result, QUANT)
    assert (found.codes_differ, found.steps, found.scales_differ, found.scale_error) == (0.0, 0, 0.0, 0.0)
    assert found.compared == 64 * 256 and found.problem(exact=True) is None


def test_one_step_in_few_codes_passes_and_in_many_does_not(result):
    codes, scale = result
    expected = (with_codes(codes, 100, 0x30), scale)
    one = (with_codes(expected[0], 1, 0x31), scale)
    found = agreement(one, expected, QUANT)
    assert found.steps == 1 and found.codes_differ == pytest.approx(1 / (64 * 256))
    assert found.problem(exact=True) is None  # a single code is within the bound's resolution
    many = agreement((with_codes(expected[0], 50, 0x31), scale), expected, QUANT)
    assert "of the codes differ" in many.problem(exact=True)
    assert many.problem(exact=False) is None


def test_two_steps_are_wrong_for_everybody(result):
    codes, scale = result
    expected = (with_codes(codes, 1, 0x30), scale)
    found = agreement((with_codes(codes, 1, 0x32), scale), expected, QUANT)
    assert "2 FP8 steps" in found.problem(exact=False)


def test_scales(result):
    codes, scale = result
    near = agreement((codes, scale * (1 + CLOSE_SCALE / 2)), result, QUANT)
    assert near.scales_differ == 1.0 and near.problem(exact=False) is None
    assert "of the scales differ" in near.problem(exact=True)
    far = agreement((codes, scale * 1.1), result, QUANT)
    assert "a scale is" in far.problem(exact=False)
    lost = agreement((codes, scale * torch.nan), result, QUANT)
    assert "not a number" in lost.problem(exact=False)


def test_another_shape_or_dtype_is_an_error(result):
    codes, scale = result
    with pytest.raises(ValueError, match="codes have shape"):
        agreement((codes[:2], scale), result, QUANT)
    with pytest.raises(ValueError, match="scale have shape"):
        agreement((codes, scale[:, :1]), result, QUANT)
    with pytest.raises(ValueError, match=r"float8_e5m2"):
        agreement((codes.view(torch.float8_e5m2), scale), result, QUANT)
