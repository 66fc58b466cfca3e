"""The census compares the kernel with its last known state on four targets; lines are matched with instructions."""

import pytest
import torch

from fusionlab.observe.census import by_source_line, census, instructions, kernel_source, side_by_side
from fusionlab.observe.codegen import TARGETS, Listing, Resources, compile_fused
from fusionlib import GatedNorm, GroupQuant

triton = pytest.importorskip("triton", reason="Triton is not installed on this platform")

TRITON = tuple(int(part) for part in triton.__version__.split(".")[:2])
ELEMENTS = 8  # a thread's share in a prefill: 8 rows of 128 on 128 threads
OF_A_ROW = 11  # fused multiply-adds on NVIDIA: squares but the first 7, eps 1, scale 2, the reciprocal's residual 1


def is_cuda(target):
    return TARGETS[target][0] == "cuda"


def listing(target, norm=None, quant=None, **changes):
    dtype = torch.float8_e4m3fnuz if target == "gfx942" else torch.float8_e4m3fn
    return compile_fused(target, norm or GatedNorm.qwen3_next(), quant or GroupQuant(dtype=dtype), **changes)


def emulated(target):
    """Triton 3.6 does not support gfx950's conversion to FP8 and emulates it."""
    return target == "gfx950" and TRITON < (3, 7)


@pytest.mark.parametrize("target", TARGETS)
def test_the_census_of_a_prefill(target):
    """Three loads of 16 bytes (x, gate, weight), one store of eight codes and one of the scale; no spills.

    On NVIDIA no barrier and no shared memory: the weight is loaded in x's shape, and the scale is stored by the threads
    that hold it. On AMD Triton moves the scale through shared memory (LDS) first, with one barrier.
    """
    found = census(listing(target))
    assert (found.target, found.loads, found.stores) == (target, ((16, 3),), ((4, 1), (8, 1)))
    assert found.fp8_conversions == (0 if emulated(target) else ELEMENTS // 2)
    assert found.shuffles == (8 if is_cuda(target) else 12)  # log2(16) for each of two reductions; AMD takes more
    assert (found.barriers, found.shared) == ((0, 0) if is_cuda(target) else (1, 2))
    assert found.divisions == (0 if is_cuda(target) else 2)  # the scale and its reciprocal
    assert found.reciprocals == ELEMENTS + is_cuda(target)  # the gate's; and the scale's, unless it is a division
    if is_cuda(target):
        assert found.fused_multiply_adds == ELEMENTS + OF_A_ROW
    assert found.spills == 0 and 0 < found.registers <= 64
    assert 250 < found.instructions < 800


@pytest.mark.parametrize("target", ["sm_90", "sm_100"])
def test_what_a_quotient_takes(target):
    """With a floor one fused multiply-add and one product per element; without one a full division."""
    assert census(listing(target)).fused_multiply_adds == ELEMENTS + OF_A_ROW
    found = census(listing(target, quant=GroupQuant.torchao()))
    assert found.fused_multiply_adds == ELEMENTS  # the squares but the first, and eps: contracted
    assert found.divisions == ELEMENTS + 1  # and the scale


def test_float32_inputs_take_twice_the_loads():
    """Four elements in 16 bytes in place of eight: x, gate and weight in two loads each."""
    assert census(listing("sm_90", x_dtype=torch.float32)).loads == ((16, 6),)


def test_inline_instructions_count_like_the_compilers():
    """A store with a predicate that a block of inline PTX declares, among the compiler's code."""

    class Fixed(Listing):
        def resources(self):
            return Resources(8, 0)

    ptx = """
	// begin inline asm

        {
        .reg .pred p;
        setp.ne.u32 p, %r3, 0;
        @p st.global.b32 [%rd1], %r2;
        mov.u32 %r0, 0;
        }

	// end inline asm
	// begin inline asm
	@!p2 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
	// end inline asm
        {
        .reg .f32 t;
        mul.f32 t, %r1, 0fBFB8AA3B;  // -log2(e)
        ex2.approx.ftz.f32 t, t;
        rcp.approx.ftz.f32 %r2, t;
        }
"""
    found = census(Fixed("sm_90", {"ptx": ptx}, b""))
    assert (found.instructions, found.loads, found.stores) == (7, ((16, 1),), ((4, 1),))
    assert found.reciprocals == 1


def test_widths_are_told_apart():
    """Hand-written assembly of both kinds, each width once."""

    class Fixed(Listing):
        def resources(self):
            return Resources(8, 0)

    ptx = """
    .reg .b32 %r<3>;
$L__BB0_1:
    ld.param.b64 %rd1, [p0];
    @%p1 ld.global.nc.L1::evict_last.v4.b32 {%r1, %r2, %r3, %r4}, [%rd1];
    ld.global.v2.b32 {%r1, %r2}, [%rd1];
    @!%p2 ld.global.b16 %rs1, [%rd1];
    ld.shared.v2.b32 {%r1, %r2}, [%r9];
    st.global.u8 [%rd1], %rs1; // st.global.u8 [%rd2], %rs1
    st.global.v4.b32 [%rd1], {%r1, %r2, %r3, %r4};
    cvt.rn.satfinite.e5m2x2.f32 %rs1, %f1, %f2;
    bar.sync 0;
    ret;
"""
    found = census(Fixed("sm_90", {"ptx": ptx}, b""))
    assert found.loads == ((2, 1), (8, 1), (16, 1)) and found.stores == ((1, 1), (16, 1))
    assert (found.shared, found.fp8_conversions, found.barriers, found.instructions) == (1, 1, 1, 10)
    amd = """
kernel:
	.loc	1 2 3
	s_load_dwordx4 s[0:3], s[4:5], 0x0
	global_load_dwordx4 v[0:3], v[4:5], off
	buffer_load_ushort v1, v2, s[0:3], 0 offen
	global_load_short_d16_hi v1, v[2:3], off
	buffer_store_byte v1, v2, s[0:3], 0 offen
	global_store_dwordx2 v[0:1], v[2:3], off
	ds_write_b32 v1, v2
	ds_bpermute_b32 v1, v2, v3
	v_mov_b32_dpp v1, v2 row_shr:8 row_mask:0xf bank_mask:0xc
	v_cvt_pk_fp8_f32 v1, v2, v3
	v_cvt_pk_bf8_f32 v1, v2, v3
	v_rcp_f32_e32 v1, v2
	v_rcp_f32_e32 v1, v2
	v_div_fixup_f32 v1, v2, v3, v4
	s_barrier
	s_endpgm ; global_load_dword v1
"""
    found = census(Fixed("gfx942", {"amdgcn": amd}, b""))
    assert found.loads == ((2, 2), (16, 1)) and found.stores == ((1, 1), (8, 1))
    assert (found.shared, found.shuffles, found.fp8_conversions, found.barriers) == (1, 2, 2, 1)
    assert (found.divisions, found.reciprocals, found.instructions) == (1, 1, 16)
    assert "2 x 2 bytes, 1 x 16 bytes" in found.text()


@pytest.mark.parametrize("target", TARGETS)
def test_lines_meet_their_instructions(target):
    """The line that loads has loads of 16 bytes, the line that stores the codes has their store."""
    source = kernel_source()
    lines = by_source_line(listing(target))

    def became(fragment):
        numbers = [(file, number) for file, number in lines if fragment in source[file][number - 1]]
        assert len(numbers) == 1, fragment
        return " ".join(lines[numbers[0]])

    cuda = is_cuda(target)
    load = "ld.global.v4.b32" if cuda else "load_dwordx4"
    assert became("return tl.load(ptr").count(load) == 2  # x and gate
    assert became("tl.load(weight_ptr").count(load) == 1
    assert ("st.global.v2.b32" if cuda else "store_dwordx2") in became("tl.store(codes_pointer")
    assert ("rsqrt.approx" if cuda else "v_rsq_f32") in became("tl.rsqrt(mean + eps)")
    assert ("shfl.sync" if cuda else "dpp") in became("tl.sum(value, axis=2)")  # inlined from Triton's library
    # Inlined from quant.py and ptx.py.
    assert ("cvt.rn.bf16x2.f32" if cuda else "v_") in became("y = _rounded(value, Y_DTYPE")
    assert ("max.NaN.f32" if cuda else "v_div_fixup") in became("scale = _group_scale(")
    assert ("rcp.approx.ftz" if cuda else "v_div_fixup") in became("quotient = _quotient(")


@pytest.mark.parametrize("target", TARGETS)
def test_no_instruction_counts_twice(target):
    found = listing(target)
    attributed = sum(map(len, by_source_line(found).values()))
    total = len(instructions(found))
    assert 0.9 * total <= attributed <= total


def test_side_by_side_has_both_vendors():
    lines = side_by_side(listing("sm_90"), listing("gfx950"))
    assert [(line.file, line.number) for line in lines] == sorted({(line.file, line.number) for line in lines})
    (x_load,) = (line for line in lines if "return tl.load(ptr" in line.source)
    assert set(x_load.became) == {"sm_90", "gfx950"}
    assert any("ld.global.v4" in text for text in x_load.became["sm_90"])
    assert any("load_dwordx4" in text for text in x_load.became["gfx950"])
    assert all(line.source.strip() for line in lines)
