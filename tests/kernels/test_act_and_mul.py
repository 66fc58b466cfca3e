"""The kernel of a product with an activation against the reference on the same device."""

from dataclasses import replace

import pytest
import torch

from fusionlib import ActAndMul, GroupQuant, op, reference, schema
from tests.kernels.agreement import QUANTS, SPECIAL_QUANTS, assert_quantised
from tests.support import codes_bytes, poisoned_outputs

pytest.importorskip("triton", reason="Triton is not installed on this platform")

from fusionlib.kernels import launch
from fusionlib.kernels.config import LaunchConfig

KINDS = ("silu", "gelu", "gelu_tanh", "sigmoid")
#: Triton's erf differs from PyTorch's in the last bit, and for negative values most digits of 1 + erf cancel.
CODE_BOUNDS = {"gelu": 2e-4}


def run_kernel(x, gate, act, quant, config=None):
    """Launch into poisoned outputs; returns codes, scale, value."""
    tokens, hidden = x.shape[0], x[0].numel()
    codes, scale = poisoned_outputs(tokens, hidden, quant, "cuda")
    value = torch.full((tokens, hidden), torch.nan, dtype=act.output_dtype(x.dtype), device="cuda")
    launch.launch_act_and_mul(x, gate, act, quant, codes, scale, value, config)
    return codes, scale, value


def assert_agrees(got, x, gate, act, quant):
    expected = reference.act_and_mul(x, gate, act)
    # A gelu may be the difference of nearly equal numbers.
    cancels, bound = act.activation.startswith("gelu"), CODE_BOUNDS.get(act.activation, 1e-5)
    # The activation of a product that stays in float32 rounds to its gate's dtype.
    inner = gate.dtype if x.dtype is torch.float32 else x.dtype
    assert_quantised(got, expected, x.dtype, act.rounding, quant, cancels=cancels, code_bound=bound, inner_dtype=inner)


def halves(tokens, hidden, dtype=torch.bfloat16):
    """The two halves of one projection."""
    both = (torch.randn(tokens, 2 * hidden, device="cuda") * 2).to(dtype)
    return both.chunk(2, -1)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 3, 64, 700])
@pytest.mark.parametrize("hidden", [128, 512, 640, 5632, 14336])
@pytest.mark.parametrize("kind", KINDS)
def test_agrees_with_the_reference(kind, hidden, tokens):
    gate, x = halves(tokens, hidden)
    assert_agrees(run_kernel(x, gate, ActAndMul(kind), GroupQuant()), x, gate, ActAndMul(kind), GroupQuant())


@pytest.mark.gpu
@pytest.mark.parametrize("config", [(1, 1), (2, 1), (4, 4), (8, 2), (8, 8), (16, 8), (32, 8)])
@pytest.mark.parametrize("groups", [32, 5])
def test_every_launch_config_is_right(groups, config):
    gate, x = halves(77, groups * 128)
    act = ActAndMul.swiglu()
    assert_agrees(run_kernel(x, gate, act, GroupQuant(), LaunchConfig(*config)), x, gate, act, GroupQuant())


@pytest.mark.gpu
@pytest.mark.parametrize("quant", [*QUANTS, GroupQuant(512), GroupQuant(96)], ids=str)
def test_every_quantisation(quant):
    gate, x = halves(333, 1536)
    act = ActAndMul.swiglu()
    assert_agrees(run_kernel(x, gate, act, quant), x, gate, act, quant)


@pytest.mark.gpu
@pytest.mark.parametrize("gate_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("x_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("points", [(), ("activation",), ("output",), ("activation", "output")])
def test_mixed_dtypes_and_every_rounding(x_dtype, gate_dtype, points):
    gate, x = (half.to(dtype) for half, dtype in zip(halves(333, 2048), (gate_dtype, x_dtype), strict=True))
    for act in (ActAndMul("silu", frozenset(points)), ActAndMul("sigmoid", frozenset(points))):
        assert_agrees(run_kernel(x, gate, act, GroupQuant()), x, gate, act, GroupQuant())


@pytest.mark.gpu
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_output_has_a_dtype_of_its_own(out_dtype):
    gate, x = halves(99, 2048, torch.float32)
    act = replace(ActAndMul("silu", frozenset({"output"})), out_dtype=out_dtype)
    got = run_kernel(x, gate, act, GroupQuant())
    assert got[2].dtype is out_dtype
    assert_agrees(got, x, gate, act, GroupQuant())


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_strided_inputs_are_read_in_place(kind):
    act, quant = ActAndMul(kind), GroupQuant()
    both = torch.randn(65, 4096, dtype=torch.bfloat16, device="cuda")
    heads = torch.randn(65, 8, 512, dtype=torch.bfloat16, device="cuda")
    for x, gate in (
        (both[:, 1::2], both[:, ::2]),
        (both[:, 2048:], heads[..., 256:]),
        (heads[..., :256], both[:, ::2]),
    ):
        strided = torch.ops.fusionlib.act_and_mul_group_quant_with_value(x, gate, *schema.scalars(act, quant))
        plain = run_kernel(x.contiguous(), gate.contiguous(), act, quant)
        assert all(torch.equal(codes_bytes(a), codes_bytes(b)) for a, b in zip(strided[:1], plain[:1], strict=True))
        assert torch.equal(strided[1], plain[1]) and torch.equal(strided[2], plain[2])


@pytest.mark.gpu
@pytest.mark.parametrize("special", [0.0, -0.0, 1e-30, 3e38, torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("quant", SPECIAL_QUANTS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_number_is_what_the_reference_makes_of_it(special, quant, kind):
    gate, x = (half.contiguous() for half in halves(64, 512))
    x[0, :128], x[1, 5], gate[2, 7], gate[3, 128:256] = special, special, special, special
    codes, scale, value = run_kernel(x, gate, ActAndMul(kind), quant)
    expected = reference.act_and_mul(x, gate, ActAndMul(kind))
    expected_codes, expected_scale = reference.group_quant(value, quant)
    assert torch.equal(value.isnan(), expected.isnan()) and torch.equal(value.isinf(), expected.isinf())
    torch.testing.assert_close(scale, expected_scale, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(codes_bytes(codes), codes_bytes(expected_codes))


@pytest.mark.gpu
def test_offsets_beyond_32_bits():
    hidden, act = 4096, ActAndMul.swiglu()
    tokens = 2**31 // (2 * hidden) + 3
    gate, x = torch.empty(tokens, 2 * hidden, dtype=torch.bfloat16, device="cuda").normal_().chunk(2, -1)
    codes, scale = poisoned_outputs(tokens, hidden, GroupQuant(), "cuda")
    launch.launch_act_and_mul(x, gate, act, GroupQuant(), codes, scale, None)
    last = reference.group_quant(reference.act_and_mul(x[-8:], gate[-8:], act), GroupQuant())
    assert torch.equal(codes_bytes(codes[-8:]), codes_bytes(last[0])) and torch.equal(scale[-8:], last[1])


@pytest.mark.gpu
def test_no_tokens_launch_nothing():
    x = torch.empty(0, 512, device="cuda")
    codes, scale = torch.ops.fusionlib.act_and_mul_group_quant(x, x, *schema.scalars(ActAndMul(), GroupQuant()))
    assert codes.shape == (0, 512) and scale.shape == (0, 4)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 33])
def test_opcheck_on_the_gpu(tokens):
    gate, x = halves(tokens, 640)
    for overload in op.ACT_AND_MUL.overloads:
        torch.library.opcheck(overload, (x, gate, *schema.scalars(ActAndMul(), GroupQuant())))
