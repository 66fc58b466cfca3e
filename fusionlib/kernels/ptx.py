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


@triton.constexpr_function
def _root_of_mean(per_thread, warps, size):
    """The instructions: $0 and up are the results, $per_thread and up the squares, then as many times eps."""
    values = [f"${per_thread + i}" for i in range(per_thread)]
    parts = [f"p{i}" for i in range(warps)]
    words = 4 if warps % 4 == 0 else 2 if warps % 2 == 0 else 1
    lines = [
        "{",
        f".shared .align 16 .b32 partial[{warps}];",
        f".reg .f32 s, t, mean, {', '.join(parts)};",
        ".reg .b32 thread, lane, warp, base, own;",
        ".reg .pred first, odd, infinite;",
        f"mov.f32 s, {values[0]};",
        *[f"add.f32 s, s, {value};" for value in values[1:]],
    ]
    for distance in (16, 8, 4, 2, 1):
        lines += [f"shfl.sync.bfly.b32 t, s, {distance}, 31, -1;", "add.f32 s, s, t;"]
    lines += [
        "mov.u32 thread, %tid.x;",
        "and.b32 lane, thread, 31;",
        "setp.eq.u32 first, lane, 0;",
        "shr.u32 warp, thread, 5;",
        "mov.u32 base, partial;",
        "mad.lo.u32 own, warp, 4, base;",
        "@first st.shared.f32 [own], s;",
        "bar.sync 0;",
    ]
    for i in range(0, warps, words):
        target = parts[i] if words == 1 else "{" + ", ".join(parts[i : i + words]) + "}"
        lines.append(f"ld.shared{'' if words == 1 else f'.v{words}'}.f32 {target}, [base+{4 * i}];")
    while len(parts) > 1:  # pairs: a chain of the logarithm's length
        lines += [f"add.f32 {parts[i]}, {parts[i]}, {parts[i + 1]};" for i in range(0, len(parts) - 1, 2)]
        parts = parts[::2]
    lines.append(f"mul.f32 mean, p0, {1.0 / size!r};")
    if size & (size - 1) != 0:  # else the reciprocal is exact
        lines += [
            # One residual step rounds a normal quotient correctly; others are divided.
            f"fma.rn.f32 t, mean, {-float(size)!r}, p0;",
            f"fma.rn.f32 mean, t, {1.0 / size!r}, mean;",
            "setp.lt.f32 odd, p0, 7.888609052210118e-31;",
            "setp.eq.f32 infinite, p0, 0f7F800000;",
            "or.pred odd, odd, infinite;",
            f"@odd div.rn.f32 mean, p0, {float(size)!r};",
        ]
    lines += [
        f"add.f32 mean, mean, ${2 * per_thread};",
        "rsqrt.approx.ftz.f32 mean, mean;",
        *[f"mov.f32 ${i}, mean;" for i in range(per_thread)],
        "}",
    ]
    return "\n".join(lines)


@triton.constexpr_function
def _registers(results, arguments):
    return ",".join(["=f"] * results + ["f"] * arguments)


@triton.jit
def block_root_of_mean(squares, eps, PER_THREAD: tl.constexpr, WARPS: tl.constexpr, SIZE: tl.constexpr):
    """rsqrt(sum(squares) / SIZE + eps) over a whole block, in the shape of `squares`; at most once in a kernel.

    `squares` is float32, and each of the WARPS * 32 threads holds PER_THREAD elements of it.
    Triton's own reduction goes through shared memory twice, with a barrier each time: a few threads add the warps'
    sums, and all others wait for them. Here every thread adds the warps' sums itself, after one barrier.
    """
    return tl.inline_asm_elementwise(
        _root_of_mean(PER_THREAD, WARPS, SIZE),
        _registers(PER_THREAD, 2 * PER_THREAD),
        [squares, eps],
        dtype=tl.float32,
        is_pure=False,
        pack=PER_THREAD,
    )
