"""The list of what is measured, its inputs and its bytes."""

import pytest
import torch

from fusionlab.observe.bench.cases import BASE, SHAPES, TOKENS, Case, cases


def test_the_issues_list():
    found = list(cases())
    assert TOKENS == (1, 4, 8, 16, 64, 256, 1024, 4096, 8192, 32768)
    gated = [name for name, shape in SHAPES.items() if shape.producer.name == "gated_norm"]
    assert gated == ["32x128", "16x128", "48x128", "64x128", "mamba2", "per_token"]
    base = [case for case in found if case.shape.name == BASE]
    # Alone, after a producer and in the chain; the strided gate alone.
    assert len(base) == 4 * len(TOKENS) and len(found) == len(base) + (len(SHAPES) - 1) * len(TOKENS)
    assert len({case.name for case in found}) == len(found)
    assert {case.name for case in cases([64], ["32x128", "mamba2"])} == {
        "32x128/64/contiguous/alone",
        "32x128/64/contiguous/producer",
        "32x128/64/contiguous/chain",
        "32x128/64/strided/alone",
        "mamba2/64/contiguous/alone",
    }


def test_bytes_are_the_ledgers():
    """x and gate 2 bytes each, a code 1, a scale 4 per 128: 5.03125 per element, and the weight once."""
    assert Case(SHAPES[BASE], 64).bytes().total == 64 * 4096 * 5.03125 + 128 * 2
    assert Case(SHAPES["per_token"], 64).bytes().total == 64 * (4096 * 5 + 4) + 128 * 2
    assert Case(SHAPES["mamba2"], 64).bytes().total == 64 * 8192 * 5.03125 + 8192 * 2


@pytest.mark.parametrize(("name", "units"), [("32x128", 96), ("48x128", 144), ("mamba2", 24), ("per_token", 3)])
def test_units_are_kernel_rows(name, units):
    assert Case(SHAPES[name], 3).units == units


def test_before_the_gemm_scales_are_column_major():
    assert Case(SHAPES[BASE], 4, context="chain").quant.scale_layout == "column_major"
    assert {Case(SHAPES[BASE], 4, context=c).quant.scale_layout for c in ("alone", "producer")} == {"row_major"}


@pytest.mark.parametrize("name", [name for name, shape in SHAPES.items() if shape.producer.name == "gated_norm"])
@pytest.mark.parametrize("gate", ["contiguous", "strided"])
def test_inputs_fit_the_op(name, gate):
    case = Case(SHAPES[name], 3, gate)
    inputs = case.inputs("cpu", 0)
    x, other, weight = inputs
    assert x.numel() == other.numel() == 3 * case.shape.hidden
    assert other.is_contiguous() == (gate == "contiguous")
    assert weight.numel() == (8192 if name == "mamba2" else 128)
    assert not torch.equal(x, case.inputs("cpu", 1)[0])


def test_a_layout_chooses_among_those_that_a_shape_has():
    names = ["mamba2", "norm_2048", "silu_512"]
    assert [case.name for case in cases([4], names, ["strided"])] == [
        "norm_2048/4/contiguous/alone",
        "silu_512/4/strided/alone",
    ]
    assert [case.gate for case in cases([4], names)] == ["contiguous", "contiguous", "strided"]
    assert not list(cases([4], names, contexts=["chain"]))
