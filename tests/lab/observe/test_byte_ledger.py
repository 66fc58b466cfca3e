"""The ledger: bytes counted by hand, by the closed form and from captured graphs agree."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._functorch.aot_autograd import aot_function, make_boxed_func
from torch.fx.experimental.proxy_tensor import make_fx

from fusionlab.observe.byte_ledger import (
    BYTES_KEY,
    Bytes,
    LedgerError,
    annotate,
    group_bytes,
    is_view,
    ledger,
    path_bytes,
    residual,
)
from fusionlib import GatedNorm, GroupQuant, group_quant, reference, rms_norm_gated_group_quant
from tests.support import grouped_gate, quants

NORM, QUANT = GatedNorm.vllm(), GroupQuant.vllm()
TOKENS, HEADS, DIM = 4, 32, 128
ELEMENTS = TOKENS * HEADS * DIM


def inputs(dtype=torch.bfloat16):
    x = torch.randn(TOKENS, HEADS, DIM).to(dtype)
    return x, torch.randn_like(x), torch.ones(DIM, dtype=dtype)


def unfused(x, gate, weight):
    return group_quant(reference.rms_norm_gated(x, gate, weight, NORM), QUANT)


def native(x, gate, weight):
    return reference.group_quant(reference.rms_norm_gated(x, gate, weight, NORM), QUANT)


def fused(x, gate, weight):
    return rms_norm_gated_group_quant(x, gate, weight, norm=NORM, quant=QUANT)


class Module(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *args):
        return self.function(*args)


def by_aot(function, args):
    graphs = []

    def compiler(module, _):
        graphs.append(module.graph)
        return make_boxed_func(module.forward)

    aot_function(function, fw_compiler=compiler)(*args)
    return graphs[0]


def by_export(function, args):
    tokens = torch.export.Dim("tokens")
    dynamic = ({0: tokens}, {0: tokens}, None) if len(args) == 3 else None
    return torch.export.export(Module(function), args, dynamic_shapes=None if dynamic is None else (dynamic,)).graph


CAPTURES = {
    "make_fx real": lambda function, args: make_fx(function, tracing_mode="real")(*args).graph,
    "make_fx fake": lambda function, args: make_fx(function, tracing_mode="fake")(*args).graph,
    "make_fx symbolic": lambda function, args: make_fx(function, tracing_mode="symbolic")(*args).graph,
    "aot": by_aot,
    "export": by_export,
}


def calls(graph):
    return [node for node in graph.nodes if node.op == "call_function"]


def test_the_design_s_bytes_per_element():
    """x 2 + gate 2 + normed 2 + normed 2 + code 1 + scale 4/128 = 9.03 bytes; fused 5.03."""
    moved = path_bytes(TOKENS, HEADS * DIM, NORM, QUANT, weight_elements=0)
    assert moved.unfused.total / ELEMENTS == 2 + 2 + 2 + 2 + 1 + 4 / 128
    assert moved.fused.total / ELEMENTS == 2 + 2 + 1 + 4 / 128
    assert round(moved.unfused.total / ELEMENTS, 2) == 9.03
    assert round(moved.fused.total / ELEMENTS, 2) == 5.03
    assert path_bytes(TOKENS, HEADS * DIM, NORM, QUANT).fused.total == moved.fused.total + 2 * DIM  # the weight, once


@pytest.mark.parametrize("capture", CAPTURES)
def test_the_fused_op(capture):
    """x + gate + weight read, codes + scale written, whatever captured the graph."""
    graph = CAPTURES[capture](fused, inputs())
    entries = [entry for entry in ledger(graph) if not entry.view]
    assert [entry.target for entry in entries] == ["fusionlib.rms_norm_gated_group_quant.default"]
    assert entries[0].bytes == Bytes(2 * ELEMENTS + 2 * ELEMENTS + 2 * DIM, ELEMENTS + 4 * ELEMENTS // 128)
    assert entries[0].bytes == path_bytes(TOKENS, HEADS * DIM, NORM, QUANT).fused


@pytest.mark.parametrize("capture", CAPTURES)
def test_two_groups_of_an_unfused_graph(capture):
    """The norm's nodes as one kernel and the quantisation's as another match the closed form's two kernels."""
    graph = CAPTURES[capture](unfused, inputs())
    (anchor,) = (node for node in calls(graph) if "group_quant" in str(node.target))
    norm = calls(graph)[: calls(graph).index(anchor)]
    expected = path_bytes(TOKENS, HEADS * DIM, NORM, QUANT)
    assert group_bytes(norm) == expected.norm
    assert group_bytes([anchor]) == expected.quant
    assert group_bytes(calls(graph)) == expected.fused


@pytest.mark.parametrize("capture", CAPTURES)
def test_a_whole_native_graph_as_one_kernel(capture):
    graph = CAPTURES[capture](native, inputs())
    assert group_bytes(calls(graph)) == path_bytes(TOKENS, HEADS * DIM, NORM, QUANT).fused
    assert annotate(graph).total > path_bytes(TOKENS, HEADS * DIM, NORM, QUANT).unfused.total
    assert all(isinstance(node.meta[BYTES_KEY], Bytes) for node in calls(graph))


@pytest.mark.parametrize("capture", ["make_fx fake", "aot"])
def test_nodes_by_hand(capture):
    def function(x, w):
        a = x.view(8, 16)  # free
        b = a + a  # one distinct input
        c = b.t() * w.expand(16, 8)  # the expanded weight is 16 floats
        return c, b[:2].sum()  # the slice reads two rows

    graph = CAPTURES[capture](function, (torch.randn(128), torch.randn(16, 1)))
    moved = {entry.node: (entry.bytes.read, entry.bytes.written) for entry in ledger(graph) if not entry.view}
    assert list(moved.values()) == [(512, 512), (512 + 64, 512), (2 * 16 * 4, 4)]


def test_two_views_of_one_tensor_are_read_as_one():
    graph = CAPTURES["make_fx fake"](lambda x: x.view(4, 8)[:2] + x.view(8, 4)[:4].view(2, 8), (torch.randn(32),))
    assert ledger(graph)[-1].bytes.read == 64  # the same half by two routes
    graph = CAPTURES["make_fx fake"](lambda x: x.view(4, 8)[:3] + x.view(4, 8)[1:], (torch.randn(32),))
    assert ledger(graph)[-1].bytes.read == 4 * 32  # two overlapping parts of three rows: at most the whole
    graph = CAPTURES["make_fx fake"](lambda x: x[:3] + x[3:6] + x[1:4], (torch.randn(6),))
    assert group_bytes(calls(graph)).read == 24


def test_an_expanded_slice_is_read_once():
    graph = CAPTURES["make_fx fake"](lambda x, w: x + w[2:3].expand(16, 8), (torch.randn(16, 8), torch.randn(16, 8)))
    assert ledger(graph)[-1].bytes == Bytes(16 * 8 * 4 + 8 * 4, 16 * 8 * 4)


def test_views_are_known_by_name_where_storage_is_not_shared():
    """Passes that rebuild a node's `val` lose the sharing; a view is still a view."""
    graph = CAPTURES["make_fx fake"](lambda x: x.t().contiguous(), (torch.randn(4, 8),))
    for node in calls(graph):
        node.meta["val"] = node.meta["val"].clone()
    assert [entry.bytes for entry in ledger(graph)] == [Bytes(), Bytes(128, 128)]


def test_an_allocation_moves_nothing():
    graph = CAPTURES["make_fx fake"](lambda x: torch.empty_like(x).copy_(x), (torch.randn(8),))
    assert [entry.bytes for entry in ledger(graph)] == [Bytes(), Bytes(32, 32)]


def test_in_place_ops_read_and_write_and_copies_do_not_read():
    def function(x, y):
        x.add_(y)
        y.copy_(x)
        return y

    graph = CAPTURES["make_fx fake"](function, (torch.randn(8), torch.randn(8)))
    assert [entry.bytes for entry in ledger(graph)] == [Bytes(64, 32), Bytes(32, 32)]


def test_a_strided_gate_costs_its_own_bytes_only():
    gate = grouped_gate(TOKENS, 16, 2, DIM, torch.bfloat16)
    x, _, weight = inputs()
    graph = CAPTURES["make_fx fake"](fused, (x, gate, weight))
    assert group_bytes(calls(graph)) == path_bytes(TOKENS, HEADS * DIM, NORM, QUANT).fused


@given(st.integers(0, 5), quants(64, (torch.float8_e4m3fn,)), st.booleans(), st.sampled_from([torch.float32, None]))
def test_the_closed_form_is_the_tensors_sizes(tokens, quant, with_norm, gate_dtype):
    """Against real tensors: the sum of inputs and outputs."""
    norm = GatedNorm(64)
    x = torch.randn(tokens, 320).bfloat16()
    gate = x.to(gate_dtype or x.dtype)
    weight = torch.ones(64)
    out = rms_norm_gated_group_quant(x, gate, weight, norm=norm, quant=quant, return_normed=with_norm)
    moved = path_bytes(tokens, 320, norm, quant, gate_dtype=gate_dtype, weight_dtype=torch.float32, with_norm=with_norm)
    assert moved.fused == Bytes(sum(t.nbytes for t in (x, gate, weight)), sum(t.nbytes for t in out))


def test_time_and_residual():
    """5.03 bytes per element at the 8192 tokens of data/reference/h200_survey.json: 40.5 us measured are 4.17 TB/s."""
    moved = path_bytes(8192, 4096, NORM, QUANT).fused
    assert moved.time_us(4170) == pytest.approx(40.5, rel=2e-3)
    assert Bytes(600, 400).time_us(1.0) == 1.0  # 1000 bytes at 1e9 a second
    found = residual(moved, 4170, 45.3)
    assert found.residual_us == pytest.approx(4.8, abs=0.1)
    assert found.share == pytest.approx(40.5 / 45.3, rel=2e-3)
    for bad in (0, -1, float("nan"), float("inf")):
        with pytest.raises(LedgerError, match="bandwidth_gb_s"):
            moved.time_us(bad)
        with pytest.raises(LedgerError, match="measured_us"):
            residual(moved, 1, bad)


def test_what_cannot_be_counted_is_named():
    graph = CAPTURES["make_fx fake"](lambda x: x.sin().cos(), (torch.randn(3),))
    node = calls(graph)[0]
    del node.meta["val"]
    with pytest.raises(LedgerError, match="node 'sin' has no meta"):
        ledger(graph)
    for bad in ({"tokens": -1}, {"hidden": 4100}, {"hidden": 0}, {"tokens": True}):
        with pytest.raises(LedgerError, match=next(iter(bad))):
            path_bytes(**({"tokens": 1, "hidden": 4096} | bad), norm=NORM, quant=QUANT)


def test_a_size_without_a_value_is_named():
    class Nonzero(torch.nn.Module):
        def forward(self, x):
            return x.nonzero() + 1

    graph = torch.export.export(Nonzero(), (torch.tensor([1, 0, 2]),)).graph
    with pytest.raises(LedgerError, match="without a value"):
        ledger(graph)


def test_split_outputs_are_views():
    graph = CAPTURES["make_fx fake"](lambda x: [part * 2 for part in x.split(2)], (torch.randn(6),))
    entries = ledger(graph)
    assert [entry.bytes.total for entry in entries if not entry.view] == [16, 16, 16]
    assert is_view(calls(graph)[0])
