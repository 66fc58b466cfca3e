"""Reading and rewriting take steps in proportion to the nodes, whatever the graph: counted, not timed."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from fusionlib import FusionPass
from tests.spellings import NormSpelling, inputs


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


def steps(fn, k: int) -> int:
    """How many Python functions the pass calls in this library for `fn` at size `k`."""
    x, z, w = inputs(tokens=2)
    graph = make_fx(lambda *tensors: fn(*tensors, k), tracing_mode="fake")(x, z, w).graph
    count = 0

    def profile(frame, event, _):
        nonlocal count
        count += event == "call" and "fusionlib" in frame.f_code.co_filename

    sys.setprofile(profile)
    try:
        FusionPass("cpu").rewrite(graph)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("fn", GROWING, ids=lambda fn: fn.__name__)
def test_twice_the_nodes_take_twice_the_steps(fn):
    small, large = steps(fn, 16), steps(fn, 64)
    assert large <= 4.5 * small, f"{small} steps for 16, {large} for 64"


@pytest.mark.parametrize("fn", [squared, squared_inside, squared_gate], ids=lambda fn: fn.__name__)
def test_a_product_of_products_is_not_multiplied_out(fn):
    """2^k factors in k nodes: a bound ends in a refusal."""
    assert steps(fn, 40) <= 2 * steps(fn, 20) + 2000
