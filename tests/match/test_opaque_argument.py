"""An opaque quantisation is what its op makes of its argument: of that shape and that dtype, not of the norm's."""

import pytest
import torch
import torch.nn.functional as F

from fusionlib import FusionPass, GroupQuant, group_quant
from fusionlib.layers import BlockFP8Linear
from fusionlib.match import OpaqueQuant, register_quant_op
from fusionlib.match.opaque import readers_kept
from tests.spellings import FP8, NormSpelling, inputs, run_rewritten
from tests.support import same

LAYOUTS = [
    GroupQuant(),
    GroupQuant(scale_layout="column_major"),
    GroupQuant(scale_layout="column_major_padded"),
    GroupQuant(scale_layout="vector"),
    GroupQuant(scale_format="ue8m0", scale_layout="packed_int32"),
    GroupQuant.deepgemm(blackwell=True),
]


def normed(x, z, w):
    return NormSpelling()(x, z, w).flatten(1)


def fuses_and_equals(fn, *tensors, dynamic=False):
    """Codes and scales of the fused graph in the shapes, strides, dtypes and bits of eager's."""
    got, report, _ = run_rewritten(fn, *tensors, dynamic=dynamic)
    assert len(report.fused) == 1 and not report.refused, str(report)
    want = fn(*tensors)
    assert len(got) == len(want) and all(map(same, got, want))


def gate_first(x, gate, weight):
    gated = x.float() * F.silu(gate.float())
    return weight * (gated * torch.rsqrt(gated.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


@pytest.mark.parametrize("sequence", [1, 2, 12])
def test_a_sequence_is_not_taken_for_heads(sequence):
    x, gate = torch.randn(2, 2, sequence, 256).bfloat16()
    weight = torch.rand(256).bfloat16()
    fuses_and_equals(lambda *a: group_quant(gate_first(*a).view(-1, 256), GroupQuant()), x, gate, weight)


def test_the_mamba2_family_before_a_block_fp8_linear():
    x, gate = torch.randn(2, 2, 12, 256).bfloat16()
    weight = torch.rand(256).bfloat16()
    linear = BlockFP8Linear.from_linear(torch.nn.Linear(256, 128, bias=False))

    def model(x, gate, weight):
        return linear(gate_first(x, gate, weight))

    fusion = FusionPass("cpu", expect=1)
    got = torch.compile(model, options={"post_grad_custom_pre_pass": fusion})(x, gate, weight)
    # Eager, since Inductor's own code leaves out the rounding between the norm and the weight.
    assert len(fusion.report().fused) == 1 and torch.equal(got, model(x, gate, weight))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic tokens"])
@pytest.mark.parametrize("quant", LAYOUTS, ids=lambda quant: quant.scale_layout)
def test_one_head_a_row(quant, dynamic):
    """Four heads of 128 in rows of 128: four times the tokens, one group each."""
    fuses_and_equals(lambda *a: group_quant(normed(*a).view(-1, 128), quant), *inputs(), dynamic=dynamic)


def test_a_row_that_no_norm_fits_into_is_refused():
    _, report, _ = run_rewritten(lambda *a: group_quant(normed(*a).view(-1, 64), GroupQuant(64)), *inputs())
    assert [site.code for site in report] == ["mean_axis"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("round_scale", [False, True])
def test_a_widened_argument_rounds_no_scale(dtype, round_scale):
    """`round_scale` rounds to the dtype of the argument: to float32 behind `.float()`, which is no rounding."""
    quant = GroupQuant(floor=1e-4, round_scale=round_scale)  # a floor that float16 can hold as a scale
    fuses_and_equals(lambda *a: group_quant(normed(*a).float(), quant), *inputs(dtype=dtype))
    fuses_and_equals(lambda *a: group_quant(normed(*a), quant), *inputs(dtype=dtype))


def transposed(tokens, groups):
    """As vLLM allocates column-major scales."""
    return torch.empty((groups, tokens), dtype=torch.float32).permute(-1, -2)


def cut(tokens, groups):
    """As SGLang does: room for whole vectors of four, of which the tokens are a part."""
    padded = (tokens + 3) // 4 * 4
    return torch.empty((groups, padded), dtype=torch.float32).transpose(-1, -2)[..., :tokens, :]


def strided(tokens, groups):
    """As vLLM allocates them for TMA."""
    return torch.empty_strided((tokens, groups), (1, (tokens + 3) // 4 * 4), dtype=torch.float32)


@pytest.fixture
def quant_():
    """An op of another project that writes codes and scales into arguments."""
    with readers_kept(), torch.library._scoped_library("fusionlib_written", "DEF") as lib:
        lib.define("quant_(Tensor y, Tensor(a!) codes, Tensor(b!) scale, int group) -> ()")

        def write(y, codes, scale, group):
            made = group_quant(y, GroupQuant(group))
            codes.copy_(made[0])
            scale.copy_(made[1])

        lib.impl("quant_", write, "CompositeExplicitAutograd")
        torch.library.register_fake("fusionlib_written::quant_", lambda *a: None, lib=lib)
        yield torch.ops.fusionlib_written.quant_


def writing(quant_, allocate):
    def fn(x, z, w):
        y = normed(x, z, w)
        codes, scale = torch.empty_like(y, dtype=FP8), allocate(y.shape[0], y.shape[1] // 128)
        quant_(y, codes, scale, 128)
        return codes, scale

    return fn


def reads(quant_, layout):
    spec = GroupQuant(scale_layout=layout)
    register_quant_op(quant_.default, lambda a: OpaqueQuant(a["y"], spec, codes="codes", scale="scale"))


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic tokens"])
@pytest.mark.parametrize("tokens", [6, 8])
@pytest.mark.parametrize(
    ("allocate", "layout"),
    [(transposed, "column_major"), (cut, "column_major_padded"), (strided, "column_major_padded")],
)
def test_scales_are_written_where_engines_allocate_them(quant_, allocate, layout, tokens, dynamic):
    reads(quant_, layout)
    fuses_and_equals(writing(quant_, allocate), *inputs(tokens=tokens), dynamic=dynamic)


def test_an_allocation_that_is_read_whole_is_left_alone(quant_):
    """Behind the last token it holds what the op did not write; the fused op would not return it."""
    reads(quant_, "column_major_padded")

    def whole(x, z, w):
        y = normed(x, z, w)
        codes, room = torch.empty_like(y, dtype=FP8), torch.zeros(4, 8)
        quant_(y, codes, room.t()[:6], 128)
        return codes, room

    got, report, _ = run_rewritten(whole, *(tensors := inputs()))
    assert [site.code for site in report] == ["opaque_quant"], str(report)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(got, whole(*tensors), strict=True))


def test_a_written_part_that_starts_inside_is_refused(quant_):
    reads(quant_, "column_major_padded")

    def fn(x, z, w):
        y = normed(x, z, w)
        codes, room = torch.empty_like(y, dtype=FP8), torch.zeros(5, 8)
        quant_(y, codes, room[1:].t()[:6], 128)
        return codes, room[1:].t()[:6]

    _, report, _ = run_rewritten(fn, *inputs())
    assert [site.code for site in report] == ["opaque_quant"], str(report)
