"""Run the kernels in Triton's interpreter over many shapes and layouts; a script, for a process of its own.

A jitted function is either interpreted or compiled for a whole process, so `test_interpreter.py` starts this one. The
interpreter's casts are not the hardware's (it truncates float32 to bf16, and a part of its FP8 codes differ), so it is
no oracle for bits. What it can prove without a GPU is everything else: addresses, masks, reductions, scales, layouts,
padding. Values therefore stay in float32, and the expected codes are made from the reference's quotient by the
interpreter's own cast.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

import sys

import torch

from fusionlab.codes import code_steps
from fusionlab.versions.interpreted import interpreters_codes
from fusionlib import ActAndMul, GatedNorm, GroupQuant, RMSNorm, reference
from fusionlib.kernels import constants as kernel_constants
from fusionlib.kernels.config import LaunchConfig
from fusionlib.kernels.launch import launch_act_and_mul, launch_fused, launch_group_quant, launch_rms_norm
from tests.support import grouped_gate, poisoned_outputs


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(shape)


def plain(norm_size: int, **changes) -> GatedNorm:
    return GatedNorm(norm_size, rounding=(), **changes)


torch.manual_seed(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
PACKED = {"scale_format": "ue8m0", "scale_layout": "packed_int32"}
BY_RECIPROCAL = {"scale_division": "reciprocal"}
TO_BF16 = GatedNorm(128, out_dtype=torch.bfloat16)
NOT_FINITE = rows(6, 512)
NOT_FINITE[0, :130], NOT_FINITE[1, 5], NOT_FINITE[2, 7] = torch.nan, torch.inf, -torch.inf
NOT_FINITE[3, 3], NOT_FINITE[3, 4], NOT_FINITE[4, 200] = torch.inf, torch.nan, 3e38
STRIDED_GROUPS = rows(6000).as_strided((3, 4, 2, 128), (2000, 480, 160, 1))

CASES = {
    "norm = group": (rows(5, 4, 128), rows(5, 4, 128), plain(128), GroupQuant()),
    "rows as one dimension": (rows(3, 512), rows(3, 4, 128), plain(128), GroupQuant()),
    "in_proj's gate": (rows(5, 4, 128), grouped_gate(5, 2, 2, 128, torch.float32), plain(128), GroupQuant()),
    "strided heads in groups": (rows(3, 8, 128), STRIDED_GROUPS, plain(128), GroupQuant()),
    "strided x": (rows(5, 4, 160)[..., :128], rows(5, 512), plain(128), GroupQuant()),
    "broadcast gate": (rows(5, 4, 128), rows(5, 1, 128).expand(5, 4, 128), plain(128), GroupQuant()),
    "gate first": (rows(5, 512), rows(5, 512), plain(512, norm_before_gate=False), GroupQuant()),
    "gate first, strided": (
        rows(5, 1024),
        rows(5, 4, 512)[..., :256],
        plain(512, norm_before_gate=False),
        GroupQuant(),
    ),
    "norm > group, 3 segments": (rows(7, 768), rows(7, 768), plain(384), GroupQuant()),
    "norm < group": (rows(7, 4, 64), rows(7, 4, 64), plain(64, weight_offset=1), GroupQuant()),
    "per token": (rows(5, 6, 64), rows(5, 6, 64), plain(64, activation="sigmoid"), GroupQuant(384)),
    "per token, strided": (rows(5, 6, 64), rows(5, 6, 80)[..., :64], plain(64), GroupQuant(384)),
    "no power of two": (rows(7, 4, 96), rows(7, 4, 96), plain(96), GroupQuant(96)),
    "runs across segments": (rows(3, 4, 96), rows(3, 8, 60)[..., :48], plain(96), GroupQuant(96)),
    "one token": (rows(1, 32, 128), rows(1, 32, 128), plain(128), GroupQuant()),
    "reciprocal": (rows(5, 512), rows(5, 512), plain(128), GroupQuant.aiter()),
    "no floor": (rows(5, 512), rows(5, 512), plain(128), GroupQuant(floor=None)),
    "floor on scale": (rows(5, 512) * 1e-9, rows(5, 512), plain(128, eps=1e-2), GroupQuant.vllm_native()),
    "column major": (rows(6, 512), rows(6, 512), plain(128), GroupQuant.deepgemm()),
    "packed, 6 groups": (rows(6, 768), rows(6, 768), plain(128), GroupQuant(**PACKED)),
    "packed, norm > group": (rows(6, 768), rows(6, 768), plain(384), GroupQuant(**PACKED)),
    "packed, per token": (rows(6, 512), rows(6, 512), plain(128), GroupQuant(512, **PACKED)),
    "e5m2": (rows(6, 512), rows(6, 512), plain(128), GroupQuant(dtype=torch.float8_e5m2)),
    "zeros, no eps": (torch.zeros(3, 384), rows(3, 384), plain(64, eps=0.0), GroupQuant(384)),
    "heads of 96, groups of 128": (rows(5, 4, 96), rows(5, 4, 96), plain(96), GroupQuant()),
    "heads of 96, strided": (rows(5, 8, 128)[..., :96], rows(5, 768), plain(96), GroupQuant()),
    "heads of 192, groups of 128": (rows(3, 4, 192), rows(3, 2, 400)[..., :384], plain(192), GroupQuant()),
    "heads of 72, groups of 128": (rows(2, 16, 72), rows(2, 1152), plain(72, activation="sigmoid"), GroupQuant()),
    "gate first, groups across norms": (
        rows(3, 768),
        rows(3, 768),
        plain(384, norm_before_gate=False),
        GroupQuant(256),
    ),
    "neither a power of two": (rows(3, 120), rows(3, 120), plain(20), GroupQuant(24)),
    "zeros across norms, no eps": (torch.zeros(3, 384), rows(3, 384), plain(96, eps=0.0), GroupQuant(128)),
    "packed, groups across heads": (rows(6, 768), rows(6, 768), plain(96), GroupQuant(**PACKED)),
    "column major, padded": (rows(6, 512), rows(6, 512), plain(128), GroupQuant(scale_layout="column_major_padded")),
    "padded, groups across heads": (
        rows(6, 768),
        rows(6, 768),
        plain(96),
        GroupQuant(scale_layout="column_major_padded"),
    ),
    "vector": (rows(6, 4, 128), rows(6, 512), plain(128), GroupQuant(512, scale_layout="vector")),
    "vector, group above the norm": (rows(6, 384), rows(6, 384), plain(96), GroupQuant(384, scale_layout="vector")),
    "scale by reciprocal": (rows(5, 512), rows(5, 512), plain(128), GroupQuant(scale_division="reciprocal")),
    "scale by reciprocal, ue8m0": (rows(5, 768), rows(5, 768), plain(128), GroupQuant(**PACKED, **BY_RECIPROCAL)),
    "zeros of either sign": (torch.relu(rows(5, 512)), rows(5, 512), plain(128), GroupQuant()),
    "zeros of either sign, no floor": (torch.relu(rows(5, 512)), rows(5, 512), plain(128), GroupQuant(floor=None)),
    "output in bf16": (rows(5, 512), rows(5, 512), TO_BF16, GroupQuant()),
}


def unrounded(norm_size: int, **changes) -> RMSNorm:
    return RMSNorm(norm_size, rounding=(), **changes)


ONE_WARP, FOUR_WARPS = LaunchConfig(1, 1), LaunchConfig(1, 4)

#: x, residual, spec, quantisation, launch configuration (None: the heuristic's)
NORM_CASES = {
    "a row": (rows(5, 512), rows(5, 512), unrounded(512), GroupQuant(), None),
    "no residual": (rows(5, 512), None, unrounded(512), GroupQuant(), None),
    "1 + w": (rows(5, 512), rows(5, 512), unrounded(512, weight_offset=1), GroupQuant(), None),
    "one token of 2048": (rows(1, 2048), rows(1, 2048), unrounded(2048), GroupQuant(), None),
    "2304": (rows(1, 2304), rows(1, 2304), unrounded(2304), GroupQuant(), None),
    "5120 in pieces": (rows(1, 5120), rows(1, 5120), unrounded(5120), GroupQuant(), FOUR_WARPS),
    "1152 in pieces": (rows(3, 1152), rows(3, 1152), unrounded(1152), GroupQuant(), ONE_WARP),
    "pieces of a segment each": (rows(3, 1280), rows(3, 1280), unrounded(1280), GroupQuant(256), ONE_WARP),
    "packed in pieces": (rows(3, 1152), rows(3, 1152), unrounded(1152), GroupQuant(**PACKED), ONE_WARP),
    "heads": (rows(5, 4, 128), rows(5, 512), unrounded(128), GroupQuant(), None),
    "64-wide heads": (rows(5, 8, 64), rows(5, 512), unrounded(64), GroupQuant(), None),
    "heads of 96": (rows(5, 4, 96), rows(5, 384), unrounded(96), GroupQuant(), None),
    "heads of 96, one warp": (rows(5, 4, 96), rows(5, 384), unrounded(96), GroupQuant(), ONE_WARP),
    "heads of 384, groups of 256": (rows(5, 2, 384), rows(5, 768), unrounded(384), GroupQuant(256), ONE_WARP),
    "heads of 1536, groups of 1024": (rows(3, 3072), rows(3, 3072), unrounded(1536), GroupQuant(1024), FOUR_WARPS),
    "per token": (rows(5, 768), rows(5, 768), unrounded(768), GroupQuant(768, scale_layout="vector"), None),
    "slice": (rows(5, 1536)[:, 512:1024], rows(5, 512), unrounded(512), GroupQuant(), None),
    "every other element": (rows(5, 1024)[:, ::2], rows(5, 1024)[:, 1::2], unrounded(512), GroupQuant(), None),
    "every other, in pieces": (rows(3, 2304)[:, ::2], rows(3, 1152), unrounded(1152), GroupQuant(), ONE_WARP),
    "strided heads": (rows(5, 4, 256)[..., :128], rows(5, 512), unrounded(512), GroupQuant(), None),
    "column major": (rows(6, 512), rows(6, 512), unrounded(512), GroupQuant.deepgemm(), None),
    "floor on scale": (rows(5, 512) * 1e-9, None, unrounded(512, eps=1e-2), GroupQuant.vllm_native(), None),
    "zeros, no eps": (torch.zeros(3, 384), None, unrounded(384, eps=0.0), GroupQuant(), None),
    "two rows a program": (rows(5, 512), rows(5, 512), unrounded(512), GroupQuant(), LaunchConfig(2, 4)),
}

#: By name: what each token is multiplied by; six of them, but for the first.
FACTORS = {
    "five tokens": torch.tensor([0.0, -1.0, 1.0, 0.0, 0.5], dtype=torch.bfloat16),
    "int64 [tokens]": torch.tensor([0, 1, 1, 0, 3, 1]),
    "bool, every other": torch.tensor([[True, False], [False, True], [True, True]] * 2)[:, 1],
    "uint8 [batch, sequence]": torch.tensor([[0, 1, 1], [0, 255, 1]], dtype=torch.uint8),
    "float32, a slice": torch.randn(2, 7)[:, 2:5],
    "int32, transposed": torch.tensor([[0, 1], [1, 1], [1, -2]], dtype=torch.int32).t(),
    "float16 of each sequence": torch.tensor([[0.0], [1.5]], dtype=torch.float16).expand(2, 3),
}

#: x, gate, spec, quantisation
PRODUCT_CASES = {
    **{
        kind: (rows(5, 512), rows(5, 512), ActAndMul(kind, ()), GroupQuant())
        for kind in ("silu", "gelu", "gelu_tanh", "sigmoid")
    },
    "one token": (rows(1, 640), rows(1, 640), ActAndMul(rounding=()), GroupQuant()),
    "halves": (*rows(5, 1024).chunk(2, -1), ActAndMul(rounding=()), GroupQuant()),
    "interleaved": ((wide := rows(5, 1024))[:, ::2], wide[:, 1::2], ActAndMul(rounding=()), GroupQuant()),
    "gate of every head": (rows(5, 512), rows(5, 4, 256)[..., 128:], ActAndMul("sigmoid", ()), GroupQuant()),
    "strided heads in groups": (rows(3, 1024), STRIDED_GROUPS, ActAndMul("sigmoid", ()), GroupQuant()),
    "groups of 96": (rows(5, 480), rows(5, 480), ActAndMul(rounding=()), GroupQuant(96)),
    "per token": (rows(5, 640), rows(5, 640), ActAndMul(rounding=()), GroupQuant(640, scale_layout="vector")),
    "packed": (rows(6, 768), rows(6, 768), ActAndMul(rounding=()), GroupQuant(**PACKED)),
    "padded": (rows(6, 512), rows(6, 512), ActAndMul(rounding=()), GroupQuant(scale_layout="column_major_padded")),
    "e5m2": (rows(6, 512), rows(6, 512), ActAndMul(rounding=()), GroupQuant(dtype=torch.float8_e5m2)),
    "no floor": (rows(5, 512), rows(5, 512), ActAndMul(rounding=()), GroupQuant(floor=None)),
    **{
        f"not finite, {name}": (NOT_FINITE, torch.full((6, 512), 9.0), ActAndMul("sigmoid", ()), quant)
        for name, quant in {
            "ue8m0": GroupQuant(scale_format="ue8m0"),
            "ue8m0 of NaN too": GroupQuant(scale_format="ue8m0", nan_scale="largest"),
            "deepgemm": GroupQuant.deepgemm(blackwell=True),
        }.items()
    },
    "output in bf16": (rows(5, 512), rows(5, 512), ActAndMul("silu", ("output",), torch.bfloat16), GroupQuant()),
}


def in_pieces_here(*arguments):
    """The tiling in pieces as for PTX, which alone holds rows so; the interpreter can do it as well."""
    run, tiling, config = arguments
    return _in_pieces(run, tiling | {"PTX": True}, config) | {"PTX": False}


_in_pieces, kernel_constants.in_pieces = kernel_constants.in_pieces, in_pieces_here


def check_norm(name: str, weight_form: str, factor: str = "") -> None:
    """One case of the RMS norm, times one of `FACTORS` if it is named; the sum is one addition, equal to the bit."""
    x, residual, norm, quant, config = NORM_CASES[name]
    tokens, hidden = x.shape[0], x[0].numel()
    size = {"none": 0, "norm": norm.norm_size, "row": hidden}[weight_form]
    weight = torch.rand(size) + 0.5 if size else None
    codes, scale = poisoned_outputs(tokens, hidden, quant, "cpu")
    normed, total = torch.full((2, tokens, hidden), torch.nan)
    launch_rms_norm(x, residual, weight, FACTORS.get(factor), norm, quant, codes, scale, normed, total, config)
    expected, expected_total = reference.rms_norm(x, weight, norm, residual, FACTORS.get(factor))
    torch.testing.assert_close(total, expected_total, rtol=0, atol=0)
    assert torch.equal(normed == 0, expected == 0) and torch.equal(normed.signbit(), expected.signbit())
    check_quantised(codes, scale, normed, expected, quant)


def check_product(name: str) -> None:
    """One case of the product with an activation."""
    x, gate, act, quant = PRODUCT_CASES[name]
    tokens, hidden = x.shape[0], x[0].numel()
    codes, scale = poisoned_outputs(tokens, hidden, quant, "cpu")
    value = torch.full((tokens, hidden), torch.nan, dtype=act.output_dtype(x.dtype))
    launch_act_and_mul(x, gate, act, quant, codes, scale, value)
    check_quantised(codes, scale, value, reference.act_and_mul(x, gate, act), quant)


def check(name: str, weight_per_element: bool, biased: bool) -> None:
    """One case: normed and scale within float32 rounding, codes to the bit of the interpreter's cast."""
    x, gate, norm, quant = CASES[name]
    tokens, hidden = x.shape[0], x[0].numel()
    weight = torch.rand(hidden if weight_per_element else norm.norm_size) + 0.5
    bias = torch.randn_like(weight) if biased else None
    codes, scale = poisoned_outputs(tokens, hidden, quant, "cpu")
    normed = torch.full((tokens, hidden), 7.0 if "no eps" in name else torch.nan, dtype=norm.output_dtype(x.dtype))
    launch_fused(x, gate, weight, bias, norm, quant, codes, scale, normed)
    expected = reference.rms_norm_gated(x, gate, weight, norm, bias)
    check_quantised(codes, scale, normed, expected, quant)


def check_quantised(
    codes: torch.Tensor, scale: torch.Tensor, normed: torch.Tensor, expected: torch.Tensor, quant: GroupQuant
) -> None:
    """The value is near the expected one, and codes and scales are those of the value."""
    tokens, hidden = codes.shape
    rtol = 1e-5 if normed.dtype is torch.float32 else 2**-7
    torch.testing.assert_close(normed, expected, rtol=rtol, atol=1e-6, equal_nan=True)

    # From here on the kernel's own normed value, so that only the quantisation is in question.
    groups = hidden // quant.group_size
    _, expected_scale = reference.group_quant(normed, quant)
    assert scale.stride() == expected_scale.stride()
    torch.testing.assert_close(scale, expected_scale, rtol=0, atol=0, equal_nan=True)
    each = reference.unpack_scales(scale, groups, quant).repeat_interleave(quant.group_size, 1)
    quotient = normed / each if quant.division == "divide" else normed * (1.0 / each)
    quotient = quotient.float().clamp(-quant.limit, quant.limit)
    known = ~quotient.isnan()
    if known.any():
        # The interpreter's multiply-add is not fused, so a quotient may be one float32 step off, and with it, once in
        # some 10^5 codes, a code that sits on the edge.
        steps = code_steps(codes[known], interpreters_codes(quotient, quant.dtype)[known])
        assert steps.max() <= 1 and steps.sum() <= 2, (steps.max(), steps.sum())
        zeros = known & (normed == 0)
        assert torch.equal((codes.view(torch.uint8) == 0x80)[zeros], normed.signbit()[zeros])

    again, scale_again = poisoned_outputs(tokens, hidden, quant, "cpu")
    launch_group_quant(normed, quant, again, scale_again)  # the unfused half is the same arithmetic
    assert torch.equal(codes.view(torch.uint8), again.view(torch.uint8))
    torch.testing.assert_close(scale, scale_again, rtol=0, atol=0, equal_nan=True)


if __name__ == "__main__":
    failures = []
    forms = ((False, False), (True, False), (True, True))
    checks = [(check, (case, *form)) for case in CASES for form in forms]
    checks += [(check_norm, (case, "norm")) for case in NORM_CASES]
    checks += [(check_norm, (case, form)) for case in ("heads", "1152 in pieces") for form in ("none", "row")]
    checks += [(check_norm, (case, "norm", "five tokens")) for case in ("heads", "two rows a program")]
    checks += [(check_norm, ("column major", "norm", factor)) for factor in list(FACTORS)[1:]]
    checks += [(check_product, (case,)) for case in PRODUCT_CASES]
    for run, arguments in checks:
        try:
            run(*arguments)
            print(f"ok {run.__name__}{arguments}")
        except Exception as error:
            failures.append(arguments)
            print(f"FAILED {run.__name__}{arguments}: {error!r}")
    sys.exit(len(failures))
