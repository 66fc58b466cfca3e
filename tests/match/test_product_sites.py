"""Products with an activation that are read otherwise than the scoreboard's, and those that are refused."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from fusionlib import GroupQuant, op
from fusionlib.spec import ActAndMul
from tests.spellings import QuantSpelling, run_rewritten
from tests.support import same

HIDDEN = 512
QUANT = QuantSpelling()


def halves(dtype=torch.bfloat16):
    """gate, up [6, 512] and a weight [512]."""
    return *(2 * torch.randn(2, 6, HIDDEN)).to(dtype), torch.rand(HIDDEN).to(dtype) + 0.5


def quantised(y):
    return QUANT(y.reshape(-1, HIDDEN))


def ran(fn, *args):
    """(the report, the calls of the op in the rewritten graph), once the results were seen to be eager's."""
    got, report, graphs = run_rewritten(fn, *args)
    want = fn(*args)
    assert len(got) == len(want) and all(map(same, got, want)), str(report)
    return report, [node for graph in graphs for node in graph.nodes if node.target in op.ACT_AND_MUL.overloads]


def one_call(fn, *args):
    """(x, gate, what is computed) of the one call that `fn` becomes."""
    report, (call,) = ran(fn, *args)
    assert len(report.fused) == 1 and not report.refused, str(report)
    return *call.args[:2], op.ACT_AND_MUL.specs(*call.args[2:])[0]


def outcome(fn, *args):
    """(outcome, code, fusion) of the one site of `fn`, whose results are unchanged."""
    report, _ = ran(fn, *args)
    (site,) = report
    return site.outcome, site.code, site.fusion


# Where the tensors lie.


@pytest.mark.parametrize("step", [1, 2, 3])
def test_halves_are_read_where_they_lie_up_to_every_other_element(step):
    """Further apart, a copy comes first: lines of the cache would be read for the sake of a third of them."""
    wide = torch.randn(6, step * HIDDEN + 2 * HIDDEN * (step == 1)).bfloat16()

    def fn(wide):
        gate, up = (
            (wide[:, :HIDDEN], wide[:, HIDDEN : 2 * HIDDEN]) if step == 1 else (wide[:, ::step], wide[:, 1::step])
        )
        return quantised(F.silu(gate) * up)

    x, gate, _ = one_call(fn, wide)
    copied = [node for node in (x, gate) if "clone" in str(node.target)]
    assert len(copied) == (2 if step == 3 else 0)
    assert {node.meta["val"].stride(-1) for node in (x, gate)} == {1 if step == 3 else step}


@pytest.mark.parametrize("shape", [(6,), (2, 3), (1, 1), (1,)])
def test_the_gate_of_every_head_is_read_where_it_lies(shape):
    """Qwen3-Next: query and gate are chunks of every head of one projection."""
    projected, output = torch.randn(*shape, 4, 256).bfloat16(), torch.randn(*shape, HIDDEN).bfloat16()

    def fn(projected, output):
        _, gate = projected.chunk(2, -1)
        return quantised(output * torch.sigmoid(gate.reshape(*shape, -1)))

    _, gate, act = one_call(fn, projected, output)
    assert act == ActAndMul.sigmoid_gate()
    assert list(gate.meta["val"].shape[-2:]) == [4, 128] and gate.meta["val"].stride()[-2:] == (256, 1)


def test_no_tokens():
    empty = torch.randn(0, HIDDEN).bfloat16()
    one_call(lambda g, u: op.group_quant(F.silu(g) * u, GroupQuant()), empty, empty)


@pytest.mark.parametrize("special", [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, -100.0, 3e38])
@pytest.mark.parametrize("act", [F.silu, F.gelu, torch.sigmoid], ids=["silu", "gelu", "sigmoid"])
def test_what_is_not_a_number_is_what_eager_makes_of_it(act, special):
    gate, up, _ = halves()
    gate[0], gate[1, 5], up[2, 7] = special, special, special
    one_call(lambda g, u: quantised(act(g) * u), gate, up)


# What is taken for x and gate.


def test_two_activations_are_one_and_a_value():
    x, gate, act = one_call(lambda g, u: quantised(F.silu(g) * torch.sigmoid(u)), *halves()[:2])
    assert act == ActAndMul.swiglu() and gate.op == "placeholder" and x.op == "call_function"


def test_the_gate_may_be_the_value():
    x, gate, act = one_call(lambda g: quantised(F.silu(g) * g), halves()[0])
    assert x is gate and act == ActAndMul.swiglu()


def test_a_float32_gate():
    for rounded, points in ((True, {"activation", "output"}), (False, {"output"})):

        def fn(gate, up, rounded=rounded):
            act = F.silu(gate)
            return quantised(((act.bfloat16() if rounded else act) * up).bfloat16())

        gate, up, _ = halves()
        _, _, act = one_call(fn, gate.float(), up)
        assert act.rounding == points


def test_another_16_bits_of_the_output():
    _, _, act = one_call(lambda g, u: quantised((F.silu(g.float()) * u.float()).half()), *halves()[:2])
    assert act == ActAndMul("silu", {"output"}, torch.float16)


@pytest.mark.parametrize(
    "cube", [lambda z: z * z * z, lambda z: z.pow(3), lambda z: torch.pow(z, 3.0), lambda z: z * (z * z)]
)
def test_gelu_by_tanh_with_every_cube(cube):
    def fn(gate, up):
        z = gate.float()
        inner = math.sqrt(2 / math.pi) * (z + 0.044715 * cube(z))
        return quantised((0.5 * z * (1.0 + torch.tanh(inner)) * up.float()).bfloat16())

    assert one_call(fn, *halves()[:2])[2] == ActAndMul("gelu_tanh", {"output"})


# What is refused.


def gpt_oss(gate, up, weight):
    gate, up = gate.clamp(max=7.0), up.clamp(-7.0, 7.0)
    return quantised((up + 1) * (gate * torch.sigmoid(gate * 1.702)))


def gpt_oss_in_float32(gate, up, weight):
    gate, up = gate.float().clamp(max=7.0), up.float().clamp(-7.0, 7.0)
    return quantised(((up + 1) * (gate * torch.sigmoid(gate * 1.702))).bfloat16())


def gelu_by_sigmoid(gate, up, weight):
    return quantised((gate * torch.sigmoid(1.702 * gate)) * up)


def gelu_by_sigmoid_in_float32(gate, up, weight):
    wide = gate.float()
    return quantised((wide * torch.sigmoid(1.702 * wide) * up.float()).bfloat16())


def gate_clamped(gate, up, weight):
    return quantised(F.silu(gate.clamp(max=7.0)) * up)


def value_clamped(gate, up, weight):
    return quantised(F.silu(gate) * up.clamp(-7.0, 7.0))


def value_clamped_in_float32(gate, up, weight):
    return quantised((F.silu(gate.float()) * up.float().clamp(-7.0, 7.0)).bfloat16())


def one_added(gate, up, weight):
    return quantised(F.silu(gate) * (up + 1))


def value_times_a_number(gate, up, weight):
    return quantised((F.silu(gate.float()) * (2 * up.float())).bfloat16())


def product_times_a_number(gate, up, weight):
    return quantised((0.5 * (F.silu(gate.float()) * up.float())).bfloat16())


def activation_times_a_number(gate, up, weight):
    return quantised((F.silu(gate.float()) * 3.0).bfloat16())


def routed(gate, up, weight):
    return quantised((F.silu(gate.float()) * up.float() * up[:, :1].float()).bfloat16())


def weighted(gate, up, weight):
    return quantised((F.silu(gate.float()) * up.float() * weight).bfloat16())


def many_factors(gate, up, weight):
    one = up.float()
    return quantised((F.silu(gate.float()) * (one * (one * one * one * one * one * one * one * one))).bfloat16())


def squared(gate, up, weight):
    act = F.silu(gate.float())
    return quantised((up.float() * act * act).bfloat16())


def gate_squared(gate, up, weight):
    act = torch.sigmoid(gate.float())
    return quantised((up.float() * act * act).bfloat16())


def two_gates(gate, up, weight):
    return quantised((torch.sigmoid(gate.float()) * torch.sigmoid(up.float()) * up.float()).bfloat16())


def broadcast_gate(gate, up, weight):
    return quantised(F.silu(gate[:1]) * up)


def gate_per_token(gate, up, weight):
    return quantised(F.silu(gate[:, :1]) * up)


def broadcast_value(gate, up, weight):
    return quantised(F.silu(gate) * up[:, :1])


def sigmoid_per_head(gate, up, weight):
    return quantised(up.view(6, 4, 128) * torch.sigmoid(gate[:, :4]).unsqueeze(-1))


def rounded_inside(gate, up, weight):
    return quantised((gate * torch.sigmoid(gate)) * up)


def gelu_in_16_bits(gate, up, weight):
    return quantised(gate * 0.5 * (1 + torch.erf(gate * math.sqrt(0.5))) * up)


def rounded_to_another(gate, up, weight):
    return quantised((F.silu(gate.float()).half().float() * up.float()).bfloat16())


def rounded_twice(gate, up, weight):
    return quantised((F.silu(gate) * up).half())  # eager writes it in bfloat16 first


def activation_returned(gate, up, weight):
    act = F.silu(gate)
    return *quantised(act * up), act


REFUSED = {
    gpt_oss: ("modified_glu", "act_and_mul"),
    gpt_oss_in_float32: ("modified_glu", "act_and_mul"),
    gelu_by_sigmoid: ("modified_glu", "act_and_mul"),
    gelu_by_sigmoid_in_float32: ("modified_glu", "act_and_mul"),
    gate_clamped: ("modified_glu", "act_and_mul"),
    value_clamped: ("modified_glu", "act_and_mul"),
    value_clamped_in_float32: ("modified_glu", "act_and_mul"),
    one_added: ("modified_glu", "act_and_mul"),
    value_times_a_number: ("further_factor", "act_and_mul"),
    product_times_a_number: ("further_factor", "act_and_mul"),
    activation_times_a_number: ("further_factor", "act_and_mul"),
    routed: ("further_factor", "act_and_mul"),
    weighted: ("further_factor", "act_and_mul"),
    many_factors: ("further_factor", "act_and_mul"),
    squared: ("further_factor", "act_and_mul"),
    gate_squared: ("further_factor", "sigmoid_gate"),
    two_gates: ("further_factor", "sigmoid_gate"),
    broadcast_gate: ("product_shape", "act_and_mul"),
    gate_per_token: ("product_shape", "act_and_mul"),
    broadcast_value: ("product_shape", "act_and_mul"),
    sigmoid_per_head: ("product_shape", "sigmoid_gate"),
    rounded_inside: ("rounding", "act_and_mul"),
    gelu_in_16_bits: ("rounding", "act_and_mul"),
    rounded_to_another: ("rounding", "act_and_mul"),
    rounded_twice: ("rounding", "act_and_mul"),
    activation_returned: ("intermediate_used", "act_and_mul"),
}


@pytest.mark.parametrize("fn", REFUSED, ids=lambda fn: fn.__name__)
def test_refused(fn):
    assert outcome(fn, *halves()) == ("refused", *REFUSED[fn])


def relu(gate, up, weight):
    return quantised(F.relu(gate) * up)


def alone(gate, up, weight):
    return quantised(F.silu(gate))


def scaled_behind(gate, up, weight):
    return quantised(2 * (F.silu(gate) * up))


def added_behind(gate, up, weight):
    return quantised(F.silu(gate) * up + gate)


def no_gelu_constant(gate, up, weight):
    z = gate.float()
    return quantised((0.5 * z * (1 + torch.tanh(0.8 * (z + 0.044715 * z**3))) * up.float()).bfloat16())


def no_gelu_factor(gate, up, weight):
    z = gate.float()
    return quantised((z * 0.5 * (2 + torch.erf(z * math.sqrt(0.5))) * up.float()).bfloat16())


@pytest.mark.parametrize("fn", [relu, alone, scaled_behind, added_behind, no_gelu_constant, no_gelu_factor])
def test_other_values_are_unclaimed(fn):
    assert outcome(fn, *halves()) == ("unclaimed", "", "")


def test_a_norm_with_a_gate_stays_the_gated_norms():
    def fn(gate, up, weight):
        value = up.float()
        normed = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6)
        return quantised((normed * weight.float() * F.silu(gate.float())).bfloat16())

    report, calls = ran(fn, *halves())
    assert [site.fusion for site in report] == ["gated_norm"] and not calls
