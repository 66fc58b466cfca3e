"""Each shipped reader of a quantisation: its op fuses behind a norm, and codes, scales, shapes and strides stay."""

import pytest
import torch

from fusionlib import FusionPass
from fusionlib.engines import SHIPPED
from fusionlib.reference import power_of_two_at_least
from fusionlib.testing.run_edited import run_edited
from tests.engines.standins import COMPUTES, FP8, defined, rows_of
from tests.spellings import NormSpelling, inputs, run_rewritten
from tests.support import same

TOKENS, HIDDEN = 6, 512
LAYOUTS = ["row_major", "column_major", "column_major_padded"]


def value(x, z, w):
    return NormSpelling()(x, z, w).flatten(1)


def in_groups(op, layout, ue8m0=False, eps=1e-10, size=128, kind=FP8, tail=(False, False)):
    """A call of an op that writes codes and scales, as engines allocate them."""

    def fn(x, z, w):
        y = value(x, z, w)
        codes, scale = torch.empty_like(y, dtype=kind), rows_of(y.shape[0], y.shape[1] // size, layout)
        most = torch.finfo(kind).max if kind.is_floating_point else 127.0
        op(y, codes, scale, size, eps, -most, most, *((ue8m0,) if ue8m0 is not None else ()), *tail)
        return codes, scale

    return fn


def fuses_and_equals(fn, *tensors, dynamic=False):
    """The spec in the report, once the fused graph returned what the unfused function returns."""
    got, report, _ = run_rewritten(fn, *tensors, dynamic=dynamic)
    assert len(report.fused) == 1 and not report.refused, str(report)
    want = fn(*tensors)
    assert len(got) == len(want) and all(map(same, got, want))
    return report.fused[0].what


def refused(fn, *tensors):
    got, report, _ = run_rewritten(fn, *tensors)
    (site,) = report
    assert not site.fused and all(map(same, got, fn(*tensors)))
    return site


def poor(x, z, w):
    """Inputs of which a row and a group of another are zeros."""
    x[0], x[1, 0] = 0, 0
    return x, z, w


@pytest.fixture(params=[False, True], ids=["auto_functionalized", "auto_functionalized_v2"])
def wrapper(request):
    with torch._inductor.config.patch(enable_auto_functionalized_v2=request.param):
        yield request.param


def test_every_reader_of_an_op_has_a_stand_in():
    assert set(COMPUTES) == {name for name, each in SHIPPED.items() if "::" in name}
    assert all(each.source and (each.schemas or "kernel" in each.kind) for each in SHIPPED.values())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_vllm_writes_scales_where_the_strides_say(wrapper, layout):
    with defined("_C::per_token_group_fp8_quant") as op:
        assert layout in fuses_and_equals(in_groups(op, layout, tail=(False, False)), *poor(*inputs()))


@pytest.mark.parametrize("layout", ["row_major", "column_major_padded"])
def test_vllm_with_tokens_open(layout):
    with defined("_C::per_token_group_fp8_quant") as op:
        fuses_and_equals(in_groups(op, layout), *inputs(), dynamic=True)


@pytest.mark.parametrize("eps", [1e-10, 1e-3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_vllm_rounds_scales_up(dtype, eps):
    """The floor is 1e-10 on the scale, or eps on amax if that is more."""
    x, z, w = poor(*inputs(dtype=dtype))
    x[2] *= 1e-5
    with defined("_C::per_token_group_fp8_quant") as op:
        assert "ue8m0" in fuses_and_equals(in_groups(op, "column_major", True, eps), x, z, w)


def test_the_power_of_two_by_log2_is_that_by_bits_for_16_bits():
    """Of every bfloat16 and float16 maximum, over 448, 240 and 224; of float32 it is not, so that is refused."""

    def both(amax, most):
        scale = (amax / torch.tensor(most)).clamp(min=1e-10)
        return torch.exp2(torch.ceil(torch.log2(scale))), power_of_two_at_least(scale)

    bits = torch.arange(1, 0x7F80, dtype=torch.int16)
    for kind, last in ((torch.bfloat16, 0x7F80), (torch.float16, 0x7C00)):
        for most in (448.0, 240.0, 224.0):
            assert torch.equal(*both(bits[: last - 1].view(kind).float(), most))
    near = torch.tensor([448.0 * 2**20]).nextafter(torch.tensor(torch.inf))
    assert not torch.equal(*both(near, 448.0))


def test_vllm_refuses_to_round_a_float32_value_by_log2():
    with defined("_C::per_token_group_fp8_quant") as op:
        assert refused(in_groups(op, "row_major", True), *inputs(dtype=torch.float32)).code == "ue8m0"


def test_vllm_packs(wrapper):
    with defined("_C::per_token_group_fp8_quant_packed") as op:
        fn = in_groups(op, "packed_int32", None, tail=())
        assert "packed_int32" in fuses_and_equals(fn, *poor(*inputs(heads=5)))


@pytest.mark.parametrize("dims", [1, 2])
def test_vllm_per_token(wrapper, dims):
    def fn(x, z, w):
        y = value(x, z, w)
        codes, scale = torch.empty_like(y, dtype=FP8), torch.empty((y.shape[0], 1)[:dims])
        op(codes, y, scale, None)
        return codes, scale

    with defined("_C::dynamic_per_token_scaled_fp8_quant") as op:
        assert "per 512 (scale >=" in fuses_and_equals(fn, *poor(*inputs()))


def test_vllms_largest_code_of_fnuz_is_224():
    def fn(x, z, w):
        y = value(x, z, w)
        codes, scale = torch.empty_like(y, dtype=torch.float8_e4m3fnuz), torch.empty(y.shape[0], 1)
        op(codes, y, scale, None)
        return codes, scale

    with defined("_C::dynamic_per_token_scaled_fp8_quant") as op:
        fuses_and_equals(fn, *poor(*inputs()))


@pytest.mark.parametrize("name", ["vllm::rocm_aiter_group_fp8_quant", "vllm::triton_per_token_group_quant_fp8"])
def test_vllms_ops_that_return(name):
    with defined(name) as op:
        fuses_and_equals(lambda *a: op(value(*a), 128), *poor(*inputs()))


@pytest.mark.parametrize("own", ["sgl_per_token_group_quant_8bit", "sgl_per_token_group_quant_fp8"])
@pytest.mark.parametrize("layout", [*LAYOUTS, "packed_int32"])
def test_sglang(own, layout):
    with defined(f"sgl_kernel::{own}") as op:
        fn = in_groups(op, layout, layout == "packed_int32", tail=())
        assert layout in fuses_and_equals(fn, *poor(*inputs()))


def test_sglangs_second_version_packs():
    with defined("sgl_kernel::sgl_per_token_group_quant_8bit_v2") as op:
        fuses_and_equals(in_groups(op, "packed_int32", True, tail=(False, None)), *poor(*inputs(heads=5)))


@pytest.mark.parametrize("name", ["fbgemm::quantize_fp8_per_row", "mslk::quantize_fp8_per_row"])
@pytest.mark.parametrize("kind", [None, torch.float8_e5m2])
def test_fbgemm_per_row(name, kind):
    with defined(name) as op:
        assert "per 512 (scale >=" in fuses_and_equals(
            lambda *a: tuple(op(value(*a), None, None, kind)), *poor(*inputs())
        )


@pytest.mark.parametrize("name", ["fbgemm::quantize_fp8_per_row", "_C::per_token_group_fp8_quant"])
def test_a_value_of_three_dimensions(name):
    """[batch, sequence, hidden]: codes of that shape, scales [batch, sequence] or [batch, sequence, groups]."""

    def fn(x, z, w):
        y = value(x, z, w).view(2, 3, HIDDEN)
        if name.startswith("fbgemm"):
            return tuple(op(y))
        codes, scale = torch.empty_like(y, dtype=FP8), torch.empty(2, 3, HIDDEN // 128)
        op(y, codes, scale, 128, 1e-10, -448.0, 448.0, False, False, False)
        return codes, scale

    with defined(name) as op:
        fuses_and_equals(fn, *inputs())


# What cannot be taken.


def seen(fn, *tensors):
    """What the pass says of `fn`, whose graph does not run."""
    fusion, sites = FusionPass("cpu"), []

    def stop(graph):
        sites.extend(fusion.rewrite(graph).sites)
        raise RuntimeError("seen")

    with pytest.raises(Exception, match="seen"):
        run_edited(stop, fn, *tensors)
    (site,) = sites
    return site


def group_call(op, kind=FP8, size=128, room=lambda tokens: torch.empty(tokens, 4), low=-448.0):
    def fn(x, z, w):
        y = value(x, z, w)
        codes, scale = torch.empty_like(y, dtype=kind), room(y.shape[0])
        op(y, codes, scale, size, 1e-10, low, 448.0, False, False, False)
        return codes, scale

    return fn


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [
        ({"kind": torch.int8}, "fp8_dtype", "int8"),
        ({"room": lambda tokens: torch.zeros(tokens, 8)[:, :4]}, "opaque_quant", "strides [8, 1]"),
        ({"size": 96}, "group_crosses_tokens", "groups of 96"),
        ({"low": -440.0}, "fp8_max", "fp8_min -440"),
    ],
    ids=["int8", "a layout of its own", "a group that does not fit", "an uneven range"],
)
def test_what_vllm_cannot_have_fused(how, code, says):
    with defined("_C::per_token_group_fp8_quant") as op:
        site = seen(group_call(op, **how), *inputs())
        assert not site.fused and site.code == code and says in site.found, str(site)


def test_a_value_that_is_not_contiguous_is_none_of_the_ops():
    def fn(x, z, w):
        y = value(x, z, w)[:, :256]
        codes, scale = torch.empty(6, 256, dtype=FP8), torch.empty(6, 2)
        op(y, codes, scale, 128, 1e-10, -448.0, 448.0, False, False, False)
        return codes, scale

    with defined("_C::per_token_group_fp8_quant") as op:
        site = seen(fn, *inputs())
    assert site.code == "opaque_quant" and "contiguous" in site.expected


def test_vllm_per_token_with_an_upper_bound():
    def fn(x, z, w):
        y = value(x, z, w)
        codes, scale = torch.empty_like(y, dtype=FP8), torch.empty(y.shape[0], 1)
        op(codes, y, scale, x.new_ones(1, dtype=torch.float32))
        return codes, scale

    with defined("_C::dynamic_per_token_scaled_fp8_quant") as op:
        assert seen(fn, *inputs()).code == "scale_bound"


@pytest.mark.parametrize(
    ("name", "ue8m0"),
    [
        ("_C::per_token_group_fp8_quant_packed", None),
        ("sgl_kernel::sgl_per_token_group_quant_8bit", True),
    ],
)
def test_no_op_rounds_a_float32_value_by_log2(name, ue8m0):
    with defined(name) as op:
        site = seen(in_groups(op, "packed_int32", ue8m0, tail=()), *inputs(dtype=torch.float32))
    assert site.code == "ue8m0" and "log2" in site.expected


@pytest.mark.parametrize(("which", "name"), enumerate(("fuse_silu_and_mul", "masked_m")))
def test_sglangs_second_version_with_more_than_a_quantisation(which, name):
    def fn(x, z, w):
        tail = [False, None]
        tail[which] = x.new_ones(6, dtype=torch.int32) if which else True
        return in_groups(op, "packed_int32", True, tail=tail)(x, z, w)

    with defined("sgl_kernel::sgl_per_token_group_quant_8bit_v2") as op:
        site = seen(fn, *inputs())
    assert site.code == "opaque_quant" and site.expected == f"no {name}"


def test_a_transposed_part_is_left_alone():
    """Refused, and the graph computes what it did."""
    with defined("_C::per_token_group_fp8_quant") as op:
        site = refused(group_call(op, room=lambda tokens: torch.zeros(tokens, 8)[:, :4]), *inputs())
        assert site.code == "opaque_quant"


@pytest.mark.parametrize(
    ("name", "arguments", "code"),
    [
        ("trtllm::fp8_quantize_1x128", (), "quant_division"),
        ("trtllm::fp8_quantize_1x128", (True,), "scale_arithmetic"),
        ("fbgemm::quantize_fp8_per_row", (None, torch.ones(1)), "scale_bound"),
        ("fbgemm::quantize_fp8_per_row", (None, None, None, True), "opaque_quant"),
        ("vllm::rocm_aiter_group_fp8_quant", (64,), "opaque_quant"),
    ],
)
def test_what_no_spec_says(name, arguments, code):
    with defined(name) as op:
        site = seen(lambda x, z, w: tuple(op(value(x, z, w), *arguments)), *inputs())
        assert site.code == code and site.found, str(site)


def test_sglangs_second_version_multiplies():
    with defined("sgl_kernel::sgl_per_token_group_quant_8bit_v2") as op:
        site = seen(in_groups(op, "row_major", False, tail=(False, None)), *inputs())
        assert site.code == "quant_division" and "448 / amax" in site.found


def test_sglang_stores_exponents_packed_or_not_at_all():
    with defined("sgl_kernel::sgl_per_token_group_quant_8bit") as op:
        site = seen(in_groups(op, "column_major", True, tail=()), *inputs())
        assert site.code == "opaque_quant" and site.found == "column_major scales"


def test_another_version_of_an_op_is_refused_with_both_schemas():
    name, schema = (
        "vllm::triton_per_token_group_quant_fp8",
        "(Tensor x, int group_size, bool scaled) -> (Tensor, Tensor)",
    )

    def compute(x, group_size, scaled):
        return COMPUTES[name](x, group_size)

    with defined(name, schema, compute) as op:
        site = seen(lambda *a: op(value(*a), 128, False), *inputs())
    assert site.code == "opaque_quant" and "(Tensor x, int group_size) ->" in site.expected and "scaled" in site.found


def test_releases_of_sgl_kernel_mark_no_argument_as_written():
    """Their call has no effect that a compiler knows of: it is gone before any pass, and nothing is claimed."""
    name = "sgl_kernel::sgl_per_token_group_quant_8bit"
    schema = SHIPPED[name].schemas[0].replace("Tensor!", "Tensor")
    with defined(name, schema, lambda *a: None) as op:
        _, report, _ = run_rewritten(in_groups(op, "row_major", tail=()), *inputs())
    assert not list(report)
