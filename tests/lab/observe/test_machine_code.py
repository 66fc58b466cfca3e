"""Machine code is read from a disassembly up to its end, and counted by kind."""

import pytest

from fusionlab.observe.codegen import Listing
from fusionlab.observe.machine_code import KINDS, REST, by_kind, machine_code, mnemonics

TEXT = """
\t.headerflags\t@"EF_CUDA_SM90"
kernel:
.text.kernel:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 EXIT ;
        /*0020*/              @!P1 LDG.E.128 R4, desc[UR4][R2.64] ;
        /*0030*/                   MUFU.EX2 R4, R4 ;
        /*0040*/                   F2F.BF16.F32 R5, R4 ;
        /*0050*/                   F2FP.BF16.F32.PACK_AB R5, R4, R5 ;
        /*0060*/                   FFMA R4, R4, R4, R5 ;
        /*0070*/                   SHFL.BFLY PT, R6, R4, 0x8, 0x1f ;
        /*0080*/                   NOP ;
        /*0090*/          @P0 FADD R4, R4, R5 ;
        /*00a0*/              @UP0 UIADD3 UR4, UR4, 0x1, URZ ;
        /*00b0*/                   EXIT ;
.L_x_0:
        /*00c0*/                   MUFU.RCP R4, R4 ;
        /*00d0*/                   NOP ;
"""


def test_the_way_through_ends_at_the_last_exit():
    found = mnemonics(TEXT)
    assert found[0] == "LDC" and found[-1] == "EXIT" and found.count("EXIT") == 2
    assert len(found) == 11 and "NOP" not in found and "MUFU.RCP" not in found


def test_kinds():
    kinds = by_kind(mnemonics(TEXT))
    assert list(kinds) == [*KINDS, REST]
    assert list(kinds.values()) == [1, 1, 2, 1, 2, 4]


def test_amd_has_no_second_listing():
    with pytest.raises(ValueError, match="gfx942 is not NVIDIA's"):
        machine_code(Listing("gfx942", {"amdgcn": ""}, b""))
