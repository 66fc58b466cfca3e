"""How PyTorch makes a scale of a maximum depends on the device and on what the divisor is: the spec must say which."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from fusionlab.codes import code_steps
from fusionlib import GroupQuant
from fusionlib.fusions import BUILT_IN
from fusionlib.match import Match, match_graph
from fusionlib.spec import FP8_MAXIMA
from tests.spellings import NormSpelling, inputs, run_rewritten


def path(scale):
    """The whole path, with `scale(amax)` for the scale."""

    def fn(x, z, w):
        groups = NormSpelling()(x, z, w).flatten(1).unflatten(1, (-1, 128)).float()
        made = scale(groups.abs().amax(-1, keepdim=True))
        return (groups / made).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), made

    return fn


BY_A_NUMBER = {
    "a number": lambda amax: amax / 448.0,
    "a whole number": lambda amax: amax / 448,
    "a scalar on the CPU": lambda amax: amax / torch.tensor(448.0),
}
BY_A_TENSOR = {
    "a scalar beside it": lambda amax: amax / amax.new_full((), 448.0),
    "a vector of one": lambda amax: amax / amax.new_full((1,), 448.0),
}
PRODUCTS = {
    "the reciprocal": lambda amax: amax * (1.0 / 448.0),
    "the reciprocal first": lambda amax: (1.0 / 448.0) * amax,
    "the reciprocal as float32": lambda amax: amax * amax.new_full((), 1.0 / 448.0),
}


def read(fn, device: str) -> GroupQuant:
    with FakeTensorMode():
        x, z = (torch.empty(6, 4, 128, dtype=torch.bfloat16, device=device) for _ in range(2))
        graph = make_fx(fn)(x, z, torch.empty(128, dtype=torch.bfloat16, device=device)).graph
    (match,) = match_graph(graph, BUILT_IN)
    assert isinstance(match, Match), match
    return match.quant.spec


@pytest.mark.parametrize("name", BY_A_NUMBER | BY_A_TENSOR | PRODUCTS)
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_spec_says_what_the_device_computes(name, device):
    spec = read(path((BY_A_NUMBER | BY_A_TENSOR | PRODUCTS)[name]), device)
    multiplies = name in PRODUCTS or (device == "cuda" and name in BY_A_NUMBER)
    assert spec == GroupQuant(floor=None, scale_division="reciprocal" if multiplies else "divide")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("name", BY_A_NUMBER | BY_A_TENSOR | PRODUCTS)
def test_each_is_equal_to_eager_to_the_bit(name, dtype):
    fn = path((BY_A_NUMBER | BY_A_TENSOR | PRODUCTS)[name])
    x, z, w = inputs(tokens=64, dtype=dtype)
    (codes, scale), report, _ = run_rewritten(fn, x, z, w)
    eager_codes, eager_scale = fn(x, z, w)
    assert len(report.fused) == 1, str(report)
    assert torch.equal(scale, eager_scale) and not code_steps(codes, eager_codes).any()


def test_the_two_differ():
    """Else no test here could fail."""
    amax = torch.rand(4096)
    assert not torch.equal(amax / 448.0, amax * (1.0 / 448.0))


@pytest.mark.parametrize("fp8_max", sorted({m for maxima in FP8_MAXIMA.values() for m in maxima}))
def test_a_reciprocal_rounded_twice_is_the_one_rounded_once(fp8_max):
    """CUDA divides in float32, and a product with a Python number rounds its float64: both give one float32."""
    assert torch.tensor(1.0 / fp8_max) == torch.tensor(1.0) / torch.tensor(fp8_max)


@pytest.mark.parametrize("factor", [1 / 447.0, 1 / 240.0, 0.0, 448.0])
def test_a_product_with_another_number_is_refused(factor):
    _, report, _ = run_rewritten(path(lambda amax: amax * factor), *inputs())
    assert [site.code for site in report] == ["scale_arithmetic"], str(report)
