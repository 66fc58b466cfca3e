"""What is known about the versions before any of them runs: bytes, sources, limits."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed on this platform")

from fusionlab.observe.byte_ledger import Bytes, path_bytes
from fusionlab.versions import VERSIONS, difference
from fusionlab.versions.case import require, runs_of_heads, unsupported
from fusionlib import GatedNorm, GroupQuant
from tests.support import grouped_gate

NORM, QUANT = GatedNorm.qwen3_next(), GroupQuant.vllm()
NAMES = [version.name for version in VERSIONS]


def total(version, **changes):
    return sum(version.parts(8192, 4096, NORM, QUANT, **changes).values(), Bytes())


def test_they_are_numbered_in_order_and_named_after_their_files():
    assert [version.number for version in VERSIONS] == [1, 2, 3, 4, 5, 6, 7]
    assert all(version.name.startswith(f"v{version.number}_") for version in VERSIONS)
    assert all(f"Version {version.number}:" in version.module.__doc__ for version in VERSIONS)
    assert all(f"{total(version).total / 8192 / 4096:.2f}" in version.module.__doc__ for version in VERSIONS)


@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("version", VERSIONS, ids=NAMES)
def test_the_parts_add_up_to_the_ledger(version, x_dtype):
    path = path_bytes(8192, 4096, NORM, QUANT, x_dtype=x_dtype)
    assert total(version, x_dtype=x_dtype) == (path.unfused if version.number == 1 else path.fused)


@pytest.mark.parametrize("version", VERSIONS, ids=NAMES)
def test_a_strided_gate_costs_a_copy_where_it_cannot_be_followed(version):
    """A copy reads and writes the gate: 2 + 2 bytes per element in bf16."""
    extra = total(version, strided_gate=True).total - total(version).total
    assert extra == (0 if version.number >= 6 else 4 * 8192 * 4096)


def test_the_napkin_is_right():
    """The numbers in the docstrings, from the ledger: 9.03 and 5.03 bytes per element."""
    each = [round(total(version).total / (8192 * 4096), 2) for version in VERSIONS]
    assert each == [9.03] + [5.03] * 6
    assert "9.03" in VERSIONS[0].module.__doc__ and "5.03" in VERSIONS[1].module.__doc__


def test_a_difference_shows_what_changed_and_nothing_else():
    changed = difference(VERSIONS[3], VERSIONS[4])
    added = [line for line in changed.splitlines() if line.startswith("+ ")]
    removed = [line for line in changed.splitlines() if line.startswith("- ")]
    assert len(added) == 3 and sum("tl.fma(" in line for line in added) == 2
    assert [line.strip("- ") for line in removed] == ["quotient = y * reciprocal"]
    assert difference(VERSIONS[2], VERSIONS[2]) == ""


@pytest.mark.parametrize("version", VERSIONS, ids=NAMES)
def test_a_source_is_its_kernels_and_no_more(version):
    source = version.kernel_source()
    assert source.count("@triton.jit") == version.kernels
    assert "Launch(" not in source


REFUSED = {
    "another group": (NORM, GroupQuant(256), "norm_size=128 and group_size=256"),
    "no power of two": (GatedNorm(96), GroupQuant(96), "power of two"),
    "gate first": (GatedNorm.mamba2(128), QUANT, "norm_before_gate=False"),
    "sigmoid": (GatedNorm.kimi_linear(), QUANT, "activation='sigmoid'"),
    "offset": (GatedNorm(128, weight_offset=1), QUANT, "weight_offset=1"),
    "activation rounded": (GatedNorm(128, rounding={"activation"}), QUANT, "rounding of the activation"),
    "e5m2": (NORM, GroupQuant(dtype=torch.float8_e5m2), "dtype=torch.float8_e5m2"),
    "no floor": (NORM, GroupQuant(floor=None), "floor=None"),
    "floor on scale": (NORM, GroupQuant.vllm_native(), "on scale"),
    "reciprocal": (NORM, GroupQuant.aiter(), "division='reciprocal'"),
    "ue8m0": (NORM, GroupQuant(scale_format="ue8m0"), "scale_format='ue8m0'"),
    "columns": (NORM, QUANT.with_layout("column_major"), "scale_layout='column_major'"),
    "scale rounded": (NORM, GroupQuant(round_scale=True), "round_scale=True"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_beyond_the_case_is_refused_by_name(case):
    norm, quant, words = REFUSED[case]
    with pytest.raises(ValueError) as refused:
        require(norm, quant, torch.ones(norm.norm_size))
    assert words in str(refused.value) and "version 7" in str(refused.value)


def test_the_case_itself_is_taken_and_a_weight_a_token_is_not():
    assert unsupported(NORM, QUANT, 128) is None
    assert unsupported(GatedNorm.vllm(64), GroupQuant(64), 64) is None
    assert "weight has 4096 elements" in unsupported(NORM, QUANT, 4096)


def test_a_gate_is_runs_of_heads_or_refused():
    layout = runs_of_heads(grouped_gate(3, 16, 2, 128, torch.bfloat16), 128)
    assert (layout.token_stride, layout.inner, layout.inner_stride) == (12288, 256, 768)
    two_levels = torch.randn(6000).as_strided((3, 4, 2, 128), (2000, 480, 160, 1))
    with pytest.raises(ValueError, match=r"strides \(2000, 480, 160, 1\)"):
        runs_of_heads(two_levels, 128)
    with pytest.raises(ValueError, match="whole heads of 128"):
        runs_of_heads(torch.randn(3, 8, 100)[..., :64], 128)


@pytest.mark.parametrize("version", VERSIONS, ids=NAMES)
def test_on_a_cpu_a_run_says_where_to_go(version):
    x = torch.randn(2, 4, 128)
    with pytest.raises(ValueError, match=r"x is on cpu.*check_all"):
        version.run(x, x, torch.ones(128), NORM, QUANT)
