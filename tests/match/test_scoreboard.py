"""The scoreboard: spellings that must fuse, each equal to eager in every code and scale, and what they are read as."""

from itertools import combinations

import pytest
import torch
import torch.nn.functional as F

from fusionlib import GatedNorm, GroupQuant, op, reference, schema
from tests.spellings import (
    ACTIVATIONS,
    FP8,
    LAYOUTS,
    MEANS,
    ROOTS,
    SQUARES,
    NormSpelling,
    QuantSpelling,
    agree,
    inputs,
    run_rewritten,
    site,
)

NORMS = {
    "vllm": NormSpelling(),
    "commuted": NormSpelling(weight_first=True),
    "weight and gate first": NormSpelling(gate_inside=True),
    "norm rounded": NormSpelling(round_norm=True),
    "qwen3-next": NormSpelling(round_norm=True, weight_float=False, weight_first=True),
    "gate rounded": NormSpelling(round_activation=True),
    "1 + w": NormSpelling(offset=True),
    "1 + w in 16 bits": NormSpelling(offset=True, weight_float=False),
    "no weight": NormSpelling(no_weight=True),
    "float32 out": NormSpelling(round_output=False),
    "gate first": NormSpelling(gate_first=True),
    "mamba2": NormSpelling(gate_first=True, round_norm=True, weight_float=False, weight_first=True),
    "eps 1e-5": NormSpelling(eps=1e-5),
    "eps 3e-7": NormSpelling(eps=3e-7),
    **{f"activation {name}": NormSpelling(activation=name) for name in ACTIVATIONS},
    **{f"square {name}": NormSpelling(square=name) for name in SQUARES},
    **{f"mean {name}": NormSpelling(mean=name) for name in MEANS},
    **{f"root {name}": NormSpelling(root=name) for name in ROOTS},
}
QUANTS = {
    "vllm": QuantSpelling(),
    "no floor": QuantSpelling(floor=None),
    "floor on scale": QuantSpelling(floor=1 / (448 * 512), floor_on="scale"),
    "aiter": QuantSpelling(reciprocal=True),
    "torchao": QuantSpelling(floor=None, in_activation_dtype=True, repeat="repeat_interleave"),
    "amax in 16 bits": QuantSpelling(in_activation_dtype=True),
    "expand": QuantSpelling(repeat="expand"),
    "ue8m0": QuantSpelling(floor=1e-4, ue8m0=True),
    "ue8m0 of NaN too": QuantSpelling(floor=1e-4, ue8m0=True, nan_scale="largest"),
    "ue8m0 not clamped": QuantSpelling(floor=1e-4, ue8m0=True, clamp=False),
    "column-major": QuantSpelling(layout="column_major"),
    "group 64": QuantSpelling(group=64),
    "group 256": QuantSpelling(group=256),
    "per token": QuantSpelling(group=512),
    "e5m2": QuantSpelling(dtype=torch.float8_e5m2),
}


def fuses(fn, *tensors, group=128, exact=True, dynamic=False, sites=1):
    """fn fuses at `sites` places and agrees with eager; the rewritten graph and the report."""
    got, report, graphs = run_rewritten(fn, *tensors, dynamic=dynamic)
    assert len(report.fused) == sites and not report.refused, str(report)
    agree(got, fn(*tensors), group, exact)
    return graphs, report


def calls(graph, name):
    return [node for node in graph.nodes if node.op == "call_function" and name in str(node.target)]


def constants(graph, name="rms_norm_gated_group_quant"):
    (call,) = calls(graph, name)
    return call.args[4:]


@pytest.mark.parametrize("name", NORMS)
def test_norm_spellings(name):
    norm = NORMS[name]
    exact = norm.root in ("x*rsqrt", "rsqrt*x") and not norm.gate_inside and norm.mean != "sum/n"
    exact = exact and norm.activation in ("silu", "sigmoid")
    fn = site(norm, QuantSpelling())
    got, report, _ = run_rewritten(fn, *(tensors := inputs()))
    assert len(report.fused) == 1, str(report)
    agree(got, fn(*tensors), 128, exact, in_float32=not norm.round_output)


@pytest.mark.parametrize("name", QUANTS)
def test_quant_spellings(name):
    quant = QUANTS[name]
    fuses(site(NormSpelling(), quant), *inputs(), group=quant.group)


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic tokens"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, dynamic):
    graphs, _ = fuses(site(NormSpelling(), QuantSpelling(), layout), *inputs(tokens=7), dynamic=dynamic)
    assert not calls(graphs[0], "amax") and not calls(graphs[0], "rsqrt")


@pytest.mark.parametrize("gate_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dtypes(dtype, gate_dtype):
    x, z, w = inputs(dtype=dtype, gate_dtype=gate_dtype)
    fuses(site(NormSpelling(), QuantSpelling()), x, z, w.float())


@pytest.mark.parametrize(("heads", "head_dim", "group"), [(1, 128, 128), (3, 128, 128), (8, 64, 128), (2, 256, 128)])
def test_head_counts_and_sizes(heads, head_dim, group):
    fuses(site(NormSpelling(), QuantSpelling()), *inputs(heads=heads, head_dim=head_dim), group=group)


def test_strided_gate_is_read_where_it_lies():
    graphs, _ = fuses(site(NormSpelling(), QuantSpelling()), *inputs(strided=True))
    (call,) = calls(graphs[0], "rms_norm_gated_group_quant")
    assert call.args[1].op == "placeholder"
    assert call.meta["eager_input_vals"][0][1].stride() == (12 * 128, 128, 1)


def test_interleaved_gate_of_qwen3_next():
    """z comes as [T, 16, 2 * 128] out of a wider projection and is viewed as [T, 32, 128]."""
    x, projected = torch.randn(5, 8, 128).bfloat16(), torch.randn(5, 4, 768).bfloat16()
    weight = torch.rand(128).bfloat16()

    def fn(x, projected, w):
        z = projected[..., 256:512].reshape(5, 8, 128)
        return QuantSpelling()(NormSpelling()(x, z, w).reshape(5, -1))

    graphs, _ = fuses(fn, x, projected, weight)
    (call,) = calls(graphs[0], "rms_norm_gated_group_quant")
    assert list(call.args[1].meta["val"].shape) == [5, 4, 256]


def test_functional_rms_norm():
    def fn(x, z, w):
        y = F.rms_norm(x, (128,), w, 1e-6) * F.silu(z.float())
        return QuantSpelling()(y.to(x.dtype).flatten(1))

    graphs, _ = fuses(fn, *inputs(), exact=False)
    assert constants(graphs[0])[:6] == (128, 1e-6, "silu", True, 0, "weight,output")


def test_grouped_norm_with_a_weight_per_element_of_the_row():
    x, z = torch.randn(2, 6, 512).bfloat16(), torch.randn(2, 6, 512).bfloat16()

    def fn(x, z, w):
        value = (x.float() * F.silu(z.float())).view(2, 6, 2, 256)
        value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-5)
        y = w * value.view(2, 6, 512).to(x.dtype)
        return QuantSpelling()(y.reshape(12, 512))

    graphs, _ = fuses(fn, x, z, torch.rand(512).bfloat16())
    assert constants(graphs[0])[:6] == (256, 1e-5, "silu", False, 0, "norm,output")


def test_opaque_quantisation():
    def fn(x, z, w):
        return op.group_quant(NormSpelling()(x, z, w).flatten(1), GroupQuant.deepgemm())

    graphs, _ = fuses(fn, *inputs())
    assert not calls(graphs[0], "fusionlib.group_quant")


@pytest.mark.parametrize("layout", ["row_major", "column_major"])
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    "quant",
    [
        GroupQuant(),
        GroupQuant.aiter(),
        GroupQuant.torchao(),
        GroupQuant(scale_format="ue8m0"),
        GroupQuant.deepgemm(blackwell=True),
    ],
    ids=str,
)
def test_the_reference_itself_is_read_as_what_it_is(quant, layout, dynamic):
    norm, quant = GatedNorm.qwen3_next(), quant.with_layout(layout)

    def fn(x, z, w):
        return reference.group_quant(reference.rms_norm_gated(x, z, w, norm), quant)

    graphs, _ = fuses(fn, *inputs(tokens=7), dynamic=dynamic)
    assert constants(graphs[0]) == schema.scalars(norm, quant)
    assert not calls(graphs[0], "clone") and not calls(graphs[0], "copy")


def test_normed_value_is_kept_for_other_users():
    def fn(x, z, w):
        y = NormSpelling()(x, z, w)
        return *QuantSpelling()(y.flatten(1)), y + 1

    tensors = inputs()
    got, report, graphs = run_rewritten(fn, *tensors)
    assert len(report.fused) == 1 and calls(graphs[0], "with_value")
    agree(got, fn(*tensors), 128)
    assert torch.equal(got[2], fn(*tensors)[2])


def test_two_quantisations_share_one_norm():
    def fn(x, z, w):
        y = NormSpelling()(x, z, w).flatten(1)
        return *QuantSpelling()(y), *QuantSpelling(group=64)(y), *op.group_quant(y, GroupQuant())

    tensors = inputs()
    got, report, graphs = run_rewritten(fn, *tensors)
    want = fn(*tensors)
    assert len(report.fused) == 3, str(report)
    assert len(calls(graphs[0], "rms_norm_gated")) == 1 and not calls(graphs[0], "rsqrt")
    for at, group in ((0, 128), (2, 64), (4, 128)):
        agree(got[at : at + 2], want[at : at + 2], group)


def test_scale_of_torchao_in_16_bits_used_outside():
    def fn(x, z, w):
        y = NormSpelling()(x, z, w).view(6, -1, 128)
        scale = y.abs().amax(-1, keepdim=True) / 448.0
        return (y.float() / scale.float()).clamp(-448, 448).to(FP8), scale.float(), scale

    tensors = inputs()
    got, report, _ = run_rewritten(fn, *tensors)
    assert len(report.fused) == 1, str(report)
    assert all(torch.equal(a.float(), b.float()) and a.dtype == b.dtype for a, b in zip(got, fn(*tensors), strict=True))


def test_shared_results_that_leave_the_graph_stay_two_tensors():
    def fn(x, z, w):
        y = NormSpelling()(x, z, w).flatten(1)
        return *op.group_quant(y, GroupQuant()), *QuantSpelling()(y)

    got, report, _ = run_rewritten(fn, *inputs())
    assert len(report.fused) == 2 and len({t.data_ptr() for t in got}) == 4


def test_value_whose_last_dimension_is_strided():
    """The copy that the graph makes anyway is read; where there is none, one is made."""
    x, z, w = inputs()

    def fn(x, z, w):
        return QuantSpelling()(NormSpelling()(x.transpose(1, 2).contiguous(), z.transpose(1, 2), w).flatten(1))

    fuses(fn, x.transpose(1, 2).contiguous(), z.transpose(1, 2).contiguous(), w)


def every_norm():
    """Both orders with every set of rounding points that the order has."""
    for before in (True, False):
        points = [p for p in GatedNorm.POINTS if p != ("gate" if before else "weight")]
        for count in range(len(points) + 1):
            for rounding in combinations(points, count):
                yield GatedNorm(128, 1e-5, "sigmoid" if count % 2 else "silu", before, count % 2, frozenset(rounding))


@pytest.mark.parametrize("norm", list(every_norm()), ids=lambda n: f"{'norm' * n.norm_before_gate}-{n.rounding_text}")
def test_every_set_of_rounding_points_is_read_back(norm):
    def fn(x, z, w):
        return reference.group_quant(reference.rms_norm_gated(x, z, w, norm), GroupQuant.aiter())

    graphs, _ = fuses(fn, *inputs())
    assert constants(graphs[0]) == schema.scalars(norm, GroupQuant.aiter())
