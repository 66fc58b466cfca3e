"""Each producer: its tensors as a model has them, its bytes, and that reference and op are each other's."""

import pytest
import torch

from fusionlab.observe.bench.cases import SHAPES, Case
from fusionlab.observe.bench.measured_producers import Producer, bits
from fusionlab.observe.bench.variants import VARIANTS
from fusionlab.observe.byte_ledger import path_bytes
from fusionlib.fusions import BUILT_IN

OTHERS = [name for name, shape in SHAPES.items() if shape.producer.name != "gated_norm"]


def only(name: str, tokens: int = 3) -> Case:
    return Case(SHAPES[name], tokens, SHAPES[name].producer.layouts[0])


def test_every_producer_is_one_that_a_fusion_takes():
    names = {shape.producer.name for shape in SHAPES.values()}
    assert names == {"gated_norm", "rms_norm", "act_and_mul"} <= {fusion.name for fusion in BUILT_IN}
    assert all(isinstance(shape.producer, Producer) for shape in SHAPES.values())


def test_the_gated_norms_bytes_are_the_ledgers():
    for shape in SHAPES.values():
        if shape.producer.name == "gated_norm":
            case = Case(shape, 64)
            moved = path_bytes(64, shape.hidden, shape.producer.spec, case.quant, weight_elements=shape.producer.vector)
            assert case.bytes() == moved.fused


@pytest.mark.parametrize(
    ("name", "per_token", "once"),
    [
        ("norm_2048", 2048 * (2 + 1) + 4 * 16, 2 * 2048),  # x; codes, scales; the weight
        ("add_norm_7168", 7168 * (2 + 2 + 1 + 2) + 4 * 56, 2 * 7168),  # and residual and sum
        ("silu_5632", 5632 * (2 + 2 + 1) + 4 * 44, 0),
        ("gate_16x256", 4096 * (2 + 2 + 1) + 4 * 32, 0),
    ],
)
def test_bytes(name, per_token, once):
    assert only(name, 64).bytes().total == 64 * per_token + once


def test_an_mlps_inputs_are_halves_of_one_projection():
    x, gate = only("silu_512").inputs("cpu", 0)
    assert x.shape == gate.shape == (3, 512) and x.stride() == gate.stride() == (1024, 1)
    assert x.data_ptr() - gate.data_ptr() == 512 * 2


def test_an_attentions_gate_is_the_second_half_of_each_head():
    x, gate = only("gate_32x256").inputs("cpu", 0)
    assert x.shape == gate.shape == (3, 32, 256) and x.is_contiguous()
    assert gate.stride() == (32 * 512, 512, 1) and gate.storage_offset() == 256


@pytest.mark.parametrize("name", OTHERS)
def test_reference_and_op_return_the_same_in_the_same_order(name):
    case = only(name)
    tensors = case.inputs("cpu", 0)
    expected, got = VARIANTS["eager"].make(case)(*tensors), VARIANTS["fused"].make(case)(*tensors)
    assert len(got) == len(expected) == 2 + case.producer.further
    for ours, theirs in zip(got, expected, strict=True):
        assert (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)
        assert torch.equal(ours.float(), theirs.float())
    empty = case.producer.empty_outputs(tensors, case.quant)
    assert [(t.shape, t.stride(), t.dtype) for t in empty] == [(t.shape, t.stride(), t.dtype) for t in got]


def test_with_a_residual_the_sum_is_kept_and_normed():
    case = only("add_norm_2048")
    x, residual, weight = case.inputs("cpu", 0)
    _, total = case.producer.reference(x, residual, weight)
    assert torch.equal(total, x + residual)
    assert weight.float().mean().abs() < 0.05  # 1 is added to it


def test_only_what_is_rounded_where_it_is_written_is_exact_when_compiled():
    two = VARIANTS["two_kernel"]
    exact = {name for name in SHAPES if two.exact_in(only(name))}
    assert "norm_2048" in exact and not exact & {"add_norm_2048", "silu_512", "mamba2"}


def test_bits_are_rows():
    gate = only("gate_16x256").inputs("cpu", 0)[1]
    assert bits(gate).shape == (3, 4096) and torch.equal(bits(gate)[1, 256:260], gate[1, 1, :4].view(torch.int16))
