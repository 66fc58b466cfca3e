"""Quantisations by ops that nobody registered are seen; what only moves, multiplies or widens FP8 is none."""

import pytest
import torch
import triton
from torch import fx
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

from fusionlib import GroupQuant, explain, reference
from fusionlib.fusions import BUILT_IN
from fusionlib.match import anchors, match_graph
from fusionlib.match.opaque import readers_kept
from fusionlib.match.unknown import unknown_quant
from fusionlib.rewrite.report import Site
from tests.spellings import NormSpelling, QuantSpelling, inputs, run_rewritten, site

FP8 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def other():
    """The ops of another project, of which no reader knows."""
    with readers_kept(), torch.library._scoped_library("fusionlib_unknown", "DEF") as lib:

        def define(schema, run, fake=None):
            lib.define(schema)
            name = schema.partition("(")[0]
            lib.impl(name, run, "CompositeExplicitAutograd")
            torch.library.register_fake(f"fusionlib_unknown::{name}", fake or run, lib=lib)

        define("quant(Tensor y, int group) -> (Tensor, Tensor)", lambda y, group: quantised(y, group))
        define("codes(Tensor y, Tensor scale) -> Tensor", lambda y, scale: (y.float() / scale).to(FP8))
        define("quant_(Tensor y, Tensor(a!) codes, Tensor(b!) scale) -> ()", write, lambda *_: None)
        define("silu_quant_(Tensor(a!) codes, Tensor wide, Tensor scale) -> ()", write_half, lambda *_: None)
        define("widen(Tensor codes, Tensor scale) -> Tensor", lambda codes, scale: codes.float() * scale)
        define("rescale(Tensor codes, Tensor scale) -> Tensor", lambda codes, scale: codes.clone())
        define("linear(Tensor y, Tensor weight) -> Tensor", lambda y, weight: (y.float() @ weight.float().t()).to(FP8))
        define("store(Tensor key, Tensor(a!) cache, Tensor slots, Tensor scale) -> ()", store, lambda *_: None)
        define("exponents(Tensor y) -> Tensor", lambda y: y.float().abs().to(torch.float8_e8m0fnu))
        yield torch.ops.fusionlib_unknown


def quantised(y, group):
    return reference.group_quant(y, GroupQuant(group))


def write(y, codes, scale):
    values = quantised(y, 128)
    codes.copy_(values[0])
    scale.copy_(values[1])


def write_half(codes, wide, scale):
    half = wide.shape[-1] // 2
    codes.copy_((torch.nn.functional.silu(wide[:, :half].float()) * wide[:, half:] / scale).to(FP8))


def store(key, cache, slots, scale):
    cache[slots] = (key.float() / scale).to(FP8)


def value(x, z, w):
    return NormSpelling()(x, z, w).flatten(1)


def refused(fn, *args) -> tuple:
    (miss,) = explain(fn, *args, devices="cpu")
    assert miss.code == "unknown_quant_op", str(miss)
    return miss


def test_an_op_that_returns_codes(other):
    miss = refused(lambda x, z, w: other.quant(value(x, z, w), 128), *inputs())
    assert "fusionlib_unknown::quant" in miss.found and "bfloat16 [6, 512]" in miss.found
    assert "register_quant_op" in miss.fix and miss.line.rpartition(":")[0].endswith("test_unknown.py")


def test_an_op_that_gets_the_scale(other):
    refused(lambda x, z, w: other.codes(value(x, z, w), x.new_ones(6, 1)), *inputs())


def test_an_op_that_writes_into_buffers(other):
    def fn(x, z, w):
        y = value(x, z, w)
        codes, scale = torch.empty_like(y, dtype=FP8), y.new_empty(6, 4, dtype=torch.float32)
        other.quant_(y, codes, scale)
        return codes, scale

    assert "fusionlib_unknown::quant_" in refused(fn, *inputs()).found


def test_an_op_that_writes_into_buffers_of_the_caller(other):
    """Codes as large as the value are no cache, although the graph got them."""

    def fn(x, z, w, codes, scale):
        other.quant_(value(x, z, w), codes, scale)
        return scale + 0

    refused(fn, *inputs(), torch.empty(6, 512, dtype=FP8), torch.empty(6, 4))


def test_an_op_that_activates_too(other):
    def fn(x, z, w):
        y = value(x, z, w)
        codes = torch.empty(6, 256, dtype=FP8)
        other.silu_quant_(codes, y, y.new_ones(1, dtype=torch.float32))
        return codes

    refused(fn, *inputs())


def test_a_copy_into_fp8():
    """Where it reaches the pass as a copy and not as a cast."""
    graph = fx.Graph()
    with torch._subclasses.FakeTensorMode():
        source, target = torch.empty(4, 128), torch.empty(4, 128, dtype=FP8)
    x, q = (graph.placeholder(name) for name in "xq")
    x.meta["val"], q.meta["val"] = source, target
    copy = graph.call_function(torch.ops.aten.copy.default, (q, x))
    copy.meta["val"] = target
    graph.output((copy,))
    assert [site.why for site in match_graph(graph, BUILT_IN)] == ["unknown_quant_op"]


@triton.jit
def some_kernel(x, q, s, n):
    """Stands for any."""


def kernel_graph(given: dict[str, torch.dtype], written: list[str]) -> fx.Graph:
    """A graph that calls a Triton kernel with tensors [4, 128] of these dtypes and gives back what it wrote."""
    graph = fx.Graph()
    nodes = {name: graph.placeholder(name) for name in given}
    with torch._subclasses.FakeTensorMode():
        for name, node in nodes.items():
            node.meta["val"] = torch.empty(4, 128, dtype=given[name])
    kernel, constants = kernel_side_table.add_kernel(some_kernel), kernel_side_table.add_constant_args({})
    how = {"kernel_idx": kernel, "constant_args_idx": constants, "grid": [(1, 1, 1)], "tma_descriptor_metadata": {}}
    wrapper = torch.ops.higher_order.triton_kernel_wrapper_functional
    inner = {**nodes, "n": 512}
    fresh = {name: graph.call_function(torch.ops.aten.clone.default, (nodes[name],)) for name in written}
    for name, node in fresh.items():
        node.meta["val"] = nodes[name].meta["val"]
    call = graph.call_function(wrapper, (), {**how, "kwargs": inner | fresh, "tensors_to_clone": written})
    call.meta["val"] = {name: nodes[name].meta["val"] for name in written}
    graph.output((call,))
    return graph


def test_a_triton_kernel():
    kinds = {"x": torch.bfloat16, "q": FP8, "s": torch.float32}
    graph = kernel_graph(kinds, ["q", "s"])
    (site,) = match_graph(graph, BUILT_IN)
    assert site.why == "unknown_quant_op" and site.producer.name == "x"
    reason = unknown_quant(site.anchor)
    assert "the Triton kernel tests.match.test_unknown.some_kernel" in reason.found and "%x" in reason.found
    # One that multiplies FP8 reads it; one that widens it writes none.
    assert not list(anchors(kernel_graph({"a": FP8, "s": torch.float32, "q": FP8}, ["q"])))
    assert not list(anchors(kernel_graph({"q": FP8, "x": torch.bfloat16}, ["x"])))


def test_a_product_is_named_below_its_wrapper_and_makes_no_fp8():
    (site,) = match_graph(kernel_graph({"x": torch.bfloat16, "q": FP8, "s": torch.bfloat16}, ["s"]), BUILT_IN)
    assert site.inside and "the Triton kernel tests.match.test_unknown.some_kernel takes" in str(
        Site.of_unclaimed(site)
    )
    kinds = {"x": torch.bfloat16, "q": FP8, "r": FP8}
    assert not list(anchors(kernel_graph(kinds, ["r"])))


def scaled_mm(other, x, codes, cache):
    return torch._scaled_mm(codes, codes.t(), torch.ones(()), torch.ones(()), out_dtype=torch.bfloat16)


def moved(other, x, codes, cache):
    there = codes.view(-1, 128).t().contiguous().clone()
    return torch.cat([there, there], 1), there.view(torch.uint8), codes.to(torch.float8_e5m2)


def allocated(other, x, codes, cache):
    return torch.zeros_like(x, dtype=FP8), x.new_empty(4, 4, dtype=FP8), torch.full_like(x, 1.0, dtype=FP8)


def put_into_a_cache(other, x, codes, cache):
    cache[torch.tensor([3])] = codes[:1]
    return cache.float()


NONE = {
    "scaled_mm": scaled_mm,
    "moved, cast to another FP8, seen as bytes": moved,
    "allocated": allocated,
    "indexed into a cache": put_into_a_cache,
    "widened by an op": lambda other, x, codes, cache: other.widen(codes, x.float()),
    "scaled anew by an op": lambda other, x, codes, cache: other.rescale(codes, x.float()),
    "an FP8 linear layer": lambda other, x, codes, cache: other.linear(x, codes),
    "stored in a cache by an op": lambda other, x, codes, cache: other.store(
        x[:1], cache, torch.tensor([3]), x.new_ones(1)
    ),
    "exponents of scales": lambda other, x, codes, cache: other.exponents(x),
}


@pytest.mark.parametrize("what", NONE)
def test_what_is_no_quantisation(other, what):
    x, codes, cache = torch.randn(4, 128), torch.randn(4, 128).to(FP8), torch.zeros(64, 128).to(FP8)
    seen = []
    report = explain(NONE[what], other, x, codes, cache, watch=lambda module, _: seen.append(module), devices="cpu")
    assert len(seen) == 1 and not list(report), str(report)


def test_the_own_fused_op_is_no_site():
    """A graph that was rewritten already, or calls the op by itself."""
    _, report, graphs = run_rewritten(site(NormSpelling(), QuantSpelling()), *inputs())
    assert len(report.fused) == 1 and not list(anchors(graphs[0]))
