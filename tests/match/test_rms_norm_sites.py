"""RMS norms that are read otherwise than the scoreboard's, and those that are refused or left to others."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from fusionlib import GroupQuant, RMSNorm, op
from tests.spellings import QuantSpelling, run_rewritten
from tests.support import same

HIDDEN = 512
QUANT = QuantSpelling()
NORM = RMSNorm.native(HIDDEN)


def rms(value, weight=None, dtype=torch.bfloat16, eps=1e-6):
    value = value.float()
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + eps)
    return (value if weight is None else value * weight.float()).to(dtype)


def tensors(dtype=torch.bfloat16):
    """x, residual [6, 512] and a weight [512]."""
    return torch.randn(6, HIDDEN).to(dtype), torch.randn(6, HIDDEN).to(dtype), torch.rand(HIDDEN).to(dtype) + 0.5


def quantised(y):
    return QUANT(y.reshape(-1, HIDDEN))


def ran(fn, *args):
    """(the report, the calls of the op in the rewritten graph), once the results were seen to be eager's."""
    got, report, graphs = run_rewritten(fn, *args)
    want = fn(*args)
    assert len(got) == len(want) and all(map(same, got, want)), str(report)
    calls = [node for graph in graphs for node in graph.nodes if node.target in op.RMS_NORM.overloads]
    return report, calls


def one_call(fn, *args):
    """(the name of the op, its tensors, its norm) of the one site of `fn`, which fuses and equals eager."""
    report, (call,) = ran(fn, *args)
    assert len(report.fused) == 1 and not report.refused, str(report)
    inputs, token_factor, scalars = call.args[:3], call.args[3], call.args[4:]
    assert token_factor is None
    return str(call.target).split(".")[1], inputs, op.RMS_NORM.specs(*scalars)[0]


def outcome(fn, *args):
    """(outcome, code, fusion) of the one site of `fn`, whose results are unchanged."""
    report, _ = ran(fn, *args)
    (site,) = report
    return site.outcome, site.code, site.fusion


# A sum that the op cannot return in the form that others read is computed where it is, and read.


def read_before_the_value(x, residual, weight):
    total = x + residual
    gate = total.mean(-1, keepdim=True)
    return *quantised(rms(total, weight)), gate


def read_in_float32(x, residual, weight):
    total = x.float() + residual.float()
    return *quantised(rms(total, weight)), total


def read_in_float32_and_rounded(x, residual, weight):
    total = x.float() + residual.float()
    return *quantised(rms(total, weight)), total, total.bfloat16()


def rounded_to_another_dtype(x, residual, weight):
    total = x.float() + residual.float()
    return *quantised(rms(total, weight)), total.half()


def cast_shared(x, residual, weight):
    wide = (x + residual).float()
    return *quantised(rms(wide, weight)), wide


def cast_and_sum_shared(x, residual, weight):
    total = x + residual
    wide = total.float()
    return *quantised(rms(wide, weight)), wide * 2, total


def view_shared(x, residual, weight):
    rows = (x.view(2, 3, HIDDEN) + residual.view(2, 3, HIDDEN)).view(-1, HIDDEN)
    return *quantised(rms(rows, weight)), rows * 2


def view_of_float32_shared(x, residual, weight):
    rows = (x.view(2, 3, HIDDEN).float() + residual.view(2, 3, HIDDEN).float()).view(-1, HIDDEN)
    return *quantised(rms(rows, weight)), rows * 2


def rounded_early(x, residual, weight):
    total = x.float() + residual.float()
    rounded = total.bfloat16()
    early = rounded * 2
    return *quantised(rms(total, weight)), rounded, early


def broadcast_row(x, residual, weight):
    total = x + residual[:1]
    return *quantised(rms(total, weight)), total


def broadcast_column(x, residual, weight):
    total = x + residual[:, :1]
    return *quantised(rms(total, weight)), total


def scaled_addend(x, residual, weight):
    total = torch.add(x, residual, alpha=2)
    return *quantised(rms(total, weight)), total


def another_16_bits(x, residual, weight):
    total = (x + residual.half()).bfloat16()
    return *quantised(rms(total, weight)), total


def another_16_bits_in_float32(x, residual, weight):
    total = x.float() + residual.half().float()
    return *quantised(rms(total, weight)), total.bfloat16()


def plus_a_number(x, residual, weight):
    total = x + 1.0
    return *quantised(rms(total, weight)), total


STAYS = (
    read_before_the_value, read_in_float32, read_in_float32_and_rounded, rounded_to_another_dtype, cast_shared,
    cast_and_sum_shared, view_shared, view_of_float32_shared, rounded_early, broadcast_row, broadcast_column,
    scaled_addend, another_16_bits, another_16_bits_in_float32, plus_a_number,
)  # fmt: skip


@pytest.mark.parametrize("fn", STAYS, ids=lambda fn: fn.__name__)
def test_a_sum_that_others_need_earlier_or_in_another_form_is_read_and_not_computed(fn):
    name, (x, residual, _), norm = one_call(fn, *tensors())
    assert name == "rms_norm_group_quant" and residual is None and "sum" not in norm.rounding
    assert x.op == "call_function"


@pytest.mark.parametrize("in_float32", [False, True])
def test_a_sum_that_is_read_behind_the_value_is_returned(in_float32):
    def fn(x, residual, weight):
        total = x.float() + residual.float() if in_float32 else x + residual
        codes, scale = quantised(rms(total, weight))
        total = total.bfloat16()
        return codes, scale, total * 2, total[:1], total.t().contiguous()

    name, (x, residual, weight), norm = one_call(fn, *tensors())
    assert name == "rms_norm_group_quant_with_sum"
    assert [node.op for node in (x, residual, weight)] == ["placeholder"] * 3
    assert ("sum" in norm.rounding) is not in_float32


def test_a_sum_that_nobody_reads_again_is_not_stored():
    name, (_, residual, _), norm = one_call(lambda x, r, w: quantised(rms(x + r, w)), *tensors())
    assert name == "rms_norm_group_quant" and residual.op == "placeholder" and norm == NORM


def test_the_residual_in_float32_is_the_second_of_the_two_in_either_order():
    x, residual, weight = tensors()
    for fn in (lambda x, r, w: x + r, lambda x, r, w: r + x):

        def path(x, r, w, fn=fn):
            total = fn(x, r, w)
            return *quantised(rms(total, w)), total

        _, (first, second, _), norm = one_call(path, x, residual.float(), weight)
        assert first.meta["val"].dtype is torch.bfloat16 and second.meta["val"].dtype is torch.float32
        assert norm.out_dtype is None and norm.rounding == {"output"}


def test_twice_the_value_is_a_sum_with_itself():
    name, (x, residual, _), norm = one_call(lambda x, w: (*quantised(rms(x + x, w)), x + 0), *tensors()[::2])
    assert name == "rms_norm_group_quant" and x is residual and norm == NORM


@pytest.mark.parametrize("in_float32", [False, True])
def test_of_three_terms_the_first_two_are_added_before(in_float32):
    def fn(x, residual, third, weight):
        first, second, last = (t.float() if in_float32 else t for t in (x, residual, third))
        total = first + second + last
        return *quantised(rms(total, weight)), total.bfloat16()

    x, residual, weight = tensors()
    name, inputs, _ = one_call(fn, x, residual, torch.randn(6, HIDDEN).bfloat16(), weight)
    assert name == "rms_norm_group_quant_with_sum"
    assert sorted(node.op for node in inputs) == ["call_function", "placeholder", "placeholder"]


def test_a_sum_written_into_the_residual_is_returned():
    """In-place additions of engines: functionalised, the residual is written at the end."""

    def fn(x, residual, weight):
        residual += x
        return quantised(rms(residual, weight))

    x, residual, weight = tensors()
    got, report, _ = run_rewritten(fn, x, ours := residual.clone(), weight)
    want = fn(x, theirs := residual.clone(), weight)
    assert len(report.fused) == 1 and all(map(same, got, want)) and same(ours, theirs)


def test_the_sum_of_one_layer_is_the_residual_of_the_next():
    def fn(x, residual, weight):
        found = []
        for _ in range(4):
            residual = x + residual
            codes, scale = quantised(rms(residual, weight))
            found += [codes, scale]
            x = codes.float().bfloat16() * 0.5
        return *found, residual

    report, calls = ran(fn, *tensors())
    assert len(report.fused) == len(calls) == 4
    for earlier, later in itertools.pairwise(calls):
        sums = [node for node in earlier.users if node.args[1] == 2]
        assert len(sums) == 1 and sums[0] in later.args[:2]


def test_two_norms_of_one_sum_compute_it_once():
    def fn(x, residual, weight):
        total = x + residual
        return *quantised(rms(total, weight)), *quantised(rms(total)), total

    report, (first, second) = ran(fn, *tensors())
    assert len(report.fused) == 2
    assert first.args[1] is not None and second.args[1] is None and second.args[0] in first.users


@pytest.mark.parametrize("shape", [(1, HIDDEN), (1, 1, HIDDEN), (2, 1, HIDDEN), (1, 3, HIDDEN)])
def test_few_tokens_of_any_shape(shape):
    def fn(x, residual, weight):
        total = x + residual
        return *quantised(rms(total, weight)), total

    name, *_ = one_call(fn, torch.randn(shape).bfloat16(), torch.randn(shape).bfloat16(), tensors()[2])
    assert name == "rms_norm_group_quant_with_sum"


def test_no_tokens():
    empty = torch.randn(0, HIDDEN).bfloat16()
    one_call(lambda x, r, w: (*op.group_quant(rms(x + r, w), GroupQuant()), x + r), empty, empty, tensors()[2])


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 3e38])
def test_what_is_not_a_number_is_what_eager_makes_of_it(special):
    x, residual, weight = tensors()
    x[0], x[1, 5], residual[2, 7] = special, special, special
    one_call(lambda x, r, w: (*quantised(rms(x + r, w)), x + r), x, residual, weight)


# What is refused, and what is no RMS norm at all.


def times_a_number(x, residual, weight):
    return quantised((rms(x, weight, torch.float32) * 1.5).bfloat16())


def times_a_scalar_tensor(x, residual, weight):
    return quantised((rms(x, weight, torch.float32) * residual[0, 0].float()).bfloat16())


def two_weights(x, residual, weight):
    return quantised((rms(x, weight, torch.float32) * residual[0].float()).bfloat16())


def weight_outside_of_the_rounding_twice(x, residual, weight):
    return quantised(rms(x) * weight * weight)


def with_bias(x, residual, weight):
    return quantised((rms(x, weight, torch.float32) + weight.float()).bfloat16())


def weight_of_half_a_norm(x, residual, weight):
    return quantised((rms(x, None, torch.float32).unflatten(1, (2, 256)) * weight[:256].float()).bfloat16().flatten(1))


def over_tokens(x, residual, weight):
    value = x.float()
    return quantised((value * torch.rsqrt(value.pow(2).mean(0, keepdim=True) + 1e-6) * weight).bfloat16())


def negative_eps(x, residual, weight):
    return quantised(rms(x, weight, eps=-1e-6))


def rounded_to_half(x, residual, weight):
    return quantised(rms(x, None, torch.float16).float().mul(weight.float()).bfloat16())


def root_returned(x, residual, weight):
    value = x.float()
    root = torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6)
    return *quantised((value * root * weight.float()).bfloat16()), root


def value_read_in_float32(x, residual, weight):
    y = rms(x, weight, torch.float32)
    return *quantised(y.bfloat16()), y


REFUSED = {
    times_a_number: "not_rms_norm",
    times_a_scalar_tensor: "not_rms_norm",
    two_weights: "order",
    weight_outside_of_the_rounding_twice: "order",
    with_bias: "bias",
    weight_of_half_a_norm: "weight_shape",
    over_tokens: "mean_axis",
    negative_eps: "eps",
    rounded_to_half: "rounding",
    root_returned: "intermediate_used",
    value_read_in_float32: "intermediate_used",
}


@pytest.mark.parametrize("fn", REFUSED, ids=lambda fn: fn.__name__)
def test_refused_by_the_rms_norm(fn):
    assert outcome(fn, *tensors()) == ("refused", REFUSED[fn], "rms_norm")


def layer_norm(x, residual, weight):
    return quantised(F.layer_norm(x.float(), (HIDDEN,), weight.float()).bfloat16())


def layer_norm_spelled_out(x, residual, weight):
    value = x.float()
    value = value - value.mean(-1, keepdim=True)
    return quantised((value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6) * weight).bfloat16())


def l2_norm(x, residual, weight):
    return quantised(F.normalize(x.float(), dim=-1).bfloat16())


def l2_norm_by_root(x, residual, weight):
    value = x.float()
    return quantised((value * torch.rsqrt(value.pow(2).sum(-1, keepdim=True) + 1e-6)).bfloat16())


def of_magnitudes(x, residual, weight):
    value = x.float()
    return quantised((value * torch.rsqrt(value.abs().mean(-1, keepdim=True) + 1e-6)).bfloat16())


@pytest.mark.parametrize("fn", [layer_norm, layer_norm_spelled_out, l2_norm, l2_norm_by_root, of_magnitudes])
def test_other_norms_are_unclaimed(fn):
    assert outcome(fn, *tensors()) == ("unclaimed", "", "")


def test_a_root_of_another_tensor_looks_like_a_gate_and_is_refused():
    def fn(x, residual, weight):
        root = torch.rsqrt(residual.float().pow(2).mean(-1, keepdim=True) + 1e-6)
        return quantised((x.float() * root * weight.float()).bfloat16())

    assert outcome(fn, *tensors()) == ("refused", "mean_source", "gated_norm")


def test_a_norm_times_a_whole_tensor_is_left_to_the_gated_norm():
    def fn(x, residual, weight):
        return quantised((rms(x, weight, torch.float32) * residual.float()).bfloat16())

    assert outcome(fn, *tensors()) == ("refused", "activation", "gated_norm")
