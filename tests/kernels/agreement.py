"""What counts as the same quantised value on one device, for the kernels against their references.

The bounds. A kernel's operations are the reference's except for three: the order of a row's sum, exp (2 ulp) and the
division inside an activation (2 ulp). Together they change a float32 value by about 2^-22, so a value that is then
rounded to bf16 (a step of 2^-8) lands on the other side of a tie with probability 2^-14, and its code (a step of 2^-3
to 2^-4) with 2^-18 = 4e-6; a scale is made from one such value. A naive kernel on an H200 differed in 4e-6 to 1e-5 of
its codes. So the bounds are: at most 1e-5 of the codes, each by one step, in groups whose scales agree; at most 2^-13
of the scales, each by one bf16 step.
"""

from __future__ import annotations

from collections.abc import Collection

import torch

from fusionlab.codes import code_steps
from fusionlib import GroupQuant, reference

CODE_BOUND, SCALE_BOUND = 1e-5, 2**-13

#: Every layout, format, floor and division, and three group sizes.
QUANTS = [
    GroupQuant.vllm(),
    GroupQuant.vllm().with_layout("column_major"),
    GroupQuant.vllm().with_layout("column_major_padded"),
    GroupQuant.vllm(dtype=torch.float8_e5m2),
    GroupQuant.vllm_native(),
    GroupQuant.aiter(),
    GroupQuant.deepgemm(),
    GroupQuant.deepgemm(blackwell=True),
    GroupQuant.torchao(),
    GroupQuant(scale_format="ue8m0"),
    GroupQuant(64),
    GroupQuant(32),
]

#: Those that differ in what they make of what is not a number.
SPECIAL_QUANTS = [
    GroupQuant.vllm(),
    GroupQuant.torchao(),
    GroupQuant(scale_format="ue8m0"),
    GroupQuant(scale_format="ue8m0", nan_scale="largest"),
    GroupQuant.deepgemm(blackwell=True),
]

Quantised = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def assert_quantised(
    got: Quantised,
    expected: torch.Tensor,
    x_dtype: torch.dtype,
    rounding: Collection[str],
    quant: GroupQuant,
    *,
    cancels: bool = False,
    code_bound: float = CODE_BOUND,
    inner_dtype: torch.dtype | None = None,
) -> None:
    """Codes, scale and value of a kernel against `expected`, the reference's value for an x of `x_dtype`.

    `rounding` are the spec's points; those before the output round to `inner_dtype`, by default x's. `cancels` says
    that the value may be the small difference of large terms.
    """
    codes, scale, value = got
    expected_codes, expected_scale = reference.group_quant(expected, quant)
    groups = codes.shape[1] // quant.group_size
    ours, theirs = (reference.unpack_scales(s, groups, quant) for s in (scale, expected_scale))
    assert not ours.isnan().any()
    # A value that stays in float32 keeps the last bits of its sums, which show in its scales.
    in_float32 = torch.float32 in (x_dtype, value.dtype)
    same_scale = (ours / theirs - 1).abs() < 2**-20 if in_float32 else ours == theirs
    # The steps of float16 are finer, so more ties are crossed.
    scale_bound = 2**-10 if torch.float16 in (x_dtype, inner_dtype) else SCALE_BOUND
    # One of few scales is more than their share.
    assert (~same_scale).sum() <= max(scale_bound * ours.numel(), 1)
    step = 2.0 if quant.scale_format == "ue8m0" else 1 + 2**-6
    assert (ours / theirs).clamp(1 / step, step).eq(ours / theirs).all()
    same_group = same_scale.repeat_interleave(quant.group_size, 1)
    steps = code_steps(codes, expected_codes)[same_group]
    assert steps.max() <= 1
    # As bytes, so that the sign of zero is compared; what rounds to zero keeps the value's sign, which must match.
    differ = (codes.view(torch.uint8) != expected_codes.view(torch.uint8))[same_group]
    assert differ.sum() <= max(code_bound * differ.numel(), 1)
    # The value itself: one step of its dtype for every rounding point, or the float32 error of the docstring if it is
    # not rounded. Where terms cancel, the steps are those of the terms.
    rounded = [value.dtype, *([inner_dtype or x_dtype] if set(rounding) - {"output"} else [])]
    step = max({torch.bfloat16: 2**-7, torch.float16: 2**-10, torch.float32: 2**-18}[dtype] for dtype in rounded)
    tolerance = step * max(1, len(rounding))
    atol = tolerance * expected.float().abs().max().item() if cancels else 1e-30
    torch.testing.assert_close(value.float(), expected.float(), rtol=tolerance, atol=atol)
