"""Reports of whole models: each site by its module, and once however often Dynamo compiles it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

from fusionlib import FusionPass, explain
from fusionlib.explanation import apart_from_caches, inductor_until, stand_in_for, to_the_pass
from fusionlib.layers import AttentionOutput, BlockFP8Linear
from fusionlib.match.source_lines import module_path
from fusionlib.rewrite.report import CompileRecord, Origin, Report

HEADS, HEAD_DIM = 2, 128
HIDDEN = HEADS * HEAD_DIM


class Layer(nn.Module):
    def __init__(self, native: bool) -> None:
        super().__init__()
        self.attn = AttentionOutput(HEADS, HEAD_DIM, HIDDEN, native_quant=native)
        self.up = BlockFP8Linear.from_linear(nn.Linear(HIDDEN, HIDDEN, bias=False), native_quant=native)

    def forward(self, x, gate):
        return x + self.up(torch.tanh(self.attn(x, gate))).view_as(x)


class Model(nn.Module):
    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(native=i == 1) for i in range(layers))

    def forward(self, x, gate):
        for layer in self.layers:
            x = layer(x, gate)
        return x


def inputs(tokens: int = 3):
    return torch.randn(2, tokens, HEADS, HEAD_DIM, dtype=torch.bfloat16).unbind()


def compiled(fn, fusion: FusionPass, **options):
    """`fn` compiled up to where Inductor would generate code, `fusion` in its place of the passes."""

    def inner_compile(module, example_inputs, **how):
        stand_in = stand_in_for(module)
        to_the_pass(module, example_inputs, fusion, is_inference=True)
        return stand_in

    return torch.compile(fn, backend=inductor_until(inner_compile), **options)


@pytest.fixture(autouse=True)
def apart():
    with apart_from_caches(), torch.no_grad():
        yield


def test_a_site_is_named_by_its_module_however_its_quantisation_is_written():
    report = explain(Model(), *inputs(), devices="cpu")
    assert [site.module for site in report.fused] == [f"layers.{i}.attn.out_proj" for i in range(3)]
    assert [site.module for site in report.unclaimed] == [f"layers.{i}.up" for i in range(3)]
    # The second layer's quantisation has another layout, so it is a class of its own.
    assert "2 sites in layers.{0,2}.attn.out_proj at " in str(report) and "in layers.1.attn.out_proj at " in str(report)
    assert "unclaimed 3 sites in layers.{0-2}.up at " in str(report)


def test_the_line_of_an_opaque_site_is_the_models():
    report = explain(Model(), *inputs(), devices="cpu")
    here = [site.line for site in (*report.fused, *report.unclaimed)]
    assert all(line.startswith("tests/rewrite/test_model_reports.py:") for line in here)
    assert any("self.attn(x, gate)" in text for site in report.fused for *_, text in site.nodes)


def test_a_function_names_the_model_as_it_does():
    model = Model()
    report = explain(lambda x, gate: model(x, gate), *inputs(), devices="cpu")
    assert {site.module for site in report.fused} == {f"model.layers.{i}.attn.out_proj" for i in range(3)}


def test_without_a_module_there_is_no_path():
    graph = make_fx(torch.tanh)(torch.ones(2)).graph
    assert module_path(next(node for node in graph.nodes if node.op == "call_function")) == ""


@pytest.mark.parametrize(
    ("spelt", "path"),
    [
        ("L['self'].model.layers[3].out_proj", "model.layers.3.out_proj"),
        ("L['self']._modules['layers']._modules['3'].out_proj", "layers.3.out_proj"),
        ("L['fn'].__closure__[0].cell_contents.layers.3", "fn.layers.3"),
        ("L['self']._orig_mod.layers.0._checkpoint_wrapped_module.mlp", "layers.0.mlp"),
        ("L['self']._fsdp_wrapped_module.layers.0", "layers.0"),
        ("G['net'].head", "net.head"),
        ("L['self']", ""),
    ],
)
def test_a_path_is_as_named_modules_says_it(spelt, path):
    graph = torch.fx.Graph()
    node = graph.placeholder("x")
    node.meta["nn_module_stack"] = {"0": ("L['self']", nn.Module), "1": (spelt, nn.Module)}
    assert module_path(node) == path


def test_a_recompile_repeats_no_site_and_the_summary_says_so():
    fusion, model = FusionPass(("cpu",)), Model()
    run = compiled(model, fusion, dynamic=False)
    for tokens in (3, 5, 4):
        run(*inputs(tokens))
    report = fusion.report()
    assert [len(record.sites) for record in report.compiles] == [6, 6, 6]
    assert (len(report.fused), len(report.unclaimed)) == (3, 3)
    assert report.summary == "3 fused, 0 refused, 3 unclaimed in 3 graphs (0 from the compile cache); 12 of them again"


def test_a_reset_of_dynamo_repeats_no_site_of_a_model():
    fusion, model = FusionPass(("cpu",)), Model(1)
    for _ in range(2):
        torch._dynamo.reset()
        compiled(model, fusion)(*inputs())
    assert len(fusion.report().compiles) == 2 and len(fusion.report().fused) == 1


def test_a_reset_repeats_no_site_where_other_code_is_compiled_first():
    """Dynamo then numbers the model's frames higher than before."""
    fusion, model, (x, gate) = FusionPass(("cpu",), expect=2), Model(1), inputs()

    def cut(x, gate):
        y = model.layers[0].attn(x, gate)
        torch._dynamo.graph_break()
        return model.layers[0].attn(y.view_as(x), gate)

    compiled(cut, fusion)(x, gate)
    fusion.check()
    torch._dynamo.reset()
    for other in (torch.sin, torch.cos, torch.tanh):
        compiled(lambda x, other=other: other(x) + 1, fusion)(x)
    compiled(cut, fusion)(x, gate)
    fusion.check()
    assert len(fusion.report().compiles) == 4 and len(fusion.report().fused) == 2


def test_layers_that_are_compiled_one_by_one_are_one_region():
    """Instances of one class share Dynamo's code; each new one is compiled for itself, or not at all."""
    fusion, model = FusionPass(("cpu",)), Model(4)
    x, gate = inputs()
    for layer in model.layers:
        x = compiled(layer, fusion)(x, gate)
    assert {site.module for site in fusion.report().fused} == {"attn.out_proj"}
    assert len(fusion.report().fused) <= 2  # an opaque and a native spelling


def test_two_models_of_one_pass_are_counted_both():
    fusion = FusionPass(("cpu",))
    first, second = (AttentionOutput(HEADS, HEAD_DIM, HIDDEN) for _ in range(2))
    x, gate = inputs()
    compiled(lambda x, gate: first(x, gate), fusion)(x, gate)
    compiled(lambda x, gate: second(x, gate) + 1, fusion)(x, gate)
    assert len(fusion.report().fused) == 2


def test_one_helper_called_in_the_parts_of_a_cut_model_is_counted_in_each():
    fusion = FusionPass(("cpu",))
    part = AttentionOutput(HEADS, HEAD_DIM, HIDDEN)

    def cut(x, gate):
        y = part(x, gate)
        torch._dynamo.graph_break()
        return part(y.view_as(x), gate)

    compiled(cut, fusion)(*inputs())
    assert len(fusion.report().compiles) == 2 and len(fusion.report().fused) == 2


def test_what_another_compile_refuses_is_said_too():
    """The same site, of other inputs."""
    (site,) = explain(AttentionOutput(HEADS, HEAD_DIM, HIDDEN), *inputs(), devices="cpu").fused
    refused = replace(site, outcome="refused", code="device")
    records = [
        CompileRecord((each,), origin=Origin(0, attempt, attempt, False, "model"))
        for attempt, each in enumerate((site, refused, refused))
    ]
    report = Report(tuple(records))
    assert (report.fused, report.refused) == ([site], [refused])


def test_graphs_from_outside_of_dynamo_do_not_repeat_each_other():
    record = CompileRecord(
        explain(AttentionOutput(HEADS, HEAD_DIM, HIDDEN), *inputs(), devices="cpu").compiles[0].sites
    )
    assert len(Report((record, record)).fused) == 2
