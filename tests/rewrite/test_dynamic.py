"""Dynamic sizes and floats: what fuses, what is refused, and that the way out which the reason names works."""

import pytest
import torch
import torch.nn.functional as F

from fusionlib import explain
from tests.spellings import NormSpelling, QuantSpelling, agree, inputs, run_rewritten, site

PATH = site(NormSpelling(), QuantSpelling())


class Layer(torch.nn.Module):
    """A norm whose epsilon is an attribute, behind a projection: its parameters fix the row under dynamic=True."""

    def __init__(self):
        super().__init__()
        self.eps = 1e-6
        self.weight = torch.nn.Parameter(torch.rand(128).bfloat16())
        self.project = torch.nn.Linear(16, 1024, dtype=torch.bfloat16)
        self.requires_grad_(False)

    def forward(self, hidden):
        x, gate = self.project(hidden).view(-1, 8, 128).split(4, 1)
        value = x.float()
        value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight.float()
        return QuantSpelling()((value * F.silu(gate.float())).to(x.dtype).view(-1, 512))


def hidden():
    return torch.randn(6, 16).bfloat16()


def test_a_float_attribute_is_an_input_under_dynamic_true():
    """A float64 scalar without a guard on its value: another epsilon would run the same code, so it is no constant."""
    (refused,) = explain(Layer(), hidden(), dynamic=True, devices="cpu")
    assert refused.code == "scalar_not_literal"
    assert "mark_dynamic" in refused.fix and "specialize_float" in refused.fix


def test_marking_the_tokens_alone_keeps_it_a_constant():
    layer, tensors = Layer(), (hidden(),)
    got, report, graphs = run_rewritten(layer, *tensors, dynamic=True)
    assert len(report.fused) == 1 and "eps 1e-06" in report.fused[0].what, str(report)
    assert any(isinstance(size, torch.SymInt) for node in graphs[0].nodes for size in shape_of(node))
    agree(got, layer(*tensors), 128)


def shape_of(node):
    value = node.meta.get("val")
    return value.shape if isinstance(value, torch.Tensor) else ()


def test_specialising_floats_makes_it_a_constant_under_dynamic_true():
    with torch._dynamo.config.patch(specialize_float=True):
        report = explain(Layer(), hidden(), dynamic=True, devices="cpu")
    assert len(report.fused) == 1, str(report)


def half_rows():
    x, _, w = inputs()
    gate = torch.randn(12, 2, 128).bfloat16()
    for tensor in (x, gate):
        torch._dynamo.mark_dynamic(tensor, 0)
    return x, gate, w


def test_sizes_that_are_told_to_be_equal_are():
    def fn(x, gate, w):
        torch._check(gate.numel() == x.numel())
        return PATH(x, gate.view(-1, 4, 128), w)

    tensors = half_rows()
    got, report, _ = run_rewritten(fn, *tensors)
    assert len(report.fused) == 1, str(report)
    agree(got, fn(*tensors), 128)


@pytest.mark.parametrize("rows_of_both", [12, 20])
def test_a_size_that_only_a_view_infers_is_inferred_again(rows_of_both):
    """[rows] viewed as [sequences, -1]: no node of the graph computes the second size."""

    def fn(both, w, sequences):
        count = sequences.shape[0]
        x, gate = (t.view(count, -1, 4, 128) for t in (both[0], both[1]))
        value = NormSpelling()(x, gate, w).float()
        scale = value.abs().amax(-1, keepdim=True) / 448.0
        return (value / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale, sequences + 1

    both, sequences = torch.randn(2, rows_of_both, 4, 128).bfloat16(), torch.zeros(4)
    torch._dynamo.mark_dynamic(both, 1)
    torch._dynamo.mark_dynamic(sequences, 0)
    w = torch.rand(128).bfloat16()
    got, report, _ = run_rewritten(fn, both, w, sequences)
    assert len(report.fused) == 1, str(report)
    agree(got, fn(both, w, sequences), 128)
