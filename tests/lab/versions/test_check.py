"""Every version against the reference: interpreted on every machine, in bf16 on a GPU.

The bounds on a GPU are those of tests/kernels/test_gated_norm.py for the versions that divide correctly. Triton's `/`
may be off by 2 units in the last place: then a quotient near the midpoint of two codes may fall on the other side, so
codes may differ by one step, and no small bound is claimed. Version 4's quotients are known exactly, so the number of
codes that it changes is the counted one, up to the same 1e-5.
"""

import math

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed on this platform")

from fusionlab.versions import VERSIONS
from fusionlab.versions.check import check_all, scales_of_spoilt_groups
from fusionlab.versions.count import moved_codes
from fusionlab.versions.timing import CannotTime, time_all, why_not_here
from fusionlib import GatedNorm, GroupQuant, reference
from tests.support import grouped_gate

QUANT = GroupQuant.vllm()
CODE_BOUND, SCALE_BOUND = 1e-5, 2**-13
ROUNDING_FREE = GatedNorm(128, rounding=())


@pytest.mark.parametrize(
    "norm, heads, strided",
    [(GatedNorm.qwen3_next(), 4, True), (ROUNDING_FREE, 6, False)],
    ids=["Qwen3-Next's gate", "rows that do not fill the last program"],
)
def test_every_version_in_the_interpreter(norm, heads, strided):
    """With rows of 128 elements, no code and no scale is off, except one that may be at a tie."""
    x = torch.randn(5, heads, 128)
    gate = grouped_gate(5, heads // 2, 2, 128, torch.float32) if strided else torch.randn(5, heads, 128)
    found = check_all(x, gate, torch.rand(128) + 0.5, norm, QUANT)
    assert [agreement.version for agreement in found] == list(VERSIONS)
    for agreement in found:
        assert agreement.where == "interpreter"
        assert (agreement.codes, agreement.scales) == (5 * heads * 128, 5 * heads)
        assert agreement.scales_moved == 0
        # Another summation order and version 4's reciprocal change float32's last bits: once in about 10^5 codes.
        assert agreement.moved <= 2 and agreement.steps <= 1


def spoilt_scales(device):
    x, gate = torch.randn(2, 3, 4, 128, device=device).bfloat16()
    scales = scales_of_spoilt_groups(x, gate, torch.ones(128, device=device), GatedNorm.qwen3_next(), GroupQuant.vllm())
    assert list(scales) == list(VERSIONS) and gate.isfinite().all()
    return scales.values()


def test_only_the_library_s_kernel_hands_a_nan_on():
    *others, ours = spoilt_scales("cpu")
    assert all(math.isfinite(of_nan) and of_inf == math.inf for of_nan, of_inf in others)
    assert math.isnan(ours[0]) and ours[1] == math.inf


@pytest.mark.gpu
def test_only_the_library_s_kernel_hands_a_nan_on_on_the_gpu():
    *others, ours = spoilt_scales("cuda")
    assert all(math.isfinite(of_nan) and of_inf == math.inf for of_nan, of_inf in others)
    assert math.isnan(ours[0]) and ours[1] == math.inf


def test_one_head_cannot_be_spoilt_in_two_ways():
    x = torch.randn(5, 1, 128)
    with pytest.raises(ValueError, match="one for the infinity"):
        scales_of_spoilt_groups(x, x, torch.ones(128), GatedNorm.qwen3_next(), GroupQuant.vllm())


def test_specs_beyond_the_case_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match="group_size=256"):
        check_all(*torch.randn(2, 2, 4, 128), torch.ones(128), GatedNorm.vllm(), GroupQuant(256))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 3, 64, 2048])
@pytest.mark.parametrize("strided", [False, True])
def test_every_version_on_the_gpu(tokens, strided):
    norm = GatedNorm.qwen3_next()
    x, gate = torch.randn(2, tokens, 32, 128, dtype=torch.bfloat16, device="cuda")
    if strided:
        gate = grouped_gate(tokens, 16, 2, 128, torch.bfloat16, "cuda")
    weight = torch.rand(128, device="cuda").bfloat16() + 0.5
    counted = moved_codes(reference.rms_norm_gated(x, gate, weight, norm), QUANT)["reciprocal"].share
    for agreement in check_all(x, gate, weight, norm, QUANT):
        assert agreement.where == "GPU" and agreement.steps <= 1
        if agreement.version.division == "correct":
            assert agreement.scales_moved <= SCALE_BOUND * agreement.scales
            assert agreement.moved <= CODE_BOUND * agreement.codes
        elif agreement.version.division == "reciprocal":
            assert abs(agreement.moved - counted * agreement.codes) <= 2 * CODE_BOUND * agreement.codes + 1


@pytest.mark.gpu
def test_every_version_is_timed():
    timed = time_all(64, 32, GatedNorm.qwen3_next(), QUANT, strided_gate=True)
    assert [one.version for one in timed] == [*VERSIONS, None, None]
    assert all(0 < one.low_us <= one.median_us <= one.high_us for one in timed)
    assert timed[0].bytes > timed[5].bytes


def test_without_a_gpu_nothing_is_timed_and_the_reason_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no GPU is visible" in why_not_here()
    with pytest.raises(CannotTime, match="cannot be timed here: no GPU is visible"):
        time_all(1, 32, GatedNorm.vllm(), QUANT)


class CountingTimer:
    """A timer that runs nothing: version n takes n microseconds, and one more in every other round."""

    l2_bytes = 40 * 2**20

    def __init__(self):
        self.prepared, self.taken = [], []

    def prepare(self, calls):
        self.prepared.append(len(calls))
        return len(self.prepared)

    def sample(self, handle):
        self.taken.append(handle)
        return handle + self.taken.count(handle) % 2

    def release(self):
        pass


def test_versions_take_turns_and_the_median_is_told():
    timer = CountingTimer()
    timed = time_all(64, 32, GatedNorm.qwen3_next(), QUANT, strided_gate=True, timer=timer, device="cpu")
    sets = timed[0].sets
    assert timer.prepared == [sets] * 9
    assert (sets - 1) * timed[6].bytes >= 2 * timer.l2_bytes  # the others push a set out of the cache
    assert [one.version for one in timed] == [*VERSIONS, None, None]
    assert [one.name for one in timed][-3:-1] == ["7 the library's kernel", "the light"]
    assert timed[-1].bytes == timed[-2].bytes == timed[-3].bytes
    assert [one.median_us for one in timed] == [n + 1 for n in range(1, 10)]  # eight rounds of fifteen
    assert [one.low_us for one in timed] == list(range(1, 10))
    assert sorted(timer.taken[:9]) == sorted(timer.taken[9:18]) == list(range(1, 10))
    assert timer.taken[:9] != timer.taken[9:18]  # in another order
    assert timed[0].gb_s == pytest.approx(timed[0].bytes / 2e3)
