"""The kit passes what is right, and each of its findings is made by something that is wrong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fusionlab.exercises.worked.silu_and_mul import SiluAndMul, silu_and_mul
from fusionlab.exercises.worked.silu_fusion import SiluAndMulQuant
from fusionlib import GatedNorm, GroupQuant, reference
from fusionlib.fusions import GatedNormQuant, Reading
from fusionlib.testing import BROKEN, Case, broken_op, judge, report


def halves(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    wide = 3 * torch.randn(tokens, 3 * 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    return wide[:, :256], wide[:, 256:512]


def check_silu(op) -> None:
    """The author's test: bits, strided rows, a group of zeros, two sizes and floors, every rounding."""
    gate, up = halves(7)
    gate[2] = 0.0
    for quant in (GroupQuant(128), GroupQuant(64, floor=0.25)):
        for act in (True, False):
            for out in (True, False):
                spec = SiluAndMul(act, out)
                codes, scale = op(gate, up, spec, quant)
                want_codes, want_scale = reference.group_quant(silu_and_mul(gate, up, spec), quant)
                assert torch.equal(codes.view(torch.uint8), want_codes.view(torch.uint8))
                assert torch.equal(scale, want_scale)


SILU = Case(
    SiluAndMulQuant(),
    {
        "F.silu": lambda gate, up: F.silu(gate) * up,
        "commuted, in float32": lambda gate, up: (up.float() * F.silu(gate.float())).to(gate.dtype),
        "unrounded": lambda gate, up: F.silu(gate.float()) * up.float(),
    },
    halves,
    must_not={
        "gelu": lambda gate, up: F.gelu(gate) * up,
        "a product with itself": lambda gate, up: F.silu(gate) * up * up,
        "a broadcast gate": lambda gate, up: F.silu(gate[:, :1]) * up,
        "silu of silu": lambda gate, up: F.silu(F.silu(gate)) * up,
    },
    test=check_silu,
)


def heads(tokens: int) -> tuple[torch.Tensor, ...]:
    draw = torch.Generator().manual_seed(1)
    x, gate = (2 * torch.randn(tokens, 4, 128, generator=draw).bfloat16() for _ in range(2))
    return x, gate, torch.rand(128, generator=draw).bfloat16() + 0.5


def check_norm(op) -> None:
    x, gate, weight = heads(7)
    x, gate = torch.cat([x, gate], -1).chunk(2, -1)  # strided
    x[2] = 0.0
    for quant in (GroupQuant(128), GroupQuant(64, floor=0.25)):
        codes, scale = op(x, gate, weight, None, GatedNorm.vllm(), quant)
        y = reference.rms_norm_gated(x, gate, weight, GatedNorm.vllm())
        want_codes, want_scale = reference.group_quant(y, quant)
        assert torch.equal(codes.view(torch.uint8), want_codes.view(torch.uint8)) and torch.equal(scale, want_scale)


NORM = Case(
    GatedNormQuant(),
    {
        "vllm": lambda x, z, w: reference.rms_norm_gated(x, z, w, GatedNorm.vllm()),
        "qwen3_next": lambda x, z, w: reference.rms_norm_gated(x, z, w, GatedNorm.qwen3_next()),
        "kimi_linear": lambda x, z, w: reference.rms_norm_gated(x, z, w, GatedNorm.kimi_linear()),
    },
    heads,
    must_not={
        "twice": lambda x, z, w: 2.0 * reference.rms_norm_gated(x, z, w, GatedNorm.vllm()),
        "tanh": lambda x, z, w: (x.float() * torch.rsqrt(x.float().pow(2).mean(-1, True)) * z.tanh()).flatten(1),
    },
    test=check_norm,
)


@pytest.mark.parametrize("case", [SILU, NORM], ids=lambda case: case.fusion.name)
def test_the_fusions_here_are_right(case):
    findings = judge(case, mutants=60)
    assert not any(finding.problem for finding in findings), report(findings)
    assert len(findings) >= 18 and "the author's own test" in {finding.tried for finding in findings}


class Hasty(SiluAndMulQuant):
    """Takes every silu for one that is not rounded."""

    name = "hasty"

    def read(self, value, trail):
        reading = super().read(value, trail)
        return Reading(reading.rows, SiluAndMul(False, reading.spec.round_output))


class Exchanged(SiluAndMulQuant):
    """Takes gate for up."""

    name = "exchanged"

    def read(self, value, trail):
        reading = super().read(value, trail)
        return Reading({"gate": reading.rows["up"], "up": reading.rows["gate"]}, reading.spec)


def problems(fusion, **changes) -> dict[str, str]:
    case = Case(fusion, SILU.spellings, SILU.tensors, must_not=SILU.must_not, **changes)
    return {finding.tried: finding.problem for finding in judge(case, mutants=20) if finding.problem}


@pytest.mark.parametrize("fusion", [Hasty(), Exchanged()], ids=lambda fusion: fusion.name)
def test_a_wrong_reading_is_found(fusion):
    found = problems(fusion)
    assert "spelling F.silu" in found and "WRONG" in found["spelling F.silu"]
    assert "an opaque quantisation" in found and "dynamic tokens" in found


def test_a_test_that_turns_nothing_down_is_found():
    found = problems(SiluAndMulQuant(), test=lambda op: None)
    assert set(found) == {"the author's own test"}
    assert all(kind in found["the author's own test"] for kind in BROKEN)


@pytest.mark.parametrize("kind", BROKEN)
def test_every_broken_op_is_wrong(kind):
    with pytest.raises(AssertionError):
        check_silu(broken_op(SiluAndMulQuant.op, kind))
