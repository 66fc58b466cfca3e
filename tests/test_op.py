"""The ops on CPU: equal to the reference to the bit, exact fakes, clear errors, one registration, honest fallback."""

import importlib
import math
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusionlib
from fusionlib import ActAndMul, GatedNorm, GroupQuant, RMSNorm, op, quant_op, reference, schema
from tests.support import FLOAT_DTYPES, acts, good, grouped_gate, norms, quants, rms_norms, same, strided_rows

FUSED = torch.ops.fusionlib.rms_norm_gated_group_quant.default
WITH_NORM = torch.ops.fusionlib.rms_norm_gated_group_quant_with_value.default
QUANT = torch.ops.fusionlib.group_quant.default

#: norm, group, hidden; the last two divide a token's row and not each other
SIZES = [(128, 128, 512), (64, 128, 512), (256, 32, 512), (96, 96, 288), (64, 384, 384), (96, 64, 384), (6, 4, 24)]


@st.composite
def calls(draw):
    """A whole call: specs, tensors of mixed dtypes, strided or not, and values from zero to overflowing."""
    norm_size, group_size, hidden = draw(st.sampled_from(SIZES))
    norm, quant = draw(norms(norm_size)), draw(quants(group_size, per_token=group_size == hidden))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    tokens = draw(st.sampled_from([0, 1, 2, 7]))
    head = draw(st.sampled_from([d for d in (1, 32, 64, hidden) if hidden % d == 0]))

    def rows(magnitude: float) -> torch.Tensor:
        padding = draw(st.sampled_from([0, 8])) if head > 1 else 0
        wide = torch.randn(tokens, hidden // head, head + padding) * magnitude
        wide = wide.to(draw(st.sampled_from(FLOAT_DTYPES)))
        special = draw(st.sampled_from([None, 0.0, -0.0, torch.inf, torch.nan]))
        if special is not None and tokens:
            wide[0, 0, : head // 2] = special
        view = wide[..., :head]
        form = draw(st.sampled_from(["rows", "heads", "heads outside"]))
        if form == "heads outside" and head == 1:  # [tokens, heads, 1] of a [heads, tokens, 1]
            return view.transpose(0, 1).contiguous().transpose(0, 1)
        return view.flatten(1) if form == "rows" else view

    def vector() -> torch.Tensor:
        size = draw(st.sampled_from([norm_size, hidden]))
        return torch.randn(size).to(draw(st.sampled_from(FLOAT_DTYPES)))

    x, gate = (rows(draw(st.sampled_from([1e-30, 1e-3, 1.0, 50.0, 3e4]))) for _ in range(2))
    weight = vector()
    bias = torch.randn_like(weight) if draw(st.booleans()) else None
    quant = replace(quant, floor=quant.floor_in(norm.output_dtype(x.dtype)))
    return x, gate, weight, bias, norm, quant


def scalars(norm: GatedNorm, quant: GroupQuant) -> tuple:
    return schema.scalars(norm, quant)


@given(calls())
@settings(max_examples=150)
def test_the_op_is_the_reference(call):
    x, gate, weight, bias, norm, quant = call
    codes, scale, normed = fusionlib.rms_norm_gated_group_quant(
        x, gate, weight, norm=norm, quant=quant, bias=bias, return_normed=True
    )
    expected = reference.rms_norm_gated(x, gate, weight, norm, bias)
    expected_codes, expected_scale = reference.group_quant(expected, quant)
    assert same(normed, expected)
    assert same(codes, expected_codes)
    assert same(scale, expected_scale)
    two = fusionlib.rms_norm_gated_group_quant(x, gate, weight, norm=norm, quant=quant, bias=bias)
    assert len(two) == 2 and same(two[0], codes) and same(two[1], scale)
    unfused = fusionlib.group_quant(normed, quant)
    assert same(unfused[0], codes) and same(unfused[1], scale)


@given(calls())
@settings(max_examples=100)
def test_the_fake_has_the_shapes_strides_and_dtypes_of_the_real(call):
    from torch._subclasses import FakeTensorMode

    x, gate, weight, bias, norm, quant = call
    real = WITH_NORM(x, gate, weight, bias, *scalars(norm, quant))
    with FakeTensorMode() as mode:
        fakes = [None if t is None else mode.from_tensor(t) for t in (x, gate, weight, bias)]
        fake = WITH_NORM(*fakes, *scalars(norm, quant))
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@st.composite
def rms_norm_calls(draw):
    """(x, residual, weight, token_factor, norm, quant): mixed dtypes, strided or not; all but x may be missing."""
    norm_size, group_size, hidden = draw(st.sampled_from(SIZES))
    norm, quant = draw(rms_norms(norm_size)), draw(quants(group_size, per_token=group_size == hidden))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    tokens, magnitude = draw(st.sampled_from([0, 1, 2, 7])), draw(st.sampled_from([1e-30, 1e-3, 1.0, 3e4]))
    x = strided_rows(draw, tokens, hidden, magnitude)
    residual = draw(st.sampled_from([None, x])) if draw(st.booleans()) else strided_rows(draw, tokens, hidden)
    size = draw(st.sampled_from([None, norm_size, hidden]))
    weight = None if size is None else torch.randn(size).to(draw(st.sampled_from(FLOAT_DTYPES)))
    factor = token_factors(draw, tokens) if draw(st.booleans()) else None
    return x, residual, weight, factor, norm, replace(quant, floor=quant.floor_in(norm.output_dtype(x.dtype)))


def token_factors(draw, tokens: int) -> torch.Tensor:
    """[tokens] or [batch, sequence] of any dtype and strides: zeros of both signs, numbers that 16 bits round."""
    kind = draw(st.sampled_from([torch.int64, torch.int16, torch.uint8, torch.bool, *FLOAT_DTYPES]))
    batch = draw(st.sampled_from([b for b in (1, 2, 7) if tokens % b == 0]))
    values = torch.tensor([0.0, 1.0, -0.0, 257.0, -1.0, 0.5])[torch.randint(0, 6, (batch, tokens // batch * 3))]
    strided = values.abs().clamp(max=255).to(kind)[:, ::3] if kind is torch.uint8 else values.to(kind)[:, 1::3]
    form = draw(st.sampled_from(["sequences", "transposed", "tokens", "the same for all"]))
    if form == "the same for all":
        return strided[:, :1].expand(batch, tokens // batch) if tokens else strided
    if form == "transposed":
        return strided.t().contiguous().t()
    return strided.flatten() if form == "tokens" else strided


@st.composite
def product_calls(draw):
    """(x, gate, act, quant)."""
    _, group_size, hidden = draw(st.sampled_from(SIZES))
    act, quant = draw(acts()), draw(quants(group_size, per_token=group_size == hidden))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    tokens, magnitude = draw(st.sampled_from([0, 1, 2, 7])), draw(st.sampled_from([1e-30, 1e-3, 1.0, 3e4]))
    x, gate = strided_rows(draw, tokens, hidden, magnitude), strided_rows(draw, tokens, hidden)
    return x, gate, act, replace(quant, floor=quant.floor_in(act.output_dtype(x.dtype)))


def fakes_agree(overload, arguments) -> None:
    """The fake results have the shapes, strides and dtypes of the real ones."""
    from torch._subclasses import FakeTensorMode

    real = overload(*arguments)
    with FakeTensorMode() as mode:
        fake = overload(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments))
    for a, b in zip(real, fake, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


@given(rms_norm_calls())
@settings(max_examples=150)
def test_the_rms_norm_op_is_the_reference(call):
    *tensors, norm, quant = call
    x, residual, weight, factor = tensors
    value, total = reference.rms_norm(x, weight, norm, residual, factor)
    codes, scale = reference.group_quant(value, quant)
    found = {"codes": codes, "scale": scale, "value": value, "sum": total}
    before = [None if t is None else t.clone() for t in tensors]
    for kept in ((), ("value",), ("sum",), ("value", "sum")):
        overload, names = op.RMS_NORM.returning(kept)
        results = overload(*tensors, *schema.scalars(norm, quant))
        assert names == ("codes", "scale", *kept)
        assert all(same(result, found[name]) for name, result in zip(names, results, strict=True))
        storages = [t.untyped_storage().data_ptr() for t in tensors if t is not None and t.numel()]
        assert not set(storages) & {r.untyped_storage().data_ptr() for r in results if r.numel()}
        fakes_agree(overload, (*tensors, *schema.scalars(norm, quant)))
    assert all(a is None or same(a.contiguous(), b.contiguous()) for a, b in zip(before, tensors, strict=True))
    if residual is not None:
        every = fusionlib.rms_norm_group_quant(
            x, weight, norm=norm, quant=quant, residual=residual, token_factor=factor,
            return_normed=True, return_sum=True,
        )  # fmt: skip
        assert all(same(a, b) for a, b in zip(every, found.values(), strict=True))


@given(product_calls())
@settings(max_examples=150)
def test_the_product_op_is_the_reference(call):
    x, gate, act, quant = call
    value = reference.act_and_mul(x, gate, act)
    codes, scale = reference.group_quant(value, quant)
    every = fusionlib.act_and_mul_group_quant(x, gate, act=act, quant=quant, return_value=True)
    assert all(same(a, b) for a, b in zip(every, (codes, scale, value), strict=True))
    two = fusionlib.act_and_mul_group_quant(x, gate, act=act, quant=quant)
    assert len(two) == 2 and same(two[0], codes) and same(two[1], scale)
    for overload in op.ACT_AND_MUL.overloads:
        fakes_agree(overload, (x, gate, *schema.scalars(act, quant)))


@pytest.mark.parametrize("layout", ["row_major", "column_major", "column_major_padded", "packed_int32", "vector"])
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_opcheck_of_every_other_op(layout, tokens):
    """With halves that are interleaved, and a residual in float32."""
    quant = GroupQuant(512 if layout == "vector" else 128, scale_format="ue8m0", scale_layout=layout)
    wide = torch.randn(tokens, 1024, dtype=torch.bfloat16)
    residual, weight = torch.randn(tokens, 4, 128), torch.randn(512)
    for overload in op.ACT_AND_MUL.overloads:
        torch.library.opcheck(overload, (wide[:, ::2], wide[:, 1::2], *schema.scalars(ActAndMul.swiglu(), quant)))
    for overload in op.RMS_NORM.overloads:
        cut = wide[:, :512] if tokens else torch.randn(0, 512)  # opcheck cannot clone an empty slice
        mask = torch.ones(tokens, 2, dtype=torch.int64)[:, 1:]
        for tensors in ((wide[:, 1::2], residual, weight, mask), (cut, None, None, None)):
            torch.library.opcheck(overload, (*tensors, *schema.scalars(RMSNorm.llama(512), quant)))


def test_compiled_calls_of_the_others_with_dynamic_tokens_are_the_eager_ones():
    quant = GroupQuant.vllm().with_layout("column_major")

    def call(wide, residual, weight, mask):
        gate, up = wide.chunk(2, -1)
        norm = RMSNorm.llama(512)
        return (
            *fusionlib.act_and_mul_group_quant(up, gate, act=ActAndMul.swiglu(), quant=quant, return_value=True),
            *fusionlib.rms_norm_group_quant(up, weight, norm=norm, quant=quant, residual=residual, return_sum=True),
            *fusionlib.rms_norm_group_quant(up, weight, norm=norm, quant=quant, token_factor=mask),
        )

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (3, 8):
        mask = torch.arange(tokens * 3).view(tokens, 3)[:, :1] % 2
        tensors = torch.randn(tokens, 1024).bfloat16(), torch.randn(tokens, 512), torch.ones(512), mask
        assert all(same(a, b) for a, b in zip(compiled(*tensors), call(*tensors), strict=True))


def small(**changes) -> dict:
    """The arguments of a small RMS norm that nothing is wrong with, but for `changes`."""
    norm, quant = RMSNorm(512), GroupQuant()
    return {"x": torch.randn(3, 512), "weight": torch.randn(512), "norm": norm, "quant": quant} | changes


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": torch.randn(512)}, ["x has shape [512]", "[tokens, ...]"]),
        ({"x": torch.randn(3, 512).double()}, ["x is torch.float64", "bfloat16"]),
        ({"x": torch.randn(3, 1536)[:, ::3]}, ["x has strides [1536, 3]", "every other element (stride 2)"]),
        ({"x": torch.randn(512, 3).t()}, ["x has strides [1, 3]", "contiguous"]),
        ({"residual": torch.randn(3, 256)}, ["[3, 512]", "residual [3, 256]", "same number of tokens"]),
        ({"residual": torch.randn(1, 512)}, ["residual [1, 512]"]),
        ({"residual": torch.ones(3, 512, dtype=torch.int32)}, ["residual is torch.int32"]),
        ({"residual": torch.randn(3, 512, device="meta")}, ["cpu, meta", "one device"]),
        ({"weight": torch.randn(128)}, ["weight has shape [128]", "[512]"]),
        ({"weight": torch.randn(1024)[::2]}, ["weight", "strides [2]", "contiguous"]),
        ({"weight": torch.ones(512, dtype=torch.int64)}, ["weight is torch.int64"]),
        ({"token_factor": torch.ones(4)}, ["token_factor has shape [4]", "x [3, 512]", "each token"]),
        ({"token_factor": torch.ones(3, 1, 1)}, ["token_factor has shape [3, 1, 1]", "[batch, sequence]"]),
        ({"token_factor": torch.tensor(1.0)}, ["token_factor has shape []"]),
        ({"token_factor": torch.ones(3).double()}, ["token_factor is torch.float64", "int64"]),
        ({"token_factor": torch.ones(3, device="meta")}, ["cpu, meta", "one device"]),
        ({"norm": RMSNorm(96)}, ["norm_size=96", "512"]),
        ({"quant": GroupQuant(100)}, ["group_size=100", "divisor"]),
        ({"quant": GroupQuant(scale_layout="vector")}, ["'vector'", "group_size=128", "512"]),
        ({"return_sum": True}, ["return_sum=True", "residual="]),
        (
            {"norm": RMSNorm(512, out_dtype=torch.float16), "quant": GroupQuant(round_scale=True)},
            ["floor=1e-10", "float16", "floor_on='scale'"],
        ),
    ],
)
def test_bad_input_of_the_rms_norm_is_named(changes, words):
    with pytest.raises((ValueError, RuntimeError)) as error:
        fusionlib.rms_norm_group_quant(**small(**changes))
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("x", "gate", "words"),
    [
        (torch.randn(512), torch.randn(3, 512), ["x has shape [512]", "unsqueeze"]),
        (torch.randn(3, 512), torch.randn(3, 1536)[:, ::3], ["gate has strides [1536, 3]", "stride 2"]),
        (torch.randn(3, 512), torch.randn(3, 1), ["[3, 512]", "gate [3, 1]", "same number of tokens"]),
        (torch.randn(3, 512), torch.randn(3, 512).double(), ["gate is torch.float64"]),
        (torch.randn(3, 100), torch.randn(3, 100), ["group_size=128", "100"]),
        (torch.randn(3, 512), torch.randn(3, 512, device="meta"), ["cpu, meta"]),
    ],
)
def test_bad_input_of_the_product_is_named(x, gate, words):
    with pytest.raises((ValueError, RuntimeError)) as error:
        fusionlib.act_and_mul_group_quant(x, gate, act=ActAndMul(), quant=GroupQuant())
    for word in words:
        assert word in str(error.value)


def odd_rows(draw, tokens: int, sizes: tuple[int, ...]) -> torch.Tensor:
    """[tokens, *sizes] with any strides, 0 and overlapping ones too, as long as the last dimension is contiguous."""
    strides = [draw(st.integers(0, 12)) for _ in (tokens, *sizes)]
    if sizes[-1] > 1:
        strides[-1] = 1
    values = torch.randn(12 * (tokens + sum(sizes)) + 1).bfloat16()
    return values.as_strided((tokens, *sizes), strides)


@given(st.data())
@settings(max_examples=200)
def test_strides_of_any_kind_leave_results_as_fresh_tensors(data):
    """Sizes of 0 and 1 carry any stride, and elementwise results inherit their inputs': neither reaches a result."""
    from torch._subclasses import FakeTensorMode

    tokens = data.draw(st.integers(0, 3))
    sizes = data.draw(st.sampled_from([(4,), (1,), (4, 1), (1, 4), (2, 2), (2, 1, 2), (1, 1), (6, 4, 1)]))
    hidden = math.prod(sizes)
    norm = GatedNorm(data.draw(st.sampled_from([size for size in (1, 2, 4) if hidden % size == 0])))
    group_size = data.draw(st.sampled_from([size for size in (1, 2, 4) if hidden % size == 0]))
    quant = data.draw(quants(group_size, per_token=group_size == hidden))
    x, gate = odd_rows(data.draw, tokens, sizes), odd_rows(data.draw, tokens, sizes)
    y = odd_rows(data.draw, tokens, (hidden,))
    calls = [
        (FUSED, (x, gate, torch.ones(norm.norm_size), None, *scalars(norm, quant))),
        (WITH_NORM, (x, gate, torch.ones(norm.norm_size), None, *scalars(norm, quant))),
        (QUANT, (y, *schema.scalars(quant))),
    ]
    for call, arguments in calls:
        with FakeTensorMode() as mode:
            fake = call(*(mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments))
        real = call(*arguments)
        for a, b in zip(real, fake, strict=True):
            assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)
        contiguous = [a.contiguous() if isinstance(a, torch.Tensor) else a for a in arguments]
        assert all(same(a, b) for a, b in zip(real, call(*contiguous), strict=True))
        assert real[0].stride() == (hidden, 1)


@pytest.mark.parametrize("layout", ["row_major", "column_major", "column_major_padded", "packed_int32", "vector"])
@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_opcheck(layout, tokens):
    """Schema, fake and dynamic shapes as PyTorch itself checks them, with a strided gate."""
    x = torch.randn(tokens, 4, 128, dtype=torch.bfloat16)
    gate = grouped_gate(tokens, 2, 2, 128, torch.bfloat16)
    weight = torch.randn(128)
    norm = GatedNorm.qwen3_next()
    quant = GroupQuant(512 if layout == "vector" else 128, scale_format="ue8m0", scale_layout=layout)
    for fused in (FUSED, WITH_NORM):
        torch.library.opcheck(fused, (x, gate, weight, None, *scalars(norm, quant)))
    torch.library.opcheck(QUANT, (x.flatten(1), *schema.scalars(quant)))


def test_a_compiled_call_with_dynamic_tokens_is_the_eager_one():
    norm, quant = GatedNorm.vllm(), GroupQuant.vllm().with_layout("column_major")

    def call(x, gate, weight):
        return fusionlib.rms_norm_gated_group_quant(x, gate, weight, norm=norm, quant=quant)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend="aot_eager")
    for tokens in (3, 8):
        x, gate = torch.randn(2, tokens, 4, 128, dtype=torch.bfloat16)
        for a, b in zip(compiled(x, gate, torch.ones(128)), call(x, gate, torch.ones(128)), strict=True):
            assert same(a, b)


def test_a_projections_gate_needs_no_copy_and_changes_nothing():
    x = torch.randn(5, 32, 128, dtype=torch.bfloat16)
    gate = grouped_gate(5, 16, 2, 128, torch.bfloat16)
    weight = torch.randn(128, dtype=torch.bfloat16)
    arguments = {"norm": GatedNorm.qwen3_next(), "quant": GroupQuant.vllm()}
    strided = fusionlib.rms_norm_gated_group_quant(x, gate, weight, **arguments)
    plain = fusionlib.rms_norm_gated_group_quant(x, gate.contiguous(), weight, **arguments)
    assert all(same(a, b) for a, b in zip(strided, plain, strict=True))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"x": torch.randn(128)}, ["x has shape [128]", "[tokens, ...]", "unsqueeze"]),
        ({"gate": torch.randn(3, 5, 128)}, ["[3, 4, 128]", "[3, 5, 128]", "same number of tokens"]),
        ({"gate": torch.randn(2, 4, 128)}, ["[3, 4, 128]", "[2, 4, 128]"]),
        ({"x": torch.randn(3, 4, 128).double()}, ["x is torch.float64", "bfloat16", ".to("]),
        ({"gate": torch.ones(3, 4, 128, dtype=torch.int32)}, ["gate is torch.int32"]),
        ({"gate": torch.randn(3, 128, 4).mT}, ["gate has strides [512, 1, 4]", "contiguous"]),
        ({"norm": GatedNorm(96)}, ["norm_size=96", "512"]),
        ({"quant": GroupQuant(100)}, ["group_size=100", "512", "divisor"]),
        ({"quant": GroupQuant(128, scale_layout="vector")}, ["'vector'", "group_size=128", "512", "'row_major'"]),
        (
            {"norm": GatedNorm(128, out_dtype=torch.float16), "quant": GroupQuant(round_scale=True)},
            ["floor=1e-10", "float16", "floor=None", "floor_on='scale'"],
        ),
        ({"weight": torch.randn(64)}, ["weight has shape [64]", "[128]", "[512]"]),
        ({"weight": torch.randn(256)[::2]}, ["weight", "strides [2]", "contiguous"]),
        ({"weight": torch.ones(128, dtype=torch.int64)}, ["weight is torch.int64"]),
        ({"bias": torch.randn(512)}, ["bias has shape [512]", "weight has shape [128]", "the same"]),
        ({"gate": torch.randn(3, 4, 128, device="meta")}, ["cpu, meta", "one device"]),
    ],
)
def test_bad_input_is_named(changes, words):
    arguments = good() | changes
    with pytest.raises((ValueError, RuntimeError)) as error:
        fusionlib.rms_norm_gated_group_quant(**arguments)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (torch.randn(3, 4, 128), ["[3, 4, 128]", "flatten(1)"]),
        (torch.randn(3, 100), ["group_size=128", "100"]),
        (torch.randn(128, 3).t()[:, :128], ["y has strides", "contiguous"]),
        (torch.ones(3, 128, dtype=torch.int8), ["y is torch.int8"]),
        (torch.randn(3, 256), ["'vector'", "group_size=128", "256", "'row_major'"]),
    ],
)
def test_bad_input_of_the_quant_op_is_named(y, words):
    with pytest.raises(ValueError) as error:
        fusionlib.group_quant(y, GroupQuant(scale_layout="vector" if "'vector'" in words else "row_major"))
    for word in words:
        assert word in str(error.value)


def test_importing_again_registers_nothing_twice():
    before = torch.ops.fusionlib.group_quant.default
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        importlib.reload(op)
    assert torch.ops.fusionlib.group_quant.default is before


def test_the_gpu_path_falls_back_once_said_and_right(monkeypatch):
    """The implementation for GPUs, given CPU tensors, has a reason against the kernel: it must still be correct."""
    monkeypatch.setattr(quant_op, "_warned", set())
    monkeypatch.setattr(op.GATED_NORM, "_kernel_problem", lambda *_: "the reason of this test")
    arguments = good()
    x, gate, weight = (arguments[name] for name in ("x", "gate", "weight"))
    spelled = (x, gate, weight, None, *scalars(arguments["norm"], arguments["quant"]))
    with pytest.warns(RuntimeWarning, match="the reason of this test"):
        got = op.GATED_NORM._on_gpu(("value",), *spelled)
    for a, b in zip(got, WITH_NORM(*spelled), strict=True):
        assert same(a, b)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        op.GATED_NORM._on_gpu((), *spelled)
