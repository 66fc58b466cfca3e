"""What each version compiles to, with no GPU: load widths, divisions, chains, registers."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed on this platform")

from fusionlab.checkout import repository_root
from fusionlab.exercises import instructions as exercises
from fusionlab.observe.census import census
from fusionlab.observe.codegen import TARGETS, Listing, compile_fused
from fusionlab.observe.machine_code import by_kind, machine_code
from fusionlab.versions import VERSIONS
from fusionlab.versions.dependency_chain import KINDS, longest_chain
from fusionlab.versions.occupancy import Occupancy, occupancy
from fusionlab.versions.offline import compile_version
from fusionlib import GatedNorm, GroupQuant

NAMES = [version.name for version in VERSIONS]
ELEMENTS = 8  # a thread's share of a row, on 16 lanes


@pytest.fixture(scope="module")
def compiled() -> dict[int, list[Listing]]:
    return {version.number: compile_version(version) for version in VERSIONS}


@pytest.mark.parametrize("version", VERSIONS, ids=NAMES)
def test_load_widths(compiled, version):
    """2 bytes if a thread has one element; from version 3 on 16, with x, gate and weight in one load each."""
    loads = [census(listing).loads for listing in compiled[version.number]]
    special = {1: [((2, 3),), ((2, 1),)], 2: [((2, 3),)]}
    assert loads == special.get(version.number, [((16, 3),)])
    assert len(loads) == version.kernels


@pytest.mark.parametrize("version", VERSIONS, ids=NAMES)
def test_divisions(compiled, version):
    """Triton's `/` is approximate; the correctly rounded divisions are per row: the scale, and its reciprocal.

    Version 7 spells both out: an approximate reciprocal per row, and fused multiply-adds.
    """
    found = census(compiled[version.number][-1])
    if version.number == 7:
        of_a_row = (ELEMENTS - 1) + 1 + 2 + 1  # squares, eps, the scale, what its approximate reciprocal leaves
        assert (found.divisions, found.reciprocals) == (0, ELEMENTS + 1)
        assert found.fused_multiply_adds == ELEMENTS + of_a_row
        return
    assert found.divisions == {"approximate": 0}.get(version.division, 2)
    assert found.fused_multiply_adds == (2 * ELEMENTS if version.division == "correct" else 0)
    if version.number == 3:
        assert found.reciprocals == 2 * ELEMENTS + 1  # sigmoid and quotient each, and the scale
    if version.number > 3:
        assert found.reciprocals == ELEMENTS  # the gate's


@pytest.mark.parametrize("version", VERSIONS, ids=NAMES)
def test_conversions_and_spills(compiled, version):
    """A pair of codes each."""
    found = [census(listing) for listing in compiled[version.number]]
    elements = {1: 1, 2: 1}.get(version.number, ELEMENTS)
    assert found[-1].fp8_conversions == max(1, elements // 2)
    assert sum(one.spills for one in found) == 0


@pytest.mark.parametrize("version", VERSIONS[2:], ids=NAMES[2:])
def test_what_threads_exchange_through_shared_memory(compiled, version):
    """The scale is converted to the layout of its store, with one barrier; version 7 stores it without conversion."""
    found = census(compiled[version.number][0])
    assert (found.barriers, found.shared) == ((0, 0) if version.number == 7 else (1, 2))


def test_version_7_is_launched_as_the_library_would(compiled):
    """4 elements per thread for one token: 8-byte loads, and one row per warp. Its gate is the strided one.

    The sum is exchanged over all 32 lanes in five steps, and the largest magnitude takes one integer instruction.
    """
    (one,) = map(census, compile_version(VERSIONS[6], tokens=1))
    assert (one.loads, one.stores, one.fp8_conversions, one.shuffles) == (((8, 3),), ((4, 2),), 2, 6)
    contiguous = compile_fused("sm_90", GatedNorm.qwen3_next(), GroupQuant())
    assert census(contiguous).loads == census(compiled[7][0]).loads
    assert census(contiguous).instructions < census(compiled[7][0]).instructions


def test_the_listing_taught_version_7_something(compiled):
    """Machine instructions per element, as in the notebook; on the slow unit two per element and two per row.

    On that unit version 6 has exp, a reciprocal and one of its three roundings; version 7 rounds in pairs elsewhere.
    """
    code = {number: by_kind(machine_code(compiled[number][0])) for number in (6, 7)}
    slow = "slow unit: exp, reciprocals, single conversions"
    assert code[7][slow] == 2 * ELEMENTS + 2
    assert code[7]["conversions in pairs"] == 3 * ELEMENTS // 2 + ELEMENTS // 2
    assert code[6][slow] >= 3 * ELEMENTS
    assert sum(code[7].values()) < 0.85 * sum(code[6].values())


@pytest.mark.parametrize("target", [target for target in TARGETS if target.startswith("gfx9")])
def test_they_compile_for_the_other_vendor_too(target):
    """Eight wavefronts are 512 threads, each with half the elements; version 7 uses half the wavefronts."""
    (found,) = map(census, compile_version(VERSIONS[4], target))
    assert found.loads == ((8, 3),) and found.divisions == 2


def test_an_unknown_target_is_named():
    with pytest.raises(ValueError, match=r"target 'sm_70' is unknown.*sm_90"):
        compile_version(VERSIONS[2], "sm_70")


def test_the_instruction_of_the_exercise_is_in_the_listing(compiled):
    conversions = set(re.findall(r"cvt\.\S*e4m3\S*", compiled[7][0].assembly))
    assert conversions == {exercises.fp8_conversion.solution}


def test_the_offset_of_the_exercise_is_the_tensors():
    projection = torch.arange(3 * 16 * 768).view(3, 16, 768)
    gate = projection[..., -256:]
    assert gate.stride() == (12288, 768, 1)
    first = gate[0, 0, 0].item()
    assert gate.reshape(3, 32, 128)[2, 7, 0].item() - first == exercises.gate_offset.solution


def ptx(text: str) -> Listing:
    return Listing("sm_90", {"ptx": text}, b"")


def test_a_chain_by_hand():
    """Load, add, exchange, store to shared memory, barrier, load from it, store: 8 of 10 instructions."""
    chain = longest_chain(
        ptx(
            """
	ld.param.b64 %rd1, [p];
	mov.b32 %r9, 5;
	@%p1 ld.global.v2.b32 { %r1, %r2 }, [ %rd1 + 0 ];
	add.rn.f32 %r3, %r1, %r2;
	shfl.sync.bfly.b32 %r4, %r3, 8, 31, -1;
	st.shared.b32 [%r9], %r4;
	bar.sync 0;
	ld.shared.b32 %r5, [%r9];
	st.global.b32 [%rd1], %r5;
	ret;
"""
        )
    )
    assert chain.mnemonics == (
        "ld.param.b64",
        "ld.global.v2.b32",
        "add.rn.f32",
        "shfl.sync.bfly.b32",
        "st.shared.b32",
        "bar.sync",
        "ld.shared.b32",
        "st.global.b32",
    )
    assert chain.instructions == 10
    kinds = chain.kinds()
    assert kinds["loads from memory"] == 1 and kinds["exchanges between lanes"] == 1
    assert kinds["through shared memory"] == 3 and sum(kinds.values()) == 8


def test_independent_instructions_are_no_chain():
    chain = longest_chain(ptx("\n\tmov.b32 %r1, 1;\n\tmov.b32 %r2, 2;\n\tmov.b32 %r3, 3;\n"))
    assert (len(chain.mnemonics), chain.instructions) == (1, 3)


def test_a_chain_goes_through_inline_blocks():
    """Each block has its own `t`: the first one's three links continue the chain, the second one's two do not."""
    block = """
        {{
        .reg .pred p;
        .reg .f32 t;
        setp.ne.u32 p, {0}, 0;
        @p mul.f32 t, {0}, 0fBFB8AA3B;  // t, p
        ex2.approx.ftz.f32 {1}, t;
        }}
"""
    chain = longest_chain(ptx("\tmov.b32 %r1, 1;\n" + block.format("%r1", "%r2") + block.format("%r8", "%r9")))
    assert chain.mnemonics == ("mov.b32", "setp.ne.u32", "mul.f32", "ex2.approx.ftz.f32")
    assert chain.instructions == 7


def test_what_is_no_straight_line_of_ptx_is_refused():
    with pytest.raises(ValueError, match="has a loop"):
        longest_chain(ptx("\n$L__BB0_1:\n\tadd.s32 %r1, %r1, 1;\n\tbra.uni \t$L__BB0_1;\n"))
    with pytest.raises(ValueError, match="gfx942 has no PTX"):
        longest_chain(Listing("gfx942", {"amdgcn": ""}, b""))


def test_the_chain_of_the_kernel(compiled):
    """One load, both reductions of log2(16) exchanges, root and reciprocal; most instructions are not on the chain."""
    chain = longest_chain(compiled[7][0])
    kinds = chain.kinds()
    assert list(kinds)[:-1] == list(KINDS)
    assert kinds["loads from memory"] == 1 and kinds["exchanges between lanes"] == 8
    assert kinds["divisions and roots"] == 2 and kinds["through shared memory"] == 0
    assert kinds["conversions"] == 4  # three roundings to bf16, and the code
    assert chain.mnemonics[-1].startswith("st.global")
    assert 3 * len(chain.mnemonics) < chain.instructions


def test_the_chain_that_the_evidence_speaks_of_is_the_one_computed():
    chain = longest_chain(compile_version(VERSIONS[-1], "sm_90", tokens=1)[0])
    told = (repository_root(Path(__file__)) / "data" / "README.md").read_text(encoding="utf-8")
    assert f"one row's chain, {len(chain.mnemonics)} instructions" in " ".join(told.split())


@pytest.mark.parametrize(
    "target, registers, num_warps, expected",
    [
        ("sm_90", 32, 8, Occupancy(64, 64)),
        ("sm_90", 33, 8, Occupancy(48, 64)),  # 40 registers per thread are allocated: 12 warps per partition
        ("sm_90", 64, 8, Occupancy(32, 64)),
        ("sm_90", 255, 8, Occupancy(8, 64)),
        ("sm_100", 32, 1, Occupancy(32, 64)),  # 32 blocks of one warp
        ("gfx942", 64, 4, Occupancy(32, 32)),
        ("gfx942", 65, 4, Occupancy(28, 32)),  # 72 are allocated: 7 wavefronts per SIMD
        ("gfx950", 256, 4, Occupancy(8, 32)),
    ],
)
def test_occupancy(target, registers, num_warps, expected):
    assert occupancy(target, registers, num_warps) == expected


@pytest.mark.parametrize("norm", [GatedNorm.qwen3_next(), GatedNorm.mamba2(4096)], ids=["Qwen3-Next", "Mamba2"])
@pytest.mark.parametrize("target", ["gfx942", "gfx950"])
def test_occupancy_is_the_compilers_own(target, norm):
    """LLVM writes the wavefronts per SIMD into the listing."""
    dtype = torch.float8_e4m3fnuz if target == "gfx942" else torch.float8_e4m3fn
    listing = compile_fused(target, norm, GroupQuant(dtype=dtype))
    told = int(re.search(r"; Occupancy: (\d+)", listing.assembly)[1])
    assert occupancy(target, listing.resources().registers, 1).warps == 4 * told


def test_sizes_that_no_launch_has_are_refused():
    with pytest.raises(ValueError, match="registers=0"):
        occupancy("sm_90", 0, 8)
    with pytest.raises(ValueError, match="target 'gfx90a'"):
        occupancy("gfx90a", 32, 8)
