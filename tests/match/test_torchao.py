"""torchao's opaque ops: the real ones where torchao is installed, else stand-ins of the same names and schemas."""

import importlib.util
import sys

import pytest
import torch

from tests.spellings import FP8, NormSpelling, agree, inputs, run_rewritten

AFFINE = "quantize_affine_float8_non_decomposed"
HAS_TORCHAO = importlib.util.find_spec("torchao") is not None


def cast_by(tensor, scale, dtype=FP8):
    """What the op computes: the scale is broadcast, or repeated along each dimension that it is shorter in."""
    for dim, (wide, narrow) in enumerate(zip(tensor.shape, scale.shape, strict=False)):
        scale = scale.repeat_interleave(wide // narrow, dim) if narrow not in (1, wide) else scale
    limit = torch.finfo(dtype).max
    return (tensor.float() / scale).clamp(-limit, limit).to(dtype)


@pytest.fixture(scope="module", autouse=True)
def torchao_ops():
    """The op of torchao, or one like it for as long as these tests run."""
    if HAS_TORCHAO:
        importlib.import_module("torchao.quantization.quant_primitives")
        yield
        return
    with torch.library._scoped_library("torchao", "FRAGMENT") as library:
        library.define(f"{AFFINE}(Tensor tensor, Tensor scale, ScalarType float8_dtype=24) -> Tensor")
        library.impl(AFFINE, cast_by, "CompositeExplicitAutograd")
        library.impl(AFFINE, lambda tensor, scale, dtype=FP8: torch.empty_like(tensor, dtype=dtype), "Meta")
        yield


def choose(y, group, floor=None, float32=False):
    """The scale as torchao's `choose_scale_float8` makes it: rounded to y's dtype, no floor unless asked for."""
    if HAS_TORCHAO and not float32:
        return torch.ops.torchao.choose_scale_float8(y, [1, group], hp_value_lb=floor)
    amax = (y.float() if float32 else y).view(y.shape[0], -1, group).abs().amax(-1, keepdim=True)
    if floor is not None:
        amax = torch.clamp(amax, min=floor)
    return (amax / 448.0).reshape(y.shape[0], y.shape[1] // group).to(torch.float32)


def quantised(scale_of):
    def fn(x, z, w):
        y = NormSpelling()(x, z, w).flatten(1)
        scale = scale_of(y)
        return getattr(torch.ops.torchao, AFFINE)(y, scale, FP8), scale

    return fn


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("scale_of", "what"),
    [
        (lambda y: choose(y, 128), "per 128 (no floor, divide, float32 scale rounded"),
        (lambda y: choose(y, 64, float32=True), "per 64 (no floor, divide, float32 scale,"),
        (lambda y: choose(y, 512), "per 512 (no floor, divide, float32 scale rounded"),
        (lambda y: choose(y, 128, floor=1e-4), "per 128 (amax >= 0.000"),
    ],
    ids=["blocks", "blocks of 64 in float32", "rows", "floor"],
)
def test_the_affine_op_is_read_with_its_scale(scale_of, what, dynamic):
    fn, tensors = quantised(scale_of), inputs(tokens=7)
    got, report, graphs = run_rewritten(fn, *tensors, dynamic=dynamic)
    assert len(report.fused) == 1 and what in report.fused[0].what, str(report)
    assert not any("torchao" in str(node.target) or "amax" in str(node.target) for node in graphs[0].nodes)
    want = fn(*tensors)
    agree(got, want, want[0].shape[1] // want[1].shape[1])


def test_column_major_scales_are_written_behind_the_affine_op_too():
    def fn(x, z, w):
        y = NormSpelling()(x, z, w).flatten(1)
        scale = choose(y, 128)
        return getattr(torch.ops.torchao, AFFINE)(y, scale, FP8), scale.t().contiguous().t()

    tensors = inputs(tokens=7)
    got, report, _ = run_rewritten(fn, *tensors)
    assert len(report.fused) == 1 and "column_major" in report.fused[0].what, str(report)
    agree(got, fn(*tensors), 128)


@pytest.mark.parametrize(
    ("scale_of", "code"),
    [
        (lambda y: torch.tensor(0.02).expand(1, 1), "per_tensor_static"),
        (lambda y: y.new_full((7, 4), 0.02, dtype=torch.float32), "per_tensor_static"),
        (lambda y: (y.abs().amax() / 448.0).float().view(1, 1), "per_tensor_dynamic"),
        (lambda y: (y.abs().amax(0, keepdim=True) / 448.0).float(), "group_crosses_tokens"),
        (lambda y: choose(y.neg() + 1.0, 128), "amax_source"),
        (lambda y: (y.view(7, -1, 128).abs().amax(-1) / 240.0).float(), "fp8_max"),
        (lambda y: choose(y, 128) * 2, "scale_arithmetic"),
    ],
    ids=["number", "full", "tensor", "columns", "another value", "maximum", "doubled"],
)
def test_the_affine_op_is_refused_like_the_cast(scale_of, code):
    fn, tensors = quantised(scale_of), inputs(tokens=7)
    got, report, _ = run_rewritten(fn, *tensors)
    assert [site.code for site in report] == [code], str(report)
    assert torch.equal(got[0].float(), fn(*tensors)[0].float())


@pytest.fixture
def product_op():
    """A stand-in for MSLK's op, which is on GPUs only."""
    with torch.library._scoped_library("triton", "FRAGMENT") as library:
        library.define("quantize_fp8_row(Tensor a, Tensor? scale_ub=None) -> (Tensor, Tensor)")

        def by_product(a, scale_ub=None):
            factor = 448.0 / a.float().abs().amax(-1, keepdim=True)
            return (a.float() * factor).to(FP8), (1 / factor).view(-1)

        library.impl("quantize_fp8_row", by_product, "CompositeExplicitAutograd")
        torch.library.register_fake("triton::quantize_fp8_row", by_product, lib=library)
        yield torch.ops.triton.quantize_fp8_row


def test_an_op_that_multiplies_by_the_reciprocal_is_refused(product_op):
    _, report, _ = run_rewritten(lambda x, z, w: product_op(NormSpelling()(x, z, w).flatten(1)), *inputs())
    assert [site.code for site in report] == ["quant_division"], str(report)


def test_torchao_is_not_imported_by_the_library():
    assert HAS_TORCHAO or not any(name.split(".")[0] == "torchao" for name in sys.modules)
