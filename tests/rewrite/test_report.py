"""A record says enough of each node to be read and drawn without the graph, and travels unchanged."""

import torch

import fusionlib
from fusionlib.rewrite.report import CompileRecord
from tests.spellings import NormSpelling, QuantSpelling, inputs, site


def sites(norm):
    with torch.no_grad():
        return fusionlib.explain(site(norm, QuantSpelling()), *inputs(), devices="cpu").compiles[0]


def test_every_matched_node_is_told_once_fused_or_refused():
    for norm, fused in ((NormSpelling(), True), (lambda x, z, w: torch.tanh(x), False)):
        (found,) = sites(norm).sites
        assert found.fused == fused
        names = [name for name, *_ in found.nodes]
        assert len(names) == len(set(names))
        assert set(names) == {node for _, node in found.pairs} | {found.anchor, found.node}


def test_a_node_is_told_with_its_operation_tensor_and_source():
    (found,) = sites(NormSpelling()).sites
    told = {name: rest for name, *rest in found.nodes}
    roles = dict(found.pairs)
    assert told[roles["amax"]] == ["aten.amax.default", "float32 [6, 4, 1]", told[roles["amax"]][2]]
    assert ".abs().amax(-1, keepdim=True)" in told[roles["amax"]][2]
    assert roles["product of x, rsqrt, weight, gate"] == roles["normed"]


def test_a_record_survives_the_cache():
    record = sites(NormSpelling())
    decoded = CompileRecord.decode(record.encode())
    assert decoded.sites == record.sites and decoded.cached
