"""The traced pass fires on models written like its pattern, keeps their values, and leaves everything else alone."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch._inductor.pattern_matcher import PatternMatcherPass

from fusionlab.spellings import HEAD_DIM, make_inputs, written_norm
from fusionlib import GatedNorm, GroupQuant, op, reference, schema
from fusionlib.layers import AttentionOutput
from fusionlib.pattern import HeadShape, MatcherGroupQuant, MatcherRMSNormGated, TracedPass
from fusionlib.pattern.pattern import fold_consecutive_reshapes, guard_problem, view_to_reshape
from fusionlib.pattern.traced_pass import unavailable
from fusionlib.testing.run_edited import run_edited
from tests.support import same

SHAPE = HeadShape(4, GatedNorm.vllm(128))
BOTH = pytest.mark.parametrize("native_quant", [True, False], ids=["native", "opaque"])


def model_inputs(heads: int = 4, head_dim: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    x, gate = torch.randn(2, 6, heads, head_dim, dtype=torch.bfloat16)
    return x, gate


@BOTH
@pytest.mark.parametrize("layout", ["row_major", "column_major"])
@pytest.mark.parametrize("dynamic", [(), (0, 1)], ids=["static", "dynamic"])
def test_an_attention_output_is_fused_and_keeps_its_value(native_quant, layout, dynamic):
    # A column-major buffer of a symbolic size is not traced the same way twice: the stock search skips it.
    expected = 0 if native_quant and layout == "column_major" and dynamic else 1
    model = AttentionOutput(4, 128, 256, quant=GroupQuant.vllm().with_layout(layout), native_quant=native_quant)
    inputs = model_inputs()
    traced = TracedPass.of_model(model, devices=("cpu",))
    assert not traced.refused
    got = run_edited(traced, model, *inputs, dynamic=dynamic)
    assert traced.fired == expected
    assert torch.equal(got, model(*inputs))


@BOTH
def test_compiled_for_real(native_quant):
    model = AttentionOutput(4, 128, 256, native_quant=native_quant)
    inputs = model_inputs()
    traced = TracedPass.of_model(model, devices=("cpu",))
    torch._dynamo.reset()
    path = lambda x, gate: model.out_proj.quantise(model.norm(x, gate).flatten(1))  # noqa: E731
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True):
        got = torch.compile(path, options={"post_grad_custom_pre_pass": traced})(*inputs)
        assert traced.fired == 1
        assert all(map(same, got, path(*inputs)))


def test_what_is_left_is_the_fused_op_alone():
    graphs = []
    traced = TracedPass([SHAPE], devices=("cpu",))

    def keep(graph):
        traced(graph)
        graphs.append([str(node.target) for node in graph.nodes if node.op == "call_function"])

    run_edited(keep, lambda *a: op.group_quant(written_norm(*a).flatten(1), GroupQuant.vllm()), *make_inputs())
    calls = [target for target in graphs[0] if "reshape" not in target and "getitem" not in target]
    assert calls == ["fusionlib.rms_norm_gated_group_quant.default"]


@BOTH
def test_heads_of_64_under_groups_of_128_are_left_alone(native_quant):
    model = AttentionOutput(8, 64, 256, native_quant=native_quant)
    inputs = model_inputs(8, 64)
    for traced in (TracedPass.of_model(model, devices=("cpu",)), TracedPass([SHAPE], devices=("cpu",))):
        got = run_edited(traced, model, *inputs)
        assert traced.fired == 0
        assert torch.equal(got, model(*inputs))
    assert TracedPass.of_model(model, devices=("cpu",)).refused == [
        "8 heads of 64: head_dim=64 is no whole number of groups of 128"
    ]


@pytest.mark.parametrize(
    ("shape", "group", "says"),
    [
        ((6, 4, 128), 128, None),
        ((24, 128), 64, None),
        ((6, 8, 64), 128, "4 heads of 128"),
        ((6, 8, 128), 128, "4 heads of 128"),
        ((48, 64), 128, "4 heads of 128"),
        ((2, 3, 4, 128), 128, "[tokens, heads, head_dim]"),
        ((6, 4, 128), 96, "groups of 96"),
    ],
)
def test_the_guard(shape, group, says):
    problem = guard_problem(shape, 4, 128, group)
    assert problem is None if says is None else says in problem


def per_tensor(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = y.float().abs().amax().clamp(min=1e-10) / 448.0
    return (y.float() / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale


@pytest.mark.parametrize(
    "quant",
    [
        per_tensor,
        lambda y: reference.group_quant(y, GroupQuant.vllm(64)),
        lambda y: op.group_quant(y, GroupQuant.vllm(256)),
        lambda y: op.group_quant(y, GroupQuant.vllm(64)),
    ],
    ids=["per tensor", "group 64", "opaque group 256", "opaque group 64"],
)
def test_another_quantisation_is_left_alone(quant):
    traced = TracedPass([SHAPE], devices=("cpu",))
    inputs = make_inputs()
    path = lambda *tensors: quant(written_norm(*tensors).flatten(1))  # noqa: E731
    got = run_edited(traced, path, *inputs)
    assert traced.fired == 0
    assert all(map(same, got, path(*inputs)))


def test_another_head_count_is_left_alone_and_keeps_its_value():
    traced = TracedPass([SHAPE], devices=("cpu",))
    inputs = make_inputs((6, 8, 128))
    path = lambda *tensors: reference.group_quant(written_norm(*tensors).flatten(1), GroupQuant.vllm())  # noqa: E731
    got = run_edited(traced, path, *inputs)
    assert traced.fired == 0
    assert all(map(same, got, path(*inputs)))


def test_a_device_the_pass_is_not_for_is_left_alone():
    on_cpu = TracedPass([SHAPE], devices=("cpu",)).registered[0]
    inputs = make_inputs()
    for devices, fires in ((("cpu",), 1), (("cuda",), 0)):
        patterns = PatternMatcherPass()
        replace(on_cpu, devices=devices).register(patterns)
        fired = []

        def apply(graph, patterns=patterns, fired=fired):
            view_to_reshape(graph)
            fold_consecutive_reshapes(graph)
            fired.append(patterns.apply(graph))

        run_edited(apply, lambda *a: reference.group_quant(written_norm(*a).flatten(1), GroupQuant.vllm()), *inputs)
        assert fired == [fires]


def test_registration_is_gated_by_what_can_run():
    assert unavailable(("cpu",), torch.float8_e4m3fn) is None
    assert "no op for it" in unavailable(("mps",), torch.float8_e4m3fn)
    traced = TracedPass([SHAPE], devices=("mps",))
    assert traced.registered == []
    assert traced.refused == ["4 heads of 128: mps: fusionlib has no op for it"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_without_a_gpu_nothing_is_registered_for_one():
    traced = TracedPass([SHAPE])
    assert traced.registered == [] and "cuda:" in traced.refused[0]


def test_the_uuid_covers_patterns_and_sources():
    uuid = TracedPass([SHAPE], devices=("cpu",)).uuid()
    assert uuid == TracedPass([SHAPE], devices=("cpu",)).uuid()
    assert uuid != TracedPass([HeadShape(8, SHAPE.norm)], devices=("cpu",)).uuid()
    assert uuid != TracedPass([SHAPE], [GroupQuant.aiter()], devices=("cpu",)).uuid()


@pytest.mark.parametrize("custom_op", [False, True], ids=["native", "opaque"])
def test_matchers_are_the_reference(custom_op):
    norm = MatcherRMSNormGated(GatedNorm.vllm(HEAD_DIM), 4, custom_op)
    assert [tuple(t.shape) for t in norm.inputs()] == [(5, 4, 128), (5, 4, 128), (128,)]
    x, gate, weight = make_inputs()
    expected = reference.rms_norm_gated(x.view(-1, 128), gate.view(-1, 128), weight, norm.norm).view(x.shape)
    assert torch.equal(norm(x, gate, weight), expected)
    quant = MatcherGroupQuant(GroupQuant.vllm(), 512, custom_op)
    assert [tuple(t.shape) for t in quant.inputs()] == [(5, 512)]
    assert all(map(same, quant(expected.flatten(1)), reference.group_quant(expected.flatten(1), quant.quant)))


def test_the_opaque_norm_passes_torchs_own_checks():
    norm = MatcherRMSNormGated(GatedNorm.qwen3_next(), 4, custom_op=True)
    x, gate, weight = make_inputs()
    torch.library.opcheck(torch.ops.fusionlib.rms_norm_gated, (x, gate, weight, *schema.scalars(norm.norm)))


def test_importing_sets_no_globals():
    code = (
        "import torch, torch._inductor.config as config\n"
        "from torch._inductor.fx_passes import post_grad\n"
        "before = config.save_config_portable(), [len(p.patterns) for p in post_grad.pass_patterns]\n"
        "import fusionlib.pattern\n"
        "assert before == (config.save_config_portable(), [len(p.patterns) for p in post_grad.pass_patterns])\n"
        "assert not hasattr(torch.ops.fusionlib, 'rms_norm_gated')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
