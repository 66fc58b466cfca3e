"""What engines and their test references write, beside the scoreboard: each fuses and equals eager to the bit."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from fusionlib import FusionPass, GatedNorm, GroupQuant, reference, schema
from tests.spellings import FP8, NormSpelling, QuantSpelling, inputs, run_rewritten
from tests.support import same

NORM, QUANT = NormSpelling(), QuantSpelling()

#: Where the floor stands among the fused op's arguments, which are tensors and then both specs.
FLOOR = 4 + len(schema.scalars(GatedNorm(128))) + 2


def rms(v):
    return v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-6)


def groups(y, size=128):
    return y.unflatten(1, (-1, size))


def cast(v, scale):
    return (v / scale).clamp(-448.0, 448.0).to(FP8), scale


def fuses(fn, *tensors, dynamic=False):
    """The specs that `fn` is fused by, once it was seen to return what eager returns."""
    got, report, graphs = run_rewritten(fn, *tensors, dynamic=dynamic)
    assert len(report.fused) == 1 and not report.refused, str(report)
    want = fn(*tensors)
    assert len(got) == len(want) and all(map(same, got, want))
    (call,) = (n for n in graphs[0].nodes if "rms_norm_gated_group_quant" in str(n.target))
    return call.args


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_floor_in_16_bits(dtype):
    """vLLM's and SGLang's references: fp16 has no 1e-10, so that there is no floor."""

    def fn(x, z, w):
        v = groups(NORM(x, z, w).flatten(1))
        amax = v.abs().max(-1, keepdim=True)[0].clamp(min=1e-10).to(torch.float32)
        return cast(v.float(), amax / 448.0)

    floor = torch.tensor(1e-10, dtype=dtype).item() or None
    assert fuses(fn, *inputs(dtype=dtype))[FLOOR] == floor


@pytest.mark.parametrize("value", [0.0, 1e-20, torch.nan, torch.inf])
@pytest.mark.parametrize("compare", [torch.lt, torch.le])
def test_a_floor_by_where(compare, value):
    """AITER's tests; a NaN stays one, as in a clamp."""

    def fn(x, z, w):
        v = groups(NORM(x, z, w).flatten(1)).float()
        amax = v.abs().amax(-1, keepdim=True)
        return cast(v, torch.where(compare(amax, 1e-10), 1e-10, amax) / 448.0)

    x, z, w = inputs()
    x[2] = value
    assert fuses(fn, x, z, w)[FLOOR] == 1e-10


@pytest.mark.parametrize(
    "floor",
    [
        lambda amax: torch.where(amax > 1e-10, amax, 1e-10),  # makes a number of NaN
        lambda amax: torch.where(amax < 1e-10, 1e-9, amax),
        lambda amax: torch.where(amax < amax.flip(1), 1e-10, amax),
        lambda amax: torch.where(amax < 1e-10, amax, 1e-10),
    ],
)
def test_a_choice_that_is_no_clamp_is_refused(floor):
    def fn(x, z, w):
        v = groups(NORM(x, z, w).flatten(1)).float()
        return cast(v, floor(v.abs().amax(-1, keepdim=True)) / 448.0)

    _, report, _ = run_rewritten(fn, *inputs())
    assert [site.code for site in report] == ["scale_arithmetic"], str(report)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_value_rounded_to_16_bits(dtype):
    """vLLM's `orig_dtype`, flash-linear-attention's `residual_in_fp32`."""

    def fn(x, z, w):
        return QUANT((rms(x) * w.float() * F.silu(z.float())).to(dtype).flatten(1))

    assert dtype in fuses(fn, *inputs(dtype=torch.float32, gate_dtype=torch.bfloat16))


def test_mamba2s_prefill():
    """x in float32, the result in bfloat16, gated first."""

    def fn(x, z, w):
        g = x * F.silu(z.float())
        n = g * torch.rsqrt(g.pow(2).mean(-1, keepdim=True) + 1e-5)
        return QUANT((w * n).to(torch.bfloat16))

    fuses(fn, torch.randn(6, 512), torch.randn(6, 512).bfloat16(), torch.rand(512).bfloat16())


BIASED = {
    "before the gate": lambda x, z, w, b: (rms(x.float()) * w.float() + b.float()) * F.silu(z.float()),
    "added first": lambda x, z, w, b: (b.float() + w.float() * rms(x.float())) * F.silu(z.float()),
    "behind a gate that comes first": lambda x, z, w, b: rms(x.float() * F.silu(z.float())) * w.float() + b.float(),
    "rounded": lambda x, z, w, b: (rms(x.float()) * w.float() + b.float()).to(x.dtype) * F.silu(z.float()),
    "without a weight": lambda x, z, w, b: (rms(x.float()) + b.float()) * F.silu(z.float()),
}


@pytest.mark.parametrize("where", BIASED)
def test_a_bias(where):
    x, z, w = inputs()
    bias = torch.randn(128).bfloat16()
    args = fuses(lambda *tensors: QUANT(BIASED[where](*tensors).to(x.dtype).flatten(1)), x, z, w, bias)
    assert args[3] is not None  # the op's bias


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic rows"])
@pytest.mark.parametrize(("rows", "size"), [(14, 128), (16, 256), (16, 512)])
def test_rows_of_heads_under_a_wider_group(rows, size, dynamic):
    """64-wide heads in rows of their own: the last dimension of the reshape is a literal, whatever the rows are."""

    def fn(x, z, w):
        v = NORM(x, z, w).reshape(-1, size).float()
        return cast(v, (v.abs().amax(-1, keepdim=True) / 448.0).clamp(min=1e-10))

    x, z = torch.randn(2, rows, 64).bfloat16()
    fuses(fn, x, z, torch.rand(64).bfloat16(), dynamic=dynamic)


@pytest.mark.parametrize("head_dim", [96, 192])
def test_heads_that_no_group_divides(head_dim):
    fuses(lambda x, z, w: QUANT(NORM(x, z, w).flatten(1)), *inputs(head_dim=head_dim))


@pytest.mark.parametrize("tokens", [5, 6, 8])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic tokens"])
def test_columns_padded_for_tma(tokens, dynamic):
    """The copy into padded storage goes: the op writes it."""

    def fn(x, z, w):
        codes, scale = QUANT(NORM(x, z, w).flatten(1))
        padded = (x.shape[0] + 3) // 4 * 4
        return codes, torch.empty_strided(scale.shape, (1, padded), dtype=torch.float32).copy_(scale)

    layout = "column_major" if tokens == 8 else "column_major_padded"  # of 8, nothing is padded, and tracing knows it
    assert layout in fuses(fn, *inputs(tokens=tokens), dynamic=dynamic)


def test_a_weight_and_a_literal_of_another_shape():
    """One weight per head plus ones for its elements: a vector of the row, and not the weight of each element."""

    def fn(x, z, w):
        y = rms(x.float()) * (w.float()[:, None] + torch.ones(8, 8)) * F.silu(z.float())
        v = y.to(x.dtype).reshape(-1, 64).float()
        return cast(v, (v.abs().amax(-1, keepdim=True) / 448.0).clamp(min=1e-10))

    args = fuses(fn, *inputs(heads=8, head_dim=8))
    assert args[2].meta["val"].numel() == 64


class Exported(torch.nn.Module):
    """A module, as `torch.export` wants one."""

    def forward(self, x, z, w):
        return QUANT(NORM(x, z, w).flatten(1))


def test_an_exported_program_fuses_in_a_package(tmp_path):
    """`torch.export` puts checks of dtypes behind casts; AOTInductor runs a copy of the pass."""
    tensors, fusion = inputs(), FusionPass("cpu", expect=1)
    program = torch.export.export(Exported(), tensors)
    assert any("_assert_tensor_metadata" in str(node.target) for node in program.graph.nodes)
    package = torch._inductor.aoti_compile_and_package(
        program, package_path=str(tmp_path / "site.pt2"), inductor_configs={"post_grad_custom_pre_pass": fusion}
    )
    assert len(fusion.report().fused) == 1, str(fusion.report())
    got, want = torch._inductor.aoti_load_package(package)(*tensors), Exported()(*tensors)
    assert all(map(same, got, want))


def test_the_specs_of_presets_are_read():
    """A preset's own words come back from its graph."""
    norm, quant = GatedNorm.qwen3_next(), GroupQuant.vllm_native()
    args = fuses(lambda x, z, w: reference.group_quant(reference.rms_norm_gated(x, z, w, norm), quant), *inputs())
    quant = replace(quant, fp8_max=None)  # the dtype's own is not said
    assert args[4:] == schema.scalars(norm, quant)
