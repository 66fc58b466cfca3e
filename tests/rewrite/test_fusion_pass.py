"""FusionPass as torch.compile's pass: caches, uuid, options, guards, composition, cost."""

import logging
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.utils import fresh_cache

import fusionlib.match.graph as graph_module
from fusionlib import GatedNorm, GroupQuant, explain
from fusionlib.commands.cost import layered_graph, traced_layer
from fusionlib.fusions import BUILT_IN
from fusionlib.layers import AttentionOutput
from fusionlib.match import match_graph
from fusionlib.rewrite import Chain, FusionError, FusionPass
from fusionlib.rewrite.cache_key import PACKAGE, source_files, source_hash
from fusionlib.testing.roundings import roundings_kept
from tests.spellings import NormSpelling, QuantSpelling, agree, inputs, run_rewritten, site

aten = torch.ops.aten
PATH = site(NormSpelling(), QuantSpelling())
NOT_OURS = site(NormSpelling(), lambda y: (y.float() / 0.1).to(torch.float8_e4m3fn))


def compiled(fn, fusion, *tensors):
    torch._dynamo.reset()
    with torch.no_grad(), roundings_kept():
        return torch.compile(fn, options={"post_grad_custom_pre_pass": fusion})(*tensors)


def test_compiled_by_inductor_it_equals_eager():
    with fresh_cache():
        fusion, tensors = FusionPass(("cpu",), expect=1, strict=True), inputs(strided=True)
        got = compiled(PATH, fusion, *tensors)
    agree(got, PATH(*tensors), 128)
    (fused,) = fusion.report().fused
    assert fused.line.split(":")[0].endswith("spellings.py") and "1 fused, 0 refused" in str(fusion.report())


@pytest.mark.parametrize("native_quant", [False, True])
@pytest.mark.parametrize("norm", [GatedNorm.vllm(), GatedNorm.qwen3_next(), GatedNorm.kimi_linear()], ids=str)
def test_attention_output_of_the_walkthrough(norm, native_quant):
    module = AttentionOutput(4, 128, 256, norm, native_quant=native_quant).eval()
    x, gate, _ = inputs()
    got, report, _ = run_rewritten(module, x, gate)
    assert len(report.fused) == 1 and not report.refused, str(report)
    assert "column_major" in report.fused[0].what
    with torch.no_grad():
        assert torch.equal(got, module(x, gate))


def test_report_is_right_after_a_warm_cache():
    with fresh_cache():
        first, second = FusionPass(("cpu",)), FusionPass(("cpu",))
        tensors = inputs()
        compiled(PATH, first, *tensors)
        cold = first.report()
        compiled(PATH, second, *tensors)
        warm = second.report()
        again = first.report()
    assert [c.cached for c in cold.compiles] == [False] and [c.cached for c in warm.compiles] == [True]
    assert list(cold) == list(warm) and len(again.compiles) == 1


def test_report_is_right_in_a_second_process(tmp_path):
    script = tmp_path / "second.py"
    script.write_text(
        textwrap.dedent("""
        import torch
        from fusionlib.rewrite import FusionPass
        from tests.spellings import NormSpelling, QuantSpelling, inputs, site
        fusion = FusionPass(("cpu",))
        with torch.no_grad():
            fn = site(NormSpelling(), QuantSpelling())
            torch.compile(fn, options={"post_grad_custom_pre_pass": fusion})(*inputs())
        print(fusion.report().summary)
        """)
    )
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(PACKAGE.parent)}
    runs = [
        subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert runs[0].startswith("1 fused, 0 refused in 1 graph (0 from")
    assert runs[1].startswith("1 fused, 0 refused in 1 graph (1 from")


def test_uuid_changes_with_every_source_and_option(tmp_path):
    copy = tmp_path / "fusionlib"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = source_hash.__wrapped__(copy)
    assert before == source_hash.__wrapped__(PACKAGE)
    names = {path.relative_to(copy).as_posix() for path in source_files(copy)}
    assert {"kernels/gated_norm.py", "fusions/read_gated_norm.py", "quant_op.py", "rewrite/replace.py"} <= names
    assert not any(name.startswith(("commands", "pattern", "explanation", "layers")) for name in names)
    for path in source_files(copy):
        text = path.read_text(encoding="utf-8")
        path.write_text(text + "\n", encoding="utf-8")
        assert source_hash.__wrapped__(copy) != before, path
        path.write_text(text, encoding="utf-8")
    passes = [FusionPass(), FusionPass(("cpu",)), FusionPass(strict=True), FusionPass(expect=3)]
    assert len({fusion.uuid() for fusion in passes}) == 4
    assert FusionPass().uuid() == FusionPass().uuid()


def test_expect_and_strict_raise_with_the_report():
    with pytest.raises(Exception, match="expected 2 fused sites, got 1"):
        run_rewritten(PATH, *inputs(), fusion=FusionPass(("cpu",), expect=2))
    with pytest.raises(Exception, match="per_tensor_static"):
        run_rewritten(NOT_OURS, *inputs(), fusion=FusionPass(("cpu",), strict=True))
    assert issubclass(FusionError, RuntimeError)


def test_unknown_device_is_refused():
    with pytest.raises(ValueError, match="choose from"):
        FusionPass(("tpu",))


def test_one_info_line_a_compile_and_a_warning_where_nothing_fused(caplog):
    caplog.set_level(logging.INFO, "fusionlib")
    run_rewritten(PATH, *inputs())
    assert [r.levelname for r in caplog.records if r.name.startswith("fusionlib")] == ["INFO"]
    caplog.clear()
    run_rewritten(NOT_OURS, *inputs())
    assert [r.levelname for r in caplog.records if r.name.startswith("fusionlib")] == ["INFO", "WARNING"]


class Seen(CustomGraphPass):
    """Counts the graphs in which the fused op is there already."""

    count = 0

    def __call__(self, graph):
        self.count += any("fusionlib" in str(node.target) for node in graph.nodes)

    def uuid(self):
        return "seen"


def test_a_chain_of_passes_is_one_pass():
    fusion, before, after, tensors = FusionPass(("cpu",)), Seen(), Seen(), inputs()
    chain = Chain(before, fusion, after)
    with fresh_cache():
        got = compiled(PATH, chain, *tensors)
        again = FusionPass(("cpu",))
        compiled(PATH, Chain(before, again, after), *tensors)
    agree(got, PATH(*tensors), 128)
    assert (before.count, after.count) == (0, 1) and len(fusion.report().fused) == 1
    assert again.report().compiles[0].cached and len(again.report().fused) == 1


def test_a_chain_is_known_by_all_its_passes():
    seen = Seen()
    assert Chain(seen, FusionPass()).uuid() == Chain(seen, FusionPass()).uuid()
    chains = [Chain(seen, FusionPass()), Chain(FusionPass(), seen), Chain(seen, FusionPass(strict=True)), Chain(seen)]
    assert len({chain.uuid() for chain in chains}) == 4
    assert Chain(seen, lambda graph: None).uuid() is None


def test_explain_says_the_same():
    tensors = inputs()
    calls = []

    def fn(x, z, w):
        y = NormSpelling()(x, z, w).flatten(1)
        return *QuantSpelling()(y), (y.float() / 0.1).to(torch.float8_e4m3fn)

    report = explain(fn, *tensors, watch=lambda module, record: calls.append((module, record)), devices="cpu")
    assert [site.fused for site in report].count(True) == 1 and report.refused[0].code == "per_tensor_static"
    assert len(calls) == 1 and any("fusionlib" in str(n.target) for n in calls[0][0].graph.nodes)
    assert "<table>" in report._repr_html_()


def test_explain_ranks_near_misses_first():
    def fn(x, z, w):
        y = NormSpelling()(x, z, w).flatten(1)
        near = NormSpelling(activation="silu")(x, z, w.float()).flatten(1) * 1.5
        return *QuantSpelling()(near), (y.float() / 0.1).to(torch.float8_e4m3fn)

    codes = [site.code for site in explain(fn, *inputs(), devices="cpu").refused]
    assert codes[-1] == "per_tensor_static" and len(codes) == 2


def written_graph(write_at: str) -> fx.Graph:
    """The path as a graph that was not functionalised: the gate is written to after it was read."""

    def fn(x, z, w):
        value, gate = x.float(), z.float()
        if write_at == "inside":
            z.zero_()
        y = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6) * w * F.silu(gate)
        y = y.to(x.dtype)
        if write_at == "behind":
            z.zero_()
        return QuantSpelling()(y.flatten(1))

    return torch.fx.experimental.proxy_tensor.make_fx(fn, tracing_mode="fake")(*inputs()).graph


@pytest.mark.parametrize(("write_at", "code"), [("inside", "mutation"), ("behind", ""), ("nowhere", "")])
def test_writes_in_between(write_at, code):
    graph = written_graph(write_at)
    (result,) = FusionPass(("cpu",)).rewrite(graph).sites
    assert result.code == code


def test_cost_is_linear_in_nodes(monkeypatch):
    """Counted, not timed: how often a node is looked through, for 12 layers and for 48."""
    count = 0
    original = graph_module._view_source

    def counting(node):
        nonlocal count
        count += 1
        return original(node)

    monkeypatch.setattr(graph_module, "_view_source", counting)
    work, layer = [], traced_layer()
    for layers in (12, 48):
        graph = layered_graph(layers, layer)
        count = 0
        record = FusionPass(("cpu",)).rewrite(graph)
        assert sum(s.fused for s in record.sites) == layers, record.sites[0]
        work.append(count / layers)
    assert work[1] <= 1.05 * work[0]


def test_matching_changes_nothing():
    graph = layered_graph(1, traced_layer())
    before = str(graph)
    assert len(match_graph(graph, BUILT_IN)) == 1 and str(graph) == before


def test_report_of_nothing():
    assert FusionPass().report().summary.startswith("0 fused, 0 refused in 0 graphs")


def test_specs_of_the_site_are_in_the_report():
    _, report, _ = run_rewritten(site(NormSpelling(eps=1e-5), QuantSpelling(group=64)), *inputs())
    assert "eps 1e-05" in report.fused[0].what and "per 64" in report.fused[0].what
    assert GroupQuant(64).group_size == 64


def test_import_is_cheap_and_the_public_names_are_there():
    script = (
        "import sys, fusionlib;"
        "assert 'fusionlib.rewrite' not in sys.modules and 'fusionlib.match' not in sys.modules;"
        "assert callable(fusionlib.explain) and callable(fusionlib.FusionPass) and fusionlib.Report"
    )
    subprocess.run([sys.executable, "-c", script], env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)}, check=True)


@pytest.mark.skipif(torch.__version__ < "2.13", reason="before 2.13 Inductor takes no list, but a Chain")
def test_a_list_of_passes_is_a_composition_too():
    fusion, other, tensors = FusionPass(("cpu",)), Seen(), inputs()
    with fresh_cache():
        got = compiled(PATH, [fusion, other], *tensors)
    agree(got, PATH(*tensors), 128)
    assert other.count == 1 and len(fusion.report().fused) == 1
