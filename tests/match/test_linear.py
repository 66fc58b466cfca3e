"""Reading and rewriting take steps in proportion to the nodes, whatever the graph: counted, and not timed."""

import sys
from collections import Counter
from pathlib import Path
from types import CodeType

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

import fusionlib
from fusionlib import FusionPass
from tests.spellings import NormSpelling, inputs

COUNTED = tuple(str(Path(module.__file__).parent) for module in (fusionlib, torch.fx))


def quant(y):
    v = y.unflatten(1, (-1, 128)).float()
    scale = (v.abs().amax(-1, keepdim=True) / 448.0).clamp(min=1e-10)
    return (v / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale


def normed(x, z, w):
    return NormSpelling()(x, z, w).flatten(1)


def squared(x, z, w, k):
    y = normed(x, z, w)
    for _ in range(k):
        y = y * y
    return quant(y)


def squared_inside(x, z, w, k):
    v = x.float()
    v = v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-6)
    for _ in range(k):
        v = v * v
    return quant((v * F.silu(z.float())).to(x.dtype).flatten(1))


def squared_gate(x, z, w, k):
    for _ in range(k):
        z = z * z
    return quant(normed(x, z, w))


def viewed(x, z, w, k):
    y = normed(x, z, w)
    for _ in range(k):
        y = y.view(-1, 128).view(x.shape[0], -1)
    return quant(y)


def viewed_before(x, z, w, k):
    heads = x.shape
    for _ in range(k):
        x = x.view(-1, 128).view(heads)
    return quant(normed(x, z, w))


def viewed_scale(x, z, w, k):
    codes, scale = quant(normed(x, z, w))
    for _ in range(k):
        scale = scale.view(-1).view(x.shape[0], -1)
    return codes, scale


def clamped(x, z, w, k):
    v = normed(x, z, w).unflatten(1, (-1, 128)).float()
    v = v / (v.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 448.0)
    for _ in range(k):
        v = v.clamp(-448.0, 448.0)
    return v.to(torch.float8_e4m3fn)


def quantised_often(x, z, w, k):
    y = normed(x, z, w)
    return [quant(y) for _ in range(k)]


def many_sites(x, z, w, k):
    return [quant(normed(x + i, z, w)) for i in range(k)]


def written_to(x, z, w, k):
    buffer, results = torch.zeros(8), []
    for i in range(k):
        results.append(quant(normed(x + i, z, w)))
        buffer.add_(1)
    return [*results, buffer]


GROWING = [viewed, viewed_before, viewed_scale, clamped, quantised_often, many_sites, written_to]


#: What these do for a graph's output is FX's: replacing one of its arguments sets all of them anew.
OF_THE_OUTPUT = ("Journal.replace", "_orders_of_users")


def instructions(fn, k: int) -> Counter[str]:
    """How many bytecode instructions each function of this library and of torch.fx runs in the pass for `fn` at `k`.

    A loop in a comprehension or a generator counts with the function that it stands in.
    """
    x, z, w = inputs(tokens=2)
    graph = make_fx(lambda *tensors: fn(*tensors, k), tracing_mode="fake")(x, z, w).graph
    counts: Counter[CodeType] = Counter()

    def count(frame, event, _):
        counts[frame.f_code] += event == "opcode"
        return count

    def trace(frame, event, _):
        if not frame.f_code.co_filename.startswith(COUNTED):
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return count

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        FusionPass("cpu").rewrite(graph)
    finally:
        sys.settrace(before)
    by_function: Counter[str] = Counter()
    for code, number in counts.items():
        by_function[f"{Path(code.co_filename).stem}: {code.co_qualname.partition('.<locals>')[0]}"] += number
    return by_function


def growing_faster(small: Counter[str], middle: Counter[str], large: Counter[str]) -> dict[str, tuple[int, ...]]:
    """The functions whose instructions grow faster than linearly from k over 2k to 4k, with their numbers.

    What does not depend on k drops out of the differences; of linear ones the second is twice the first.
    """
    found = {name: (small[name], middle[name], large[name]) for name in large if not name.endswith(OF_THE_OUTPUT)}
    return {name: (a, b, c) for name, (a, b, c) in found.items() if c - b > 2.1 * (b - a) + 200}


@pytest.mark.parametrize("fn", GROWING, ids=lambda fn: fn.__name__)
def test_instructions_grow_with_the_nodes(fn):
    instructions(fn, 1)  # what is filled once and for all
    counts = [instructions(fn, k) for k in (8, 16, 32)]
    assert growing_faster(*counts) == {}
    small, middle, large = (counts.total() for counts in counts)
    assert large - middle <= 2.1 * (middle - small)


def test_a_loop_over_all_nodes_at_each_site_would_be_found(monkeypatch):
    original = FusionPass._apply

    def slow(self, plan, facts, journal):
        assert all(node.graph is not None for node in journal._graph.nodes)
        return original(self, plan, facts, journal)

    monkeypatch.setattr("tests.match.test_linear.COUNTED", (*COUNTED, __file__))
    monkeypatch.setattr(FusionPass, "_apply", slow)
    counts = [instructions(many_sites, k) for k in (4, 8, 16)]
    assert [name.rpartition(" ")[2] for name in growing_faster(*counts)] == [
        "test_a_loop_over_all_nodes_at_each_site_would_be_found"
    ]


@pytest.mark.parametrize("fn", [squared, squared_inside, squared_gate], ids=lambda fn: fn.__name__)
def test_a_product_of_products_is_not_multiplied_out(fn):
    """2^k factors in k nodes: a bound ends in a refusal."""
    assert instructions(fn, 40).total() <= 2 * instructions(fn, 20).total()
