"""A capture shows the graph as PyTorch has it at each stage, and changes nothing."""

import pytest
import torch

from fusionlab.observe.byte_ledger import Bytes, path_bytes
from fusionlab.observe.capture import STAGES, capture
from fusionlib import GatedNorm, explain
from fusionlib.layers import AttentionOutput, BlockFP8Linear

FUSED = "fusionlib.rms_norm_gated_group_quant.default"


@pytest.fixture(scope="module")
def walkthrough():
    module = AttentionOutput(4, 128, 256).eval()
    x, gate = torch.randn(2, 6, 4, 128, dtype=torch.bfloat16)
    with torch.no_grad():
        (captured,) = capture(module, x, gate)
    return captured


@pytest.fixture(scope="module")
def qwen():
    """The linear attention of transformers' Qwen3-Next, its projection in FP8; random weights."""
    pytest.importorskip("transformers")
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

    config = Qwen3NextConfig(
        hidden_size=128, linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=64
    )  # fmt: skip
    mixer = Qwen3NextGatedDeltaNet(config, layer_idx=0).to(torch.bfloat16).eval()
    mixer.out_proj = BlockFP8Linear.from_linear(mixer.out_proj)
    with torch.no_grad():
        (captured,) = capture(mixer, torch.randn(1, 8, 128, dtype=torch.bfloat16))
    return captured


def targets(stage) -> list[str]:
    return [node.target for node in stage.nodes if node.op.startswith("call_")]


def test_the_stages_have_their_names_and_order(walkthrough):
    assert tuple(stage.name for stage in walkthrough.stages) == STAGES


def test_dynamo_sees_calls_as_they_were_written(qwen):
    calls = targets(qwen.dynamo)
    assert {"torch.rsqrt", "torch.nn.functional.silu", "mean", "fusionlib.group_quant"} <= set(calls)
    assert not any(" at 0x" in call or "<" in call for call in calls)


def test_aten_has_silu_decomposed_and_names_the_call_it_came_from(qwen):
    silu = next(node.name for node in qwen.dynamo.nodes if "silu" in node.target and node.name in qwen.dynamo.modules)
    parts = [qwen.aten[name].target for name, origin in qwen.aten.origins.items() if origin == silu]
    assert parts == ["aten.neg.default", "aten.exp.default", "aten.add.Tensor", "aten.div.Tensor"]
    assert not any("silu" in target for target in targets(qwen.aten))


def test_before_is_what_the_pass_gets(qwen):
    """Inductor turns views into reshapes first, and so does the stage."""
    assert "aten.view.default" in targets(qwen.aten) and "aten.view.default" not in targets(qwen.before)
    recorded = [(node.name, node.inputs, node.shape, node.stride) for node in qwen.recording.before]
    assert recorded == [(node.name, node.inputs, node.shape, node.stride) for node in qwen.before.nodes]


def test_after_holds_the_fused_call_and_neither_norm_nor_quantisation(qwen, walkthrough):
    for captured in (qwen, walkthrough):
        assert FUSED in targets(captured.after) and FUSED not in targets(captured.before)
        assert not any("group_quant.default" in target and target != FUSED for target in targets(captured.after))
        assert captured.recording.replay() == {node.name for node in captured.after.nodes}
        assert [site.fused for site in captured.outcome.sites] == [True]


def test_nodes_know_their_module(qwen):
    (norm,) = {module for module in qwen.before.modules.values() if "RMSNormGated" in module}
    assert norm == "norm (Qwen3NextRMSNormGated)"
    quantisation = next(node.name for node in qwen.before.nodes if "group_quant" in node.target)
    assert qwen.before.modules[quantisation] == "out_proj (BlockFP8Linear)"


def test_the_strided_gate_is_copied_before_and_not_after(qwen):
    """z is sliced from the projection per key head: `reshape` copies it, the fused op reads it in place."""
    fused = next(node for node in qwen.after.nodes if node.target == FUSED)
    gate = qwen.after[fused.inputs[1]]
    assert gate.stride[0] > gate.shape[1] * gate.shape[2] and gate.inputs[0].startswith("getitem")


def test_the_ledger_of_the_fused_node_is_the_closed_form(walkthrough):
    fused = next(node for node in walkthrough.after.nodes if node.target == FUSED)
    expected = path_bytes(6, 512, GatedNorm.vllm(128), AttentionOutput(4, 128, 256).out_proj.quant).fused
    assert walkthrough.after.bytes[fused.name] == expected
    total = {name: sum((b for b in getattr(walkthrough, name).bytes.values()), Bytes()).total for name in STAGES}
    assert total["dynamo"] == 0 and total["after"] < total["before"]


def test_the_module_of_a_stage_runs(walkthrough):
    """A stage is a copy: later changes do not affect it, and its module can be run."""
    given = {tuple(n.shape): n for n in walkthrough.before.nodes if n.op == "placeholder"}
    inputs = [torch.zeros(n.shape, dtype=getattr(torch, n.dtype)) for n in given.values() if n.dtype != "float8_e4m3fn"]
    assert inputs and "group_quant.default" in str(walkthrough.before.module.graph)
    module = AttentionOutput(4, 128, 256).eval()
    x, gate = torch.randn(2, 6, 4, 128, dtype=torch.bfloat16)
    by_shape = {(6, 4, 128): [x, gate], (128,): [module.norm.weight.detach()]}
    by_shape |= {(2, 4): [module.out_proj.weight_scale_inv], (256, 512): [module.out_proj.weight]}
    for stage in (walkthrough.aten, walkthrough.before, walkthrough.after):
        left = {shape: list(values) for shape, values in by_shape.items()}
        ordered = [left[tuple(n.shape)].pop(0) for n in stage.nodes if n.op == "placeholder"]
        with torch.no_grad():
            assert torch.equal(stage.module(*ordered)[0], module(x, gate))


def test_another_pass_is_run_once_and_its_result_kept():
    ran = []
    with torch.no_grad():
        (captured,) = capture(
            lambda x: x.exp(), torch.randn(3), graph_pass=lambda g: ran.append(len(g.nodes)) or "done"
        )
    assert ran == [3] and captured.recording.events == () and captured.outcome == "done"
    assert targets(captured.dynamo) == ["exp"] and targets(captured.after) == ["aten.exp.default"]


def test_a_graph_break_makes_two_captures():
    def broken(x):
        y = x.sin()
        torch._dynamo.graph_break()
        return y.cos()

    with torch.no_grad():
        first, second = capture(broken, torch.randn(3))
    assert (targets(first.aten), targets(second.aten)) == (["aten.sin.default"], ["aten.cos.default"])


def test_training_shows_the_forward_graph():
    x = torch.randn(3, requires_grad=True)
    (captured,) = capture(lambda x: x.sin().sum(), x)
    assert any(node.name.startswith("primals") for node in captured.before.nodes)


def test_dynamic_sizes_are_text():
    with torch.no_grad():
        (captured,) = capture(lambda x: x.exp(), torch.randn(3, 4), dynamic=True)
    assert any(isinstance(size, str) for node in captured.before.nodes for size in node.shape or ())


def test_an_unknown_node_is_named(walkthrough):
    with pytest.raises(KeyError, match="no node 'nope' at stage 'aten'"):
        walkthrough.aten["nope"]


def test_capture_agrees_with_explain():
    module = AttentionOutput(4, 128, 256, native_quant=True).eval()
    x, gate = torch.randn(2, 6, 4, 128, dtype=torch.bfloat16)
    with torch.no_grad():
        (captured,) = capture(module, x, gate)
        report = explain(module, x, gate, devices="cpu")
    assert [site.what for site in captured.outcome.sites] == [site.what for site in report]
