"""The kernel of a product with an activation against the reference on the same device.

Its only operations that are not the reference's are exp (2 ulp), a division inside the activation (2 ulp), erf and
tanh. For gelu of negative values most digits of 1 + erf cancel, so that a last bit of erf makes more of the value.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fusionlib import ActAndMul, GroupQuant, op, reference, schema
from tests.kernels.agreement import CODE_BOUND, CONTRACTS, STEPS, assert_near, assert_quantised, spelled
from tests.support import POISON_CODE, poisoned_outputs

pytest.importorskip("triton", reason="Triton is not installed on this platform")

from fusionlib.kernels import launch
from fusionlib.kernels.config import LaunchConfig

ACTS = [
    ActAndMul.swiglu(),
    ActAndMul.geglu(approximate=False),
    ActAndMul.geglu(),
    ActAndMul.sigmoid_gate(),
    ActAndMul(rounding=frozenset({"output"})),
    ActAndMul("sigmoid", rounding=frozenset({"activation"})),
    ActAndMul("gelu_tanh", rounding=frozenset()),
]
GELU_BOUND = 2e-4


def made(tokens, hidden=5120, dtype=torch.bfloat16, gate_dtype=None):
    x = (torch.randn(tokens, hidden, device="cuda") * 2).to(dtype)
    return x, (torch.randn(tokens, hidden, device="cuda") * 2).to(gate_dtype or dtype)


def run_kernel(x, gate, act, quant, config=None, store=True):
    """Launch into poisoned outputs; codes, scale and the value, None if it is not stored."""
    tokens, hidden = x.shape[0], x[0].numel()
    codes, scale = poisoned_outputs(tokens, hidden, quant, "cuda")
    value = torch.full((tokens, hidden), torch.nan, dtype=act.output_dtype(x.dtype), device="cuda") if store else None
    launch.launch_act_and_mul(x, gate, act, quant, codes, scale, value, config)
    return codes, scale, value


def check(got, x, gate, act, quant):
    expected = reference.act_and_mul(x, gate, act)
    in_float32 = torch.float32 in (x.dtype, got[2].dtype)
    gelu = act.activation.startswith("gelu")
    rounded = [got[2].dtype, *([x.dtype] if "activation" in act.rounding else [])]
    assert_near(
        got,
        expected,
        quant,
        exact_scales=not in_float32,
        code_bound=GELU_BOUND if gelu else CODE_BOUND,
        scale_bound=2**-10 if gelu or torch.float16 in (x.dtype, got[2].dtype) else 2**-13,
        tolerance=max(STEPS[dtype] for dtype in rounded) * len(rounded),
        atol=1e-5 if gelu else 1e-30,
    )
    assert_quantised(*got, quant)


@pytest.mark.gpu
@pytest.mark.parametrize("hidden", [128, 512, 2304, 5120, 11008, 16384])
@pytest.mark.parametrize("tokens", [1, 3, 64, 1000])
@pytest.mark.parametrize("act", ACTS, ids=str)
def test_agrees_with_the_reference(act, tokens, hidden):
    x, gate = made(tokens, hidden)
    got = run_kernel(x, gate, act, GroupQuant())
    check(got, x, gate, act, GroupQuant())
    alone = run_kernel(x, gate, act, GroupQuant(), store=False)
    assert torch.equal(alone[0].view(torch.uint8), got[0].view(torch.uint8)) and torch.equal(alone[1], got[1])


@pytest.mark.gpu
@pytest.mark.parametrize("group_size", [32, 64, 128, 256, 512, 768])
def test_groups_of_every_size(group_size):
    x, gate = made(77, 16 * group_size)
    quant = GroupQuant(group_size)
    check(run_kernel(x, gate, ActAndMul.swiglu(), quant), x, gate, ActAndMul.swiglu(), quant)


@pytest.mark.gpu
@pytest.mark.parametrize("layout", ["vector", "row_major", "column_major_padded"])
@pytest.mark.parametrize("hidden", [2048, 5120, 11008, 16384])
def test_one_scale_a_token(hidden, layout):
    x, gate = made(33, hidden)
    quant = GroupQuant(hidden, scale_layout=layout)
    check(run_kernel(x, gate, ActAndMul.swiglu(), quant), x, gate, ActAndMul.swiglu(), quant)


@pytest.mark.gpu
@pytest.mark.parametrize("quant", CONTRACTS, ids=spelled)
@pytest.mark.parametrize("act", [ActAndMul.swiglu(), ActAndMul.sigmoid_gate(), ActAndMul.geglu()], ids=str)
def test_every_contract(quant, act):
    x, gate = made(257, 1536)
    check(run_kernel(x, gate, act, quant), x, gate, act, quant)


@pytest.mark.gpu
@pytest.mark.parametrize("gate_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rounding", ["", "activation", "output", "activation,output"])
def test_every_rounding_and_mixture_of_dtypes(rounding, dtype, gate_dtype):
    x, gate = made(333, 1536, dtype, gate_dtype)
    for kind in ("silu", "sigmoid"):
        act = ActAndMul(kind, frozenset(filter(None, rounding.split(","))))
        check(run_kernel(x, gate, act, GroupQuant()), x, gate, act, GroupQuant())


@pytest.mark.gpu
@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_output_has_a_dtype_of_its_own(out_dtype):
    x, gate = made(65, 1536, torch.float32)
    act = replace(ActAndMul.swiglu(), out_dtype=out_dtype)
    got = run_kernel(x, gate, act, GroupQuant())
    assert got[2].dtype is out_dtype
    check(got, x, gate, act, GroupQuant())


@pytest.mark.gpu
@pytest.mark.parametrize("config", [(1, 1), (2, 1), (4, 4), (8, 2), (8, 8), (16, 8), (4, 1), (32, 8), (1, 32)])
@pytest.mark.parametrize("hidden", [1024, 640])
def test_every_launch_config_is_right(config, hidden):
    x, gate = made(77, hidden)
    got = run_kernel(x, gate, ActAndMul.swiglu(), GroupQuant(), LaunchConfig(*config))
    check(got, x, gate, ActAndMul.swiglu(), GroupQuant())


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["chunks", "interleaved", "gate of every head", "x and gate of other shapes"])
def test_strided_inputs_read_in_place(form):
    wide = torch.randn(65, 2 * 2048, device="cuda").bfloat16()
    forms = {
        "chunks": lambda: wide.chunk(2, -1),
        "interleaved": lambda: (wide[:, ::2], wide[:, 1::2]),
        "gate of every head": lambda: (
            torch.randn(65, 2048, device="cuda").bfloat16(),
            wide.view(65, 8, 512)[..., 256:],
        ),
        "x and gate of other shapes": lambda: (wide.view(65, 8, 512)[..., ::2], wide.view(65, 2, 2048)[:, 1]),
    }
    x, gate = forms[form]()
    act, quant = ActAndMul.swiglu(), GroupQuant()
    got = torch.ops.fusionlib.act_and_mul_group_quant_with_value(x, gate, *schema.scalars(act, quant))
    plain = run_kernel(x.contiguous(), gate.contiguous(), act, quant)
    for a, b in zip(got, plain, strict=True):
        assert torch.equal(a.view(torch.uint8), b.view(torch.uint8))


@pytest.mark.gpu
@pytest.mark.parametrize("special", [0.0, -0.0, 1e-30, 3e38, -100.0, torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("quant", [GroupQuant.vllm(), GroupQuant.torchao(), GroupQuant(scale_format="ue8m0")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("act", ACTS[:4], ids=str)
def test_what_is_not_a_number_is_what_the_reference_makes_of_it(special, quant, dtype, act):
    x, gate = made(64, 512, dtype)
    x[0], gate[1], x[2, 5], gate[3, 7] = special, special, special, special
    x[4], gate[4] = special, special
    codes, scale, value = run_kernel(x, gate, act, quant)
    expected = reference.act_and_mul(x, gate, act)
    assert torch.equal(value.isnan(), expected.isnan()) and torch.equal(value.isinf(), expected.isinf())
    assert_quantised(codes, scale, value, quant)


@pytest.mark.gpu
def test_no_tokens_launch_nothing():
    x = torch.empty(0, 2048, device="cuda", dtype=torch.bfloat16)
    codes, scale, value = op.ACT_AND_MUL(x, x, ActAndMul(), GroupQuant(), also=("value",))
    assert codes.shape == value.shape == (0, 2048) and scale.shape == (0, 16)


@pytest.mark.gpu
def test_offsets_beyond_int32():
    """2^31 elements and more in one projection of both halves."""
    tokens = 2**31 // 4096 + 100
    if torch.cuda.mem_get_info()[0] < 40 * 2**30:
        pytest.skip("needs 40 GiB of free GPU memory")
    wide = torch.zeros(tokens, 4096, dtype=torch.bfloat16, device="cuda")
    wide[-100:] = torch.randn(100, 4096, dtype=torch.bfloat16, device="cuda")
    act, quant = ActAndMul.swiglu(), GroupQuant()
    got = run_kernel(*wide.chunk(2, -1), act, quant)
    few = run_kernel(*wide[-100:].chunk(2, -1), act, quant)
    for a, b in zip(got, few, strict=True):
        assert torch.equal(a[-100:].contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))
    assert not (got[0][:-100].view(torch.uint8) == POISON_CODE).any()


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 33])
def test_opcheck_on_the_gpu(tokens):
    x, gate = made(tokens, 1536)
    for overload in op.ACT_AND_MUL.overloads:
        torch.library.opcheck(overload, (x, gate, *schema.scalars(ActAndMul(), GroupQuant())))
