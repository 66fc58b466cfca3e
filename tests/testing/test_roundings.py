"""Roundings that older versions of PyTorch drop stay in graphs traced for reading; afterwards all is as before."""

import torch
from torch import fx
from torch._inductor.fx_passes import joint_graph

from fusionlib.testing.roundings import roundings_kept
from fusionlib.testing.run_edited import run_edited


def rounded(x: torch.Tensor) -> torch.Tensor:
    return x.bfloat16().float() * 2


def entries() -> dict[object, list[object]]:
    return {key: list(found) for key, found in joint_graph.patterns.patterns.items()}


def test_a_rounding_is_in_the_graph_and_in_the_result():
    graphs: list[fx.Graph] = []
    x = torch.randn(100)
    assert torch.equal(run_edited(graphs.append, rounded, x), rounded(x))
    casts = [node.args[1] for graph in graphs for node in graph.nodes if "convert_element_type" in str(node.target)]
    assert casts == [torch.bfloat16, torch.float32]


def test_the_patterns_are_back_afterwards():
    before = entries()
    with roundings_kept():
        within = entries()
    assert entries() == before
    left_out = [e for key in before for e in before[key] if e not in within[key]]
    names = {getattr(e.handler, "__name__", "") for e in left_out}
    assert names == ({"pointless_convert"} if torch.__version__ < "2.13" else set())
