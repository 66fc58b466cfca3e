"""Steps between codes, against the order of the values themselves."""

import pytest
import torch

from fusionlab.codes import code_steps
from fusionlib.spec import FP8_MAXIMA


def every_pair(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    every = torch.arange(256, dtype=torch.uint8).view(dtype)
    return every.repeat(256), every.repeat_interleave(256)


@pytest.mark.parametrize("dtype", FP8_MAXIMA, ids=str)
def test_steps_are_the_distance_in_the_sorted_list_of_values(dtype):
    a, b = every_pair(dtype)
    nan = a.float().isnan() | b.float().isnan()
    values = a.float()[~a.float().isnan()].unique()
    assert (values == 0).sum() == 1  # both zeros are one value
    places = [torch.searchsorted(values, codes.float()[~nan]) for codes in (a, b)]
    assert torch.equal(code_steps(a, b)[~nan].long(), (places[0] - places[1]).abs())


@pytest.mark.parametrize("dtype", FP8_MAXIMA, ids=str)
def test_two_nan_are_no_step_apart(dtype):
    a, b = every_pair(dtype)
    both = a.float().isnan() & b.float().isnan()
    assert both.any() and (code_steps(a, b)[both] == 0).all()


@pytest.mark.parametrize("dtype", FP8_MAXIMA, ids=str)
def test_nan_is_further_from_every_number_than_any_number(dtype):
    """Also where NaN has the bits of a negative zero, as in the fnuz formats."""
    a, b = every_pair(dtype)
    nan = torch.stack([a.float().isnan(), b.float().isnan()])
    steps = code_steps(a, b)
    one = nan[0] != nan[1]
    assert one.any() and steps[one].min() > steps[~nan.any(0)].max()


def test_steps_are_counted_across_zero_and_nan_is_nan():
    codes = torch.tensor([0.0, -0.0, 2**-9, -(2**-9), 448.0, torch.nan]).to(torch.float8_e4m3fn)
    assert code_steps(codes, codes.clone()).tolist() == [0] * 6
    assert code_steps(codes[2:3], codes[3:4]).tolist() == [2]
    assert code_steps(codes[:1], codes[1:2]).tolist() == [0]
