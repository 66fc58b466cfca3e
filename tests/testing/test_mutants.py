"""No mutant fuses wrongly: some hundred in every run, thousands in a long one (FUSIONLIB_MUTANTS, FUSIONLIB_SEED)."""

import os
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from fusionlab.scoreboard import TABLES
from fusionlib import GroupQuant, group_quant
from fusionlib.fusions import BUILT_IN
from fusionlib.testing.mutants import Base, capture, compared, copied, verdict, verdicts
from tests.spellings import NormSpelling, QuantSpelling, inputs, site

MUTANTS = int(os.environ.get("FUSIONLIB_MUTANTS", "400"))
SEED = int(os.environ.get("FUSIONLIB_SEED", "0"))

#: Spelled otherwise than the reference computes, in the last bit of a float32: another mutant would be blamed for it.
RESPELLED = {"z * sigmoid(z)", "pow(-0.5)", "F.rms_norm", "commuted products", "float32 activations"}


def special(x: torch.Tensor) -> torch.Tensor:
    """Rows of zeros, of tiny, of large and of no numbers among ordinary ones: where wrong readings show."""
    x = x.clone()
    x[0], x[1], x[2], x[3] = 0.0, x[1] * 1e-30, x[2] * 1e4, x[3].relu()
    x[4].view(-1)[3], x[4].view(-1)[200] = torch.inf, torch.nan
    return x


def vllm_reference(x, z, w):
    """As vLLM's and SGLang's tests have it: amax and floor in 16 bits, then float32."""
    v = NormSpelling()(x, z, w).flatten(1).unflatten(1, (-1, 128))
    amax = v.abs().max(-1, keepdim=True)[0].clamp(min=1e-10).to(torch.float32)
    scale = amax / 448.0
    return (v.float() / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale


def chosen_floor(x, z, w):
    """As AITER's tests have it: the floor by `where`."""
    v = NormSpelling()(x, z, w).flatten(1).unflatten(1, (-1, 128)).float()
    amax = v.abs().amax(-1, keepdim=True)
    scale = torch.where(amax < 1e-10, 1e-10, amax) / 448.0
    return (v / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale


def biased(x, z, w):
    """A norm with a bias before its gate."""
    v = x.float()
    y = (v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-6) * w.float() + w.float().cos()) * F.silu(z.float())
    return QuantSpelling()(y.to(x.dtype).flatten(1))


def widened(x, z, w):
    """float32 in, 16 bits out."""
    v = x.float().sin()
    y = v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-6) * w.float() * F.silu(z.float())
    return QuantSpelling()(y.to(torch.bfloat16).flatten(1))


def unclamped(x, z, w):
    """Without a clamp, which a floor makes superfluous."""
    v = NormSpelling()(x, z, w).flatten(1).unflatten(1, (-1, 128)).float()
    scale = (v.abs().amax(-1, keepdim=True) / 448.0).clamp(min=1e-10)
    return (v / scale).to(torch.float8_e4m3fn), scale


def normed(value, weight):
    """An RMS norm of whole rows."""
    v = value.float()
    return (v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-6) * weight).bfloat16()


def float32_sum(x, residual, weight):
    """As vLLM has it: the next layer reads the sum rounded."""
    total = x.float() + residual.float()
    return *QuantSpelling()(normed(total, weight)), total.bfloat16()


def bases() -> list[Base]:
    """The graphs that are mutated."""
    found = []
    for fusion, table in TABLES.items():
        for spelling in table:
            if spelling.name not in RESPELLED:
                torch.manual_seed(SEED)  # so that another row changes no values of those behind it
                fn, args = spelling.build()
                found.append(capture(f"{fusion}, {spelling.name}", fn, *args))
    x, z, w = inputs()
    more = {
        "vllm's reference": vllm_reference,
        "floor by where": chosen_floor,
        "bias": biased,
        "float32 in": widened,
        "no clamp": unclamped,
        "unrounded": site(NormSpelling(round_output=False), QuantSpelling()),
        "qwen3-next": site(NormSpelling(round_norm=True, weight_float=False, weight_first=True), QuantSpelling()),
        "mamba2": site(NormSpelling(gate_first=True, round_norm=True, weight_float=False), QuantSpelling(floor=None)),
        "padded columns": lambda x, z, w: group_quant(
            NormSpelling()(x, z, w).flatten(1), GroupQuant(scale_layout="column_major_padded")
        ),
    }
    found += [capture(name, fn, special(x), z, w) for name, fn in more.items()]
    rows, weight = (special(torch.randn(6, 4, 128)).flatten(1).bfloat16() for _ in range(2)), torch.rand(512)
    x, other = rows
    pairs = {
        "rms norm of a sum": lambda x, r, w: (*QuantSpelling()(normed(x + r, w)), x + r),
        "rms norm of a float32 sum": float32_sum,
        "rms norm, 1 + w": lambda x, r, w: QuantSpelling(floor=None)(normed(x, 1 + w)),
        "swiglu": lambda x, g, w: QuantSpelling()(F.silu(g) * x),
        "swiglu in float32": lambda x, g, w: QuantSpelling()((g.float() * torch.sigmoid(g.float()) * x).bfloat16()),
        "geglu": lambda x, g, w: QuantSpelling()(F.gelu(g, approximate="tanh") * x),
        "sigmoid gate": lambda x, g, w: QuantSpelling()(torch.sigmoid(g) * x),
    }
    return found + [capture(name, fn, x, other, weight) for name, fn in pairs.items()]


@pytest.fixture(scope="module")
def graphs():
    return bases()


def test_every_base_fuses_and_is_equal(graphs):
    for base in graphs:
        result = verdict(fx.GraphModule(base.root, copied(base.graph)), base.inputs)
        assert result == "equal" or (base.name == "unrounded" and result == "respelled"), base.name


def test_no_mutant_fuses_wrongly(graphs):
    counts, wrong = Counter(), []
    for result, text in verdicts(graphs, BUILT_IN, MUTANTS, SEED):
        counts[result.split(":")[0]] += 1
        if result.startswith("WRONG"):
            wrong.append(f"{result}\n  {text}")
    print(f"\nseed {SEED}: {dict(counts)}")
    print("\n".join(wrong))
    assert not wrong, f"{len(wrong)} mutants of seed {SEED} fused wrongly:\n" + "\n".join(wrong[:20])
    assert counts["equal"] and counts["refused"]


def test_a_wrong_result_is_seen():
    """Else no mutant could fail."""
    codes, scale = torch.tensor([1.0, -0.0]).to(torch.float8_e4m3fn), torch.tensor([[1.0], [2.0]])
    assert compared([codes, scale], [codes.clone(), scale.clone()]) == "equal"
    assert compared([codes], [codes.abs()]).startswith("WRONG")
    assert compared([scale], [scale * 2]).startswith("WRONG")
    assert compared([scale], [scale.t()]).startswith("WRONG")
    assert compared([scale], [scale.bfloat16()]).startswith("WRONG")
