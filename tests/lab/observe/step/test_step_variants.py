"""The variants: what each must fuse, and that a block that fuses something else is found."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace

import pytest
import torch

import fusionlib
from fusionlab.observe.bench import command
from fusionlab.observe.step.decode_sizes import FULL, KINDS, LINEAR
from fusionlab.observe.step.step_variants import SITES, STEP_VARIANTS, CompiledBlock, compile_block, compiled
from fusionlib.fusions import BUILT_IN
from tests.lab.observe.step.small_model import decoder, weights


@pytest.mark.parametrize("kind", KINDS)
def test_every_quantisation_of_a_block_is_a_site_of_a_built_in_fusion(kind):
    """The same report that the pass gives, without generating code."""
    model = decoder()
    index = model.first(kind)
    block, state = weights().opaque[index], [tensor.clone() for tensor in model.states[index]]

    def run(*tensors):
        return block(*tensors)

    with torch.no_grad():
        report = fusionlib.explain(run, model.hidden, model.hidden.clone(), *state, devices="cpu")
    assert report.fused_by == SITES[kind] and not report.refused and not report.unclaimed
    assert sum(SITES[kind].values()) == 4


def test_what_each_variant_must_fuse():
    expected = {name: [variant.expected(kind) for kind in KINDS] for name, variant in STEP_VARIANTS.items()}
    assert expected["opaque"] == expected["inductor"] == [{}, {}]
    assert expected["gated_norm"] == [{"gated_norm": 1}, {}]
    assert expected["fused"] == [SITES[LINEAR], SITES[FULL]]
    assert {name for sites in SITES.values() for name in sites} == {fusion.name for fusion in BUILT_IN}
    assert tuple(STEP_VARIANTS) == command.STEP_VARIANTS
    assert [name for name, variant in STEP_VARIANTS.items() if variant.native] == ["inductor"]
    assert STEP_VARIANTS["opaque"].make_pass() is None
    assert [fusion.name for fusion in STEP_VARIANTS["gated_norm"].make_pass().fusions] == ["gated_norm"]


@dataclass
class Report:
    fused_by: dict
    compiles: list = field(default_factory=lambda: [None])

    def __str__(self):
        return "the report's own text"


def judged(name, kind, report):
    return CompiledBlock(STEP_VARIANTS[name], kind, None, SimpleNamespace(report=lambda: report)).problem()


def test_a_site_that_is_missing_or_one_too_many_is_a_problem():
    assert judged("fused", FULL, Report(dict(SITES[FULL]))) is None
    less = {name: count for name, count in SITES[FULL].items() if name != "sigmoid_gate"}
    for wrong in (less, SITES[FULL] | {"rms_norm": 3}, {}):
        problem = judged("fused", FULL, Report(wrong))
        assert "was expected" in problem and "the report's own text" in problem
    assert judged("gated_norm", FULL, Report({})) is None
    assert judged("gated_norm", FULL, Report({"gated_norm": 1})) is not None


def test_code_for_every_layer_of_its_own_is_a_problem():
    assert "2 graphs" in judged("fused", LINEAR, Report(dict(SITES[LINEAR]), [None, None]))
    assert replace(compile_block(STEP_VARIANTS["opaque"], FULL), run=None).problem() is None


def test_what_is_compiled_is_one_graph():
    def broken(x):
        torch._dynamo.graph_break()
        return x + 1

    with pytest.raises(torch._dynamo.exc.Unsupported):
        compiled(broken, None)(torch.zeros(1))
