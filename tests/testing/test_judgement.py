"""The kit passes what is right, and each of its findings is made by something that is wrong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fusionlab.exercises.worked.silu_and_mul import SiluAndMul, silu_and_mul
from fusionlab.exercises.worked.silu_fusion import SiluAndMulQuant
from fusionlib import ActAndMul, GatedNorm, GroupQuant, RMSNorm, reference
from fusionlib.fusions import ActAndMulQuant, GatedNormQuant, Reading, RMSNormQuant, SigmoidGateQuant
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


def sums(tokens: int) -> tuple[torch.Tensor, ...]:
    """x, a slice of a wider projection, and its residual [tokens, 512], and a weight."""
    draw = torch.Generator().manual_seed(2)
    wide = 2 * torch.randn(tokens, 1536, generator=draw).bfloat16()
    return wide[:, :512], torch.randn(tokens, 512, generator=draw).bfloat16(), torch.rand(512, generator=draw) + 0.5


def rms(x, weight, offset=0):
    value = x.float()
    return value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6) * (offset + weight.float())


def same_as(value, op, tensors, spec) -> None:
    """The author's test of an op: `value` of the spec, quantised by two sizes and floors, to the bit."""
    for quant in (GroupQuant(128), GroupQuant(64, floor=0.25)):
        codes, scale = op(*tensors, spec, quant)
        want_codes, want_scale = reference.group_quant(value(*tensors, spec), quant)
        assert torch.equal(codes.view(torch.uint8), want_codes.view(torch.uint8)) and torch.equal(scale, want_scale)


def check_rms_norm(op) -> None:
    x, residual, weight = sums(7)
    x[2], residual[2] = 0.0, 0.0
    mask = torch.tensor([0, 1, 1, 0, 1, 3, 1])
    for spec in (RMSNorm.native(512), RMSNorm.llama(128), RMSNorm.vllm(512), RMSNorm.qwen3_next(64)):
        given = weight[: spec.norm_size]
        for add, dtype in ((residual, torch.bfloat16), (residual.float(), torch.float32), (None, None)):
            assert add is None or add.dtype is dtype
            for factor in (None, mask):
                tensors = (x, add, given, factor)
                same_as(lambda x, r, w, f, spec: reference.rms_norm(x, w, spec, r, f)[0], op, tensors, spec)


RMS_NORM = Case(
    RMSNormQuant(),
    {
        "sum of 16 bits": lambda x, r, w: reference.rms_norm(x, w, RMSNorm.native(512), r)[0],
        "sum of float32": lambda x, r, w: reference.rms_norm(x, w, RMSNorm.vllm(512), r)[0],
        "transformers": lambda x, r, w: reference.rms_norm(x, w.bfloat16(), RMSNorm.llama(512), r)[0],
        "1 + w": lambda x, r, w: rms(x + r, w, 1).bfloat16(),
        "no residual": lambda x, r, w: rms(x, w).bfloat16(),
        "unrounded": lambda x, r, w: rms(x + r, w),
        "heads": lambda x, r, w: rms(x.view(-1, 4, 128), w[:128]).bfloat16().flatten(1),
        "masked": lambda x, r, w: rms(x + r, w).bfloat16() * (r[:, :1] > 0),
        "masked in float32": lambda x, r, w: (rms(x + r, w).bfloat16() * r[:, :1].float()).bfloat16(),
    },
    sums,
    must_not={
        "masked before it is rounded": lambda x, r, w: (rms(x + r, w) * r[:, :1].float()).bfloat16(),
        "one number per head": lambda x, r, w: (rms(x, w).bfloat16().view(-1, 4, 128) * r[:, :4, None]).flatten(1),
        "twice": lambda x, r, w: (2.0 * rms(x + r, w)).bfloat16(),
        "a bias": lambda x, r, w: (rms(x + r, w) + w).bfloat16(),
        "another's root": lambda x, r, w: (rms(x, w) * (x + r).float() / x.float()).bfloat16(),
        "layer norm": lambda x, r, w: F.layer_norm((x + r).float(), (512,), w).bfloat16(),
        "l2": lambda x, r, w: F.normalize((x + r).float(), dim=-1).bfloat16(),
        "over tokens": lambda x, r, w: rms((x + r).t(), torch.ones(1)).t().contiguous().bfloat16(),
        "rounded before the root": lambda x, r, w: (rms((x + r).float() * 1.0, w).half()).bfloat16(),
    },
    test=check_rms_norm,
)


def check_act_and_mul(op) -> None:
    gate, up = halves(7)
    gate[2] = 0.0
    for activation in ("silu", "gelu", "gelu_tanh", "sigmoid"):
        for rounding in ((), ("activation",), ("output",), ("activation", "output")):
            same_as(reference.act_and_mul, op, (up, gate), ActAndMul(activation, frozenset(rounding)))


MLP = Case(
    ActAndMulQuant(),
    {
        "silu": lambda gate, up: F.silu(gate) * up,
        # not gelu by erf: PyTorch's gelu and its erf differ in a last bit on CPUs, and 1 + erf cancels the others
        "gelu by tanh": lambda gate, up: F.gelu(gate, approximate="tanh") * up,
        "float32": lambda gate, up: (F.silu(gate.float()) * up.float()).to(gate.dtype),
        "unrounded": lambda gate, up: F.silu(gate.float()) * up.float(),
        "interleaved": lambda gate, up: F.silu(torch.stack([gate, up], -1).flatten(1)[:, ::2]) * up,
    },
    halves,
    must_not={
        "relu": lambda gate, up: F.relu(gate) * up,
        "a product with itself": lambda gate, up: F.silu(gate) * up * up,
        "a broadcast gate": lambda gate, up: F.silu(gate[:, :1]) * up,
        "silu of silu": lambda gate, up: F.silu(F.silu(gate)) * up,
        "gpt-oss": lambda gate, up: (up + 1) * (gate * torch.sigmoid(1.702 * gate)),
        "gpt-oss, float32": lambda gate, up: (up.float() * (gate.float() * torch.sigmoid(1.702 * gate.float()))).half(),
        "squared": lambda gate, up: (up.float() * (act := F.silu(gate.float())) * act).bfloat16(),
        "a number": lambda gate, up: (F.silu(gate.float()) * (2.0 * up.float())).bfloat16(),
        "clamped": lambda gate, up: F.silu(gate.clamp(max=1.0)) * up.clamp(-1.0, 1.0),
    },
    test=check_act_and_mul,
)

GATED = Case(
    SigmoidGateQuant(),
    {
        "sigmoid": lambda gate, output: output * torch.sigmoid(gate),
        "commuted": lambda gate, output: torch.sigmoid(gate) * output,
        "float32": lambda gate, output: (output.float() * torch.sigmoid(gate.float())).to(gate.dtype),
        "heads": lambda gate, output: output * torch.sigmoid(gate.view(-1, 2, 128).flatten(1)),
    },
    halves,
    must_not={
        "tanh": lambda gate, output: output * torch.tanh(gate),
        "squared": lambda gate, output: (output.float() * (act := torch.sigmoid(gate.float())) * act).bfloat16(),
        "one a head": lambda gate, o: (o.view(-1, 2, 128) * torch.sigmoid(gate[:, :2, None])).flatten(1),
        "twice": lambda gate, output: (output.float() * torch.sigmoid(gate.float()) * 2.0).bfloat16(),
        "of a multiple": lambda gate, output: output * torch.sigmoid(2 * gate),
    },
    test=check_act_and_mul,
)


@pytest.mark.parametrize("case", [SILU, NORM, RMS_NORM, MLP, GATED], ids=lambda case: case.fusion.name)
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
