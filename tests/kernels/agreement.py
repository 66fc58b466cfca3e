"""What a kernel's results may differ in from the reference's on the same device; see `test_gated_norm.py` for why."""

from __future__ import annotations

import torch

from fusionlab.codes import code_steps
from fusionlib import GroupQuant, reference
from tests.support import codes_bytes

CODE_BOUND, SCALE_BOUND = 1e-5, 2**-13

STEPS = {torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-18}


def assert_near(
    got: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    expected: torch.Tensor,
    quant: GroupQuant,
    *,
    exact_scales: bool = True,
    code_bound: float = CODE_BOUND,
    scale_bound: float = SCALE_BOUND,
    tolerance: float,
    atol: float = 1e-30,
) -> None:
    """Codes, scale and value near those of the reference's value; `tolerance` is the value's, relative."""
    codes, scale, value = got
    expected_codes, expected_scale = reference.group_quant(expected, quant)
    assert (codes.shape, codes.dtype) == (expected_codes.shape, expected_codes.dtype)
    assert (scale.shape, scale.stride(), scale.dtype) == (
        expected_scale.shape,
        expected_scale.stride(),
        expected_scale.dtype,
    )
    groups = codes.shape[1] // quant.group_size
    ours, theirs = (reference.unpack_scales(s, groups, quant) for s in (scale, expected_scale))
    assert not ours.isnan().any() or quant.floor is None
    same_scale = ours == theirs if exact_scales else (ours / theirs - 1).abs() < 2**-20
    assert (~same_scale).float().mean() <= scale_bound
    step = 2.0 if quant.scale_format == "ue8m0" else 1 + 2**-6
    assert (ours / theirs).clamp(1 / step, step).eq(ours / theirs).all()
    same_group = same_scale.repeat_interleave(quant.group_size, 1)
    assert code_steps(codes, expected_codes)[same_group].max() <= 1
    differ = codes.view(torch.uint8) != expected_codes.view(torch.uint8)  # as bytes: -0 is not 0
    assert differ[same_group].float().mean() <= code_bound
    torch.testing.assert_close(value.float(), expected.float(), rtol=tolerance, atol=atol)


def assert_quantised(codes: torch.Tensor, scale: torch.Tensor, value: torch.Tensor, quant: GroupQuant) -> None:
    """Codes and scale are to the bit what the reference makes of the kernel's own value."""
    expected_codes, expected_scale = reference.group_quant(value, quant)
    torch.testing.assert_close(scale, expected_scale, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(codes_bytes(codes), codes_bytes(expected_codes))


CONTRACTS = [
    GroupQuant.vllm(),
    GroupQuant.vllm().with_layout("column_major"),
    GroupQuant.vllm().with_layout("column_major_padded"),
    GroupQuant.vllm(dtype=torch.float8_e5m2),
    GroupQuant.vllm_native(),
    GroupQuant.aiter(),
    GroupQuant.deepgemm(),
    GroupQuant.deepgemm(blackwell=True),
    GroupQuant.torchao(),
    GroupQuant.vllm_native(scale_division="reciprocal"),
    GroupQuant(scale_division="reciprocal"),
    GroupQuant(scale_division="reciprocal", dtype=torch.float8_e5m2),
    GroupQuant(floor=None),
    GroupQuant(32),
    GroupQuant(64, floor=1e-4),
    GroupQuant(256),
]


def spelled(quant: GroupQuant) -> str:
    """A test id from what distinguishes `quant`."""
    plain = GroupQuant()
    return ",".join(str(value) for name, value in vars(quant).items() if value != getattr(plain, name)) or "vllm"
