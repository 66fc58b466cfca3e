"""Dynamic sizes and floats: what fuses, what is refused, and that the way out which the reason names works."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch._inductor.utils import fresh_cache

from fusionlib import FusionPass, explain
from fusionlib.explanation import apart_from_caches, boxed, inductor_until, to_the_pass
from fusionlib.testing.roundings import roundings_kept
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


def told(fusion):
    """The epsilon of every graph's site, also of a model that is compiled again."""
    sites = [site for graph in fusion.report().compiles for site in graph.sites]
    return [re.search(r"eps [\d.e-]+", site.what)[0] for site in sites]


def test_a_float_attribute_is_a_constant_with_a_guard_under_dynamic_true():
    """Dynamo makes it an input without a guard on its value; another epsilon must not run the same code."""
    layer, fusion = Layer(), FusionPass("cpu")

    def inner_compile(module, example_inputs, **_):
        to_the_pass(module, example_inputs, fusion, is_inference=True)
        return boxed(module)

    def check(eps, tokens, compiles):
        layer.eps = eps
        given = torch.randn(tokens, 16).bfloat16()
        agree(compiled(given), layer(given), 128)
        assert told(fusion) == ["eps 1e-06", "eps 0.5"][:compiles]

    with apart_from_caches(), roundings_kept():
        compiled = torch.compile(layer, backend=inductor_until(inner_compile), dynamic=True)
        check(1e-6, 6, 1)
        check(1e-6, 9, 1)
        check(0.5, 9, 2)
        check(1e-6, 7, 2)


def test_a_float_that_keeps_changing_stays_an_input():
    layer, fusion = Layer(), FusionPass("cpu")

    def inner_compile(module, example_inputs, **_):
        to_the_pass(module, example_inputs, fusion, is_inference=True)
        return boxed(module)

    with apart_from_caches():
        compiled = torch.compile(layer, backend=inductor_until(inner_compile), dynamic=True)
        for step in range(10):
            layer.eps = 1e-6 * (step + 1)
            compiled(hidden())
    *fused, refused = [site for graph in fusion.report().compiles for site in graph.sites]
    assert len(fused) == 4 and all(site.fused for site in fused)
    assert refused.code == "scalar_not_literal"


def test_a_float_argument_is_no_constant():
    layer = Layer()

    def fn(hidden, eps):
        layer.eps = eps
        return layer(hidden)

    (refused,) = explain(fn, hidden(), 1e-6, dynamic=True, devices="cpu")
    assert refused.code == "scalar_not_literal"
    assert "mark_dynamic" in refused.fix and "specialize_float" in refused.fix


def test_a_warm_cache_knows_the_float_and_guards_it():
    """The pass does not run where a cache answers: key and guard must come from the key's making."""
    layer, given = Layer(), hidden()

    def run(eps):
        torch._dynamo.reset()
        layer.eps = 1e-6
        fusion = FusionPass("cpu")
        compiled = torch.compile(layer, dynamic=True, options={"post_grad_custom_pre_pass": fusion})
        compiled(given)
        first = fusion.report().compiles[0].cached
        layer.eps = eps
        agree(compiled(given), layer(given), 128)
        return first, told(fusion)

    with fresh_cache(), torch._inductor.config.patch(emulate_precision_casts=True):
        assert run(0.5) == (False, ["eps 1e-06", "eps 0.5"])
        assert run(0.25) == (True, ["eps 1e-06", "eps 0.25"])


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
