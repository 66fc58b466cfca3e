"""Norms that are multiplied by one number per token behind their rounding, as padding masks are, and near misses."""

from __future__ import annotations

import pytest
import torch

from fusionlib import GroupQuant, RMSNorm, op
from fusionlib.fusions import OpaqueProducer, register_producer_op
from fusionlib.fusions.producer_ops import producers_kept
from fusionlib.match.graph import is_add, peel_views
from fusionlib.rewrite import FusionPass
from fusionlib.testing.run_edited import run_edited
from tests.spellings import QuantSpelling, run_rewritten
from tests.support import same

BATCH, SEQUENCE, HIDDEN = 2, 5, 512
NATIVE = QuantSpelling()


def rms(value, weight=None, dtype=torch.bfloat16):
    value = value.float()
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (value if weight is None else value * weight.float()).to(dtype)


def mask_padding(hidden, mask):
    """transformers' `apply_mask_to_padding_states`, line by line."""
    return (hidden * mask[:, :, None]).to(hidden.dtype)


def quantised(y):
    return NATIVE(y.reshape(-1, HIDDEN))


def hidden(dtype=torch.bfloat16):
    """[batch, sequence, hidden] with what is not a number, and zeros of both signs, where tokens are masked."""
    x = torch.randn(BATCH, SEQUENCE, HIDDEN).to(dtype)
    x[0, 0, 3], x[0, 1], x[1, 0, :7] = torch.nan, 0.0, -0.0
    return x


def weight():
    return torch.rand(HIDDEN).bfloat16() + 0.5


def padding(dtype=torch.int64):
    return torch.tensor([[0, 0, 0, 1, 1], [0, 1, 1, 1, 1]]).to(dtype)


def ran(fn, *args):
    """(the report, the calls of the op), once the results were seen to be eager's."""
    got, report, graphs = run_rewritten(fn, *args)
    want = fn(*args)
    assert len(got) == len(want) and all(map(same, got, want)), str(report)
    return report, [node for graph in graphs for node in graph.nodes if node.target in op.RMS_NORM.overloads]


def factor_of(fn, *args):
    """(the name of the op, the node that it multiplies by) of the one site of `fn`."""
    report, (call,) = ran(fn, *args)
    assert len(report.fused) == 1 and not report.refused, str(report)
    assert ("times one number per token" in report.fused[0].what) == (call.args[3] is not None)
    return call.target._schema.name.split("::")[1], call.args[3]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8, torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("opaque", [False, True])
def test_a_mask_of_any_dtype_is_read_as_it_is(dtype, opaque):
    def fn(x, w, mask):
        y = mask_padding(rms(x, w), mask)
        return op.group_quant(y.view(-1, HIDDEN), GroupQuant()) if opaque else quantised(y)

    name, factor = factor_of(fn, hidden(), weight(), padding(dtype))
    assert name == "rms_norm_group_quant" and factor.op == "placeholder" and factor.meta["val"].dtype is dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_values_of_other_dtypes(dtype):
    """An integer that the value's dtype cannot hold is rounded to it, as it is promoted."""
    mask = padding()
    mask[0, 3], mask[1, 2] = 2049, 70001
    factor_of(lambda x, w, m: quantised(mask_padding(rms(x, w, dtype), m)), hidden(dtype), weight(), mask)


SPELLINGS = {
    "mask first": lambda y, m: m[:, :, None] * y,
    "unsqueezed": lambda y, m: y * m.unsqueeze(-1),
    "expanded": lambda y, m: y * m[:, :, None].expand_as(y),
    "in rows": lambda y, m: (y.view(-1, HIDDEN) * m.reshape(-1, 1)).view_as(y),
    "cast first": lambda y, m: y * m.to(y.dtype)[:, :, None],
    "in float32": lambda y, m: (y.float() * m.float()[:, :, None]).to(y.dtype),
    "computed": lambda y, m: y * (m > 0)[:, :, None],
    "negated": lambda y, m: y * ~(m < 1)[:, :, None],
    "times one": lambda y, m: mask_padding(y, m) * 1.0,
    "filled": lambda y, m: y * torch.ones_like(m).masked_fill(m == 0, 0)[:, :, None],
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_mask_is_written_in_many_ways(spelling):
    factor_of(lambda x, w, m: quantised(SPELLINGS[spelling](rms(x, w), m)), hidden(), weight(), padding())


LAYOUTS = {
    "the end of a longer mask": lambda: padding().repeat(1, 2)[:, -SEQUENCE:],
    "transposed": lambda: padding().t().contiguous().t(),
    "every other": lambda: padding().repeat_interleave(2, 1)[:, ::2],
    "one of all tokens": lambda: padding()[:1].expand(BATCH, SEQUENCE),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_strides_are_read_in_place(layout):
    mask = LAYOUTS[layout]()
    _, factor = factor_of(lambda x, w, m: quantised(mask_padding(rms(x, w), m)), hidden(), weight(), mask)
    assert factor.op == "placeholder" and factor.meta["val"].stride() == mask.stride() != (SEQUENCE, 1)


def test_a_slice_that_the_graph_copies_is_read_where_it_is():
    """`create_recurrent_attention_mask` makes its slice contiguous."""

    def fn(x, w, m):
        return quantised(mask_padding(rms(x, w), m[:, -SEQUENCE:].contiguous()))

    _, factor = factor_of(fn, hidden(), weight(), padding().repeat(1, 2))
    assert factor.meta["val"].stride() == (2 * SEQUENCE, 1)


@pytest.mark.parametrize("shape", [(1, SEQUENCE), (BATCH, 1), (1, 1)])
def test_few_tokens(shape):
    x, mask = hidden()[: shape[0], : shape[1]].contiguous(), padding()[: shape[0], : shape[1]].contiguous()
    factor_of(lambda x, w, m: quantised(mask_padding(rms(x, w), m)), x, weight(), mask)


def test_rows_of_tokens_take_one_number_each():
    x = hidden().view(-1, HIDDEN)
    factor_of(lambda x, w, m: quantised(rms(x, w) * m[:, None]), x, weight(), padding().flatten())
    factor_of(lambda x, w, m: quantised(rms(x, w) * m), x, weight(), padding().view(-1, 1))


def test_tokens_may_be_dynamic():
    """Batch and sequence are two symbols; the op gets the mask with both."""

    def fn(x, w, mask):
        return quantised(mask_padding(rms(x, w), mask))

    fusion, tensors = FusionPass("cpu"), (hidden(), weight(), padding())
    for tensor in (tensors[0], tensors[2]):
        torch._dynamo.mark_dynamic(tensor, 0)
        torch._dynamo.mark_dynamic(tensor, 1)
    seen = []
    got = run_edited(lambda graph: seen.append(fusion.rewrite(graph)), fn, *tensors)
    (record,) = seen
    assert [site.fused for site in record.sites] == [True] and all(map(same, got, fn(*tensors)))


def test_what_others_read_of_a_masked_value_is_returned():
    """The projections of Qwen3-Next that are too narrow for FP8 read the masked value in 16 bits."""

    def fn(x, w, mask):
        y = mask_padding(rms(x, w), mask)
        return *quantised(y), y * 2, y.view(-1, HIDDEN).t().contiguous()

    name, _ = factor_of(fn, hidden(), weight(), padding())
    assert name == "rms_norm_group_quant_with_value"


def test_a_sum_is_returned_behind_the_mask():
    def fn(x, residual, w, mask):
        total = x + residual
        return *quantised(mask_padding(rms(total, w), mask)), total * 2

    report, (call,) = ran(fn, hidden(), torch.randn(BATCH, SEQUENCE, HIDDEN).bfloat16(), weight(), padding())
    assert call.target._schema.name.endswith("_with_sum") and len(report.fused) == 1, str(report)
    assert [peel_views(node).op for node in call.args[:2]] == ["placeholder"] * 2


def test_a_mask_of_the_sum_leaves_the_sum_where_it_is():
    """The call reads the mask, so what the mask is made of must come before the call."""

    def fn(x, residual, w):
        total = x + residual
        return *quantised(rms(total, w) * (total.mean(-1, keepdim=True) > 0)), total

    report, (call,) = ran(fn, hidden(), torch.randn(BATCH, SEQUENCE, HIDDEN).bfloat16(), weight())
    assert len(report.fused) == 1 and call.args[1] is None and is_add(peel_views(call.args[0]))


@pytest.mark.parametrize("masked_first", [False, True])
def test_a_value_that_is_quantised_with_and_without_its_mask_is_two_calls(masked_first):
    """Falcon-H1: a Mamba mixer masks what attention reads as it is. Nothing is stored that nobody reads."""

    def fn(x, residual, w, mask):
        total = x + residual
        y = rms(total, w)
        both = [mask_padding(y, mask), y] if masked_first else [y, mask_padding(y, mask)]
        return *quantised(both[0]), *quantised(both[1]), total * 2

    report, calls = ran(fn, hidden(), torch.randn(BATCH, SEQUENCE, HIDDEN).bfloat16(), weight(), padding())
    assert len(report.fused) == 2 and not report.refused, str(report)
    plain, masked = sorted(calls, key=lambda call: call.args[3] is not None)
    assert plain.target._schema.name.endswith("group_quant_with_sum") and plain.args[1] is not None
    assert masked.target._schema.name.endswith("rms_norm_group_quant") and peel_views(masked.args[0]) in plain.users


def test_a_value_that_others_read_without_its_mask_stays():
    def fn(x, w, mask):
        y = rms(x, w)
        early = y.float().mean(-1)
        return *quantised(mask_padding(y, mask)), early, y * 2

    report, (call,) = ran(fn, hidden(), weight(), padding())
    assert len(report.fused) == 1 and call.target is op.RMS_NORM.plain


def test_two_values_with_one_mask():
    def fn(x, w, mask):
        first = quantised(mask_padding(rms(x, w), mask))
        return *first, *quantised(mask_padding(rms(first[0].float().bfloat16().view_as(x)), mask))

    report, calls = ran(fn, hidden(), weight(), padding())
    assert len(report.fused) == 2 and {call.args[3].name for call in calls} == {calls[0].args[3].name}


# What is refused, and what is left to others.


def in_float32(y, mask):
    return y * mask.float()[:, :, None]


def before_the_rounding(y, mask):
    return (y.float() * mask.float()[:, :, None] * 3).bfloat16()


def integers_in_float32(y, mask):
    return (y.float() * mask[:, :, None]).bfloat16()


def in_float64(y, mask):
    return (y * mask.double()[:, :, None]).bfloat16()


def to_another_dtype(y, mask):
    return (y * mask.float()[:, :, None]).half()


def of_elements(y, mask):
    return y * mask.float().mean() * mask.sum()


def of_sequences(y, mask):
    return y * mask[:, :1, None]


def of_positions(y, mask):
    return y * mask[:1, :, None]


def of_heads(y, mask):
    return (y.unflatten(-1, (4, 128)) * mask[:, :4].repeat(1, 5).view(BATCH, SEQUENCE, 4, 1)).flatten(-2)


def of_groups(y, mask):
    return (y.view(BATCH, -1, 128) * mask.repeat(1, 4)[:, :, None]).view_as(y)


def twice(y, mask):
    return y * mask[:, :, None] * mask[:, :, None]


def and_a_number(y, mask):
    return mask_padding(y, mask) * 0.5


def in_a_where(y, mask):
    return torch.where(mask[:, :, None] > 0, y, 0.0)


REFUSED = {
    in_float32: "rounding",
    before_the_rounding: "not_rms_norm",
    integers_in_float32: "rounding",
    in_float64: "rounding",
    to_another_dtype: "rounding",
    of_elements: "not_rms_norm",
    of_sequences: "not_rms_norm",
    of_positions: "not_rms_norm",
    of_heads: "token_factor",
    of_groups: "token_factor",
    twice: "not_rms_norm",
    and_a_number: "rounding",
    in_a_where: "",
}


@pytest.mark.parametrize("masked", REFUSED, ids=lambda fn: fn.__name__)
def test_refused_or_left_to_others(masked):
    report, calls = ran(lambda x, w, m: quantised(masked(rms(x, w), m)), hidden(), weight(), padding())
    (site,) = report
    expected = ("refused", REFUSED[masked], "rms_norm") if REFUSED[masked] else ("unclaimed", "", "")
    assert (site.outcome, site.code, site.fusion) == expected and not calls, str(report)


def test_a_mask_in_front_of_the_norm_is_part_of_what_is_normed():
    def fn(x, w, mask):
        return quantised(rms(mask_padding(x, mask), w))

    _, factor = factor_of(fn, hidden(), weight(), padding())
    assert factor is None


def test_a_mask_inside_the_norm_is_refused():
    """Between the root and the weight in float32, and before the output is rounded."""

    def fn(x, w, mask):
        value = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return quantised((value * mask[:, :, None] * w.float()).bfloat16())

    report, _ = ran(fn, hidden(), weight(), padding())
    assert [site.code for site in report.refused] == ["not_rms_norm"]


def test_other_values_are_not_of_this_fusion_because_they_are_masked():
    for value in (lambda x: x, lambda x: torch.nn.functional.layer_norm(x.float(), (HIDDEN,)).bfloat16()):
        report, _ = ran(lambda x, m, value=value: quantised(mask_padding(value(x), m)), hidden(), padding())
        assert [site.outcome for site in report] == ["unclaimed"]


def test_a_mask_with_a_gradient_is_training():
    mask = padding(torch.float32).requires_grad_()

    def fn(x, w, m):
        y = mask_padding(rms(x, w), m)
        return *quantised(y), y

    fusion = FusionPass("cpu")
    got = run_edited(fusion, fn, torch.randn(BATCH, SEQUENCE, HIDDEN).bfloat16(), weight(), mask, grad=True)
    assert {site.code for site in fusion.report()} == {"training"}
    got[2].float().sum().backward()
    assert mask.grad is not None and (mask.grad != 0).all()


def test_a_masked_opaque_norm():
    spec = RMSNorm(HIDDEN)
    with producers_kept(), torch.library._scoped_library("fusionlib_masked", "DEF") as lib:
        lib.define("norm(Tensor x, Tensor weight) -> Tensor")
        lib.impl("norm", lambda x, w: rms(x, w), "CPU")
        torch.library.register_fake("fusionlib_masked::norm", lambda x, w: torch.empty_like(x), lib=lib)
        reader = lambda a: OpaqueProducer(spec, {"x": a["x"], "residual": None}, {"weight": a["weight"]})  # noqa: E731
        register_producer_op("fusionlib_masked::norm", reader, spec=RMSNorm)

        def fn(x, w, mask):
            return quantised(mask_padding(torch.ops.fusionlib_masked.norm(x, w), mask))

        _, factor = factor_of(fn, hidden(), weight(), padding())
    assert factor.op == "placeholder"
