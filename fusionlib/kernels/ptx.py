"""Inline PTX for operations that Triton compiles to several instructions on NVIDIA GPUs.

From the sm_90 listings (`fusionlib asm`): Triton converts float32 to bf16 one value at a time, on the slow unit that
also serves exp and reciprocals; widens the upper of two packed bf16 in two steps; and guards exp and the division
against denormals that cannot matter here. Each function says why its shortcut is safe. Other targets and the
interpreter use the portable form at each call site.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def widened(value):
    """bf16 as float32: a shift for the lower of two packed values, a mask for the upper."""
    return tl.inline_asm_elementwise(
        """
        shl.b32 $0, $2, 16;
        and.b32 $1, $2, 0xffff0000;
        """,
        "=r,=r,r",
        [value],
        dtype=tl.float32,
        is_pure=True,
        pack=2,
    )


@triton.jit
def rounded_to_bf16(value):
    """float32 rounded to bf16, to nearest even, and back: two values in one conversion."""
    return tl.inline_asm_elementwise(
        """
        {
        .reg .b32 pair;
        cvt.rn.bf16x2.f32 pair, $3, $2;
        shl.b32 $0, pair, 16;
        and.b32 $1, pair, 0xffff0000;
        }
        """,
        "=r,=r,r,r",
        [value],
        dtype=tl.float32,
        is_pure=True,
        pack=2,
    )


@triton.jit
def sigmoid(value):
    """1 / (1 + exp(-value)) within 2 ulp, results below 2^-126 as zero.

    exp2 of -126 and less becomes zero, which makes no difference when added to one. A reciprocal of 2^126 and more
    becomes zero; its product would be rounded away in bf16 or fall below the floor of a scale.
    """
    return tl.inline_asm_elementwise(
        """
        {
        .reg .f32 t;
        mul.f32 t, $1, 0fBFB8AA3B;  // -log2(e)
        ex2.approx.ftz.f32 t, t;
        add.f32 t, t, 0f3F800000;  // one
        rcp.approx.ftz.f32 $0, t;
        }
        """,
        "=r,r",
        [value],
        dtype=tl.float32,
        is_pure=True,
        pack=1,
    )


@triton.jit
def approximate_reciprocal(value):
    """1 / value within one ulp, for normal values with a normal reciprocal; zero for infinity."""
    return tl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=r,r", [value], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def reciprocal_from_below(value):
    """A float32 that is at most 1 / value and less by at most 7 / 2^24; for normal values with a normal reciprocal.

    Zero for infinity. The instruction's error is up to 2^-23 either way, so it is given a value larger by 2^-22. The
    tests compare all 2^23 mantissas.
    """
    return approximate_reciprocal(value * (1 + 2**-22))


@triton.jit
def reciprocal(value):
    """1 / value, correctly rounded, for normal values with a normal reciprocal; zero for infinity.

    The approximate reciprocal and one Newton step is what rcp.rn.f32 does between its range checks. The tests compare
    all 2^23 mantissas.
    """
    approximate = approximate_reciprocal(value)
    error = tl.fma(approximate, -value, 1.0)
    exact = tl.fma(approximate, error, approximate)
    return tl.where(value == float("inf"), 0.0, exact)


@triton.jit
def store_float32(pointer, value, mask):
    """Store `value` at `pointer` where `mask`, from every thread that holds it.

    After a reduction, every thread of the row holds the result. Triton would first convert its layout through shared
    memory with a barrier; storing the same four bytes from sixteen threads of a warp is one transaction.
    """
    tl.inline_asm_elementwise(
        """
        {
        .reg .pred p;
        setp.ne.u32 p, $3, 0;
        @p st.global.b32 [$1], $2;
        mov.u32 $0, 0;
        }
        """,
        "=r,l,r,r",
        [pointer.to(tl.int64), value, mask.to(tl.int32)],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )
