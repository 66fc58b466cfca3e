"""The ops' gradients: those of the reference, eager and compiled, for every input that asks for one."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusionlib
from fusionlib import ActAndMul, GatedNorm, GroupQuant, RMSNorm, reference
from fusionlib.block_mm import block_scaled_mm, dequantised
from fusionlib.layers import AttentionOutput
from fusionlib.pattern.norm_op import define_norm_op, rms_norm_gated
from tests.support import acts, norms, quants, rms_norms

HIDDEN = 16


def loss(results, quant: GroupQuant) -> torch.Tensor:
    """A number that every result with a gradient has a part in; FP8 codes count by the steps of a gradient in FP8."""
    codes, scale, *normed = results
    parts = [codes.float() * torch.linspace(-2, 3, codes.numel()).view(codes.shape)]
    if quant.scale_layout != "packed_int32":
        parts.append(scale * torch.linspace(1, 2, scale.numel()).view(scale.shape))
    parts += [value.float() * 0.5 for value in normed]
    return sum(part.sum() for part in parts)


def gradients(call, tensors, quant: GroupQuant) -> tuple[torch.Tensor, ...]:
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    return torch.autograd.grad(loss(call(*leaves), quant), leaves)


def equal(a, b) -> bool:
    return all(torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0)) for x, y in zip(a, b, strict=True))


def some(seed: int, *shapes: tuple[int, ...]) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in shapes]


@given(norm=norms(8), quant=quants(4), seed=st.integers(0, 2**16), biased=st.booleans())
@settings(max_examples=50)
def test_the_fused_op_has_the_gradient_of_the_reference(norm, quant, seed, biased):
    tensors = some(seed, (3, 2, 8), (3, HIDDEN), (8,), *[(8,)] * biased)
    quant = replace(quant, floor=quant.floor_in(norm.output_dtype(torch.float32)))

    def fused(x, gate, weight, bias=None):
        return fusionlib.rms_norm_gated_group_quant(
            x, gate, weight, norm=norm, quant=quant, bias=bias, return_normed=True
        )

    def plain(x, gate, weight, bias=None):
        normed = reference.rms_norm_gated(x, gate, weight, norm, bias)
        return *reference.group_quant(normed, quant), normed

    assert equal(gradients(fused, tensors, quant), gradients(plain, tensors, quant))


@given(norm=rms_norms(8), quant=quants(4), seed=st.integers(0, 2**16), given=st.sampled_from([1, 2, 3, 4]))
@settings(max_examples=50)
def test_the_rms_norm_has_the_gradient_of_the_reference(norm, quant, seed, given):
    """Of x alone, with a residual, with a weight too, and with a number for each token."""
    tensors = some(seed, (3, 2, 8), (3, HIDDEN), (8,), (3,))[:given]
    quant = replace(quant, floor=quant.floor_in(norm.output_dtype(torch.float32)))

    def fused(x, residual=None, weight=None, factor=None):
        return fusionlib.rms_norm_group_quant(
            x, weight, norm=norm, quant=quant, residual=residual, token_factor=factor,
            return_normed=True, return_sum=residual is not None,
        )  # fmt: skip

    def plain(x, residual=None, weight=None, factor=None):
        value, total = reference.rms_norm(x, weight, norm, residual, factor)
        return *reference.group_quant(value, quant), value, *([] if residual is None else [total])

    assert equal(gradients(fused, tensors, quant), gradients(plain, tensors, quant))


@given(act=acts(), quant=quants(4), seed=st.integers(0, 2**16))
@settings(max_examples=50)
def test_the_product_with_an_activation_has_the_gradient_of_the_reference(act, quant, seed):
    tensors = some(seed, (3, 2, 8), (3, HIDDEN))
    quant = replace(quant, floor=quant.floor_in(act.output_dtype(torch.float32)))

    def fused(x, gate):
        return fusionlib.act_and_mul_group_quant(x, gate, act=act, quant=quant, return_value=True)

    def plain(x, gate):
        value = reference.act_and_mul(x, gate, act)
        return *reference.group_quant(value, quant), value

    assert equal(gradients(fused, tensors, quant), gradients(plain, tensors, quant))


@given(quant=quants(4), seed=st.integers(0, 2**16))
@settings(max_examples=50)
def test_the_quantisation_has_the_gradient_of_the_reference(quant, seed):
    tensors = some(seed, (3, HIDDEN))
    got = gradients(lambda y: fusionlib.group_quant(y, quant), tensors, quant)
    assert equal(got, gradients(lambda y: reference.group_quant(y, quant), tensors, quant))


NORM, QUANT = GatedNorm(8), GroupQuant(4)
CALLS = {
    "fused": lambda x, gate, weight: fusionlib.rms_norm_gated_group_quant(x, gate, weight, norm=NORM, quant=QUANT),
    "opaque quantisation": lambda x, gate, weight: fusionlib.group_quant(
        reference.rms_norm_gated(x, gate, weight, NORM), QUANT
    ),
    "rms norm": lambda x, gate, weight: fusionlib.rms_norm_group_quant(
        x, weight, norm=RMSNorm(8), quant=QUANT, residual=gate, return_sum=True
    ),
    "product": lambda x, gate, weight: fusionlib.act_and_mul_group_quant(
        x * weight, gate, act=ActAndMul.swiglu(), quant=QUANT
    ),
    "opaque norm": lambda x, gate, weight: reference.group_quant(rms_norm_gated(x, gate, weight, NORM), QUANT),
}


def plain(case: str, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """What the call of a case computes, by the references."""
    if case == "rms norm":
        value, total = reference.rms_norm(x, weight, RMSNorm(8), gate)
        return *reference.group_quant(value, QUANT), total
    if case == "product":
        value = reference.act_and_mul(x * weight, gate, ActAndMul.swiglu())
    else:
        value = reference.rms_norm_gated(x, gate, weight, NORM)
    return reference.group_quant(value, QUANT)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("case", CALLS)
def test_a_compiled_call_has_the_eager_gradient(case, dynamic):
    define_norm_op()
    tensors = some(1, (3, 2, 8), (3, HIDDEN), (8,))
    expected = gradients(partial(plain, case), tensors, QUANT)
    assert equal(gradients(CALLS[case], tensors, QUANT), expected)
    assert all(gradient.abs().sum() > 0 for gradient in expected)
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[case], backend="aot_eager", fullgraph=True, dynamic=dynamic)
    assert equal(gradients(compiled, tensors, QUANT), expected)


def test_one_tensor_in_two_places_has_both_gradients_once():
    x, weight = some(2, (3, HIDDEN), (8,))

    def fused(x):
        return fusionlib.rms_norm_gated_group_quant(x, x, weight, norm=NORM, quant=QUANT)

    def plain(x):
        return reference.group_quant(reference.rms_norm_gated(x, x, weight, NORM), QUANT)

    assert equal(gradients(fused, [x], QUANT), gradients(plain, [x], QUANT))


def test_a_gradient_can_be_differentiated():
    (y,) = some(3, (3, HIDDEN))

    def twice(call):
        leaf = y.clone().requires_grad_()
        (first,) = torch.autograd.grad(call(leaf)[1].square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaf)

    expected = twice(lambda leaf: reference.group_quant(leaf, QUANT))
    assert expected[0].abs().sum() > 0
    assert equal(twice(lambda leaf: fusionlib.group_quant(leaf, QUANT)), expected)


def test_without_a_gradient_in_sight_nothing_is_kept():
    x, gate, weight = (tensor.requires_grad_() for tensor in some(4, (3, 2, 8), (3, HIDDEN), (8,)))
    with torch.no_grad():
        assert not any(result.requires_grad for result in CALLS["fused"](x, gate, weight))
    assert not any(result.requires_grad for result in CALLS["fused"](x.detach(), gate.detach(), weight.detach()))


@pytest.mark.parametrize("tokens", [1, 6])
def test_the_product_has_the_gradient_of_the_dequantised_one(tokens):
    """The weight's too: whoever asks for it must not find None."""
    generator = torch.Generator().manual_seed(0)
    values = (torch.randn(shape, generator=generator) for shape in ((tokens, 256), (384, 256)))
    codes, weight = (value.to(torch.float8_e4m3fn) for value in values)
    operands = codes, torch.rand(tokens, 2) + 0.5, weight, torch.rand(3, 4) + 0.5
    up = torch.randn(tokens, 384, generator=generator) * 32

    def of(product):
        leaves = [operand.detach().clone().requires_grad_() for operand in operands]
        return torch.autograd.grad(product(*leaves), leaves, up)

    got = of(lambda *leaves: block_scaled_mm(*leaves, torch.float32))
    want = of(lambda c, s, w, ws: dequantised(c, s, 1) @ dequantised(w, ws, 128).t())
    for ours, theirs in zip(got, want, strict=True):  # a sum in another order may cross a rounding to FP8
        rtol = 2**-3 if ours.dtype.itemsize == 1 else 1e-5
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=rtol, atol=1e-4)
    assert all(gradient.float().abs().sum() > 0 for gradient in want)


@pytest.mark.parametrize("native_quant", [False, True])
def test_a_model_whose_parameters_want_gradients_fuses_for_inference_and_says_so_for_training(native_quant):
    """Under no_grad the site fuses; where a backward pass may come, the report says `training` and the way out."""
    model = AttentionOutput(4, 128, 256, native_quant=native_quant)
    x, gate = torch.randn(2, 6, 4, 128, dtype=torch.bfloat16)
    with torch.no_grad():
        assert len(fusionlib.explain(model, x, gate, devices="cpu").fused) == 1
    report = fusionlib.explain(model, x, gate, devices="cpu")
    assert [site.code for site in report.refused] == ["training"]
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, gate), model(x, gate))  # without a backward pass, too
    (expected,) = torch.autograd.grad(model(x, gate).float().square().sum(), [model.norm.weight])
    (got,) = torch.autograd.grad(compiled(x, gate).float().square().sum(), [model.norm.weight])
    assert torch.equal(got, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("case", CALLS)
def test_on_a_gpu_the_gradient_is_the_references(case):
    """Made of the inputs alone, so what the kernel rounds otherwise in the forward pass is not in it."""
    define_norm_op()
    tensors = [tensor.cuda() for tensor in some(1, (3, 2, 8), (3, HIDDEN), (8,))]

    def moved(call):
        return lambda *leaves: tuple(result.cpu() for result in call(*leaves))

    expected = gradients(moved(partial(plain, case)), tensors, QUANT)
    assert equal(gradients(moved(CALLS[case]), tensors, QUANT), expected)
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[case], backend="aot_eager", fullgraph=True)
    assert equal(gradients(moved(compiled), tensors, QUANT), expected)
