"""`fusionlib asm`: its output, and its errors for invalid arguments."""

import argparse
import importlib.util
import sys

import pytest

from fusionlab.observe import asm, asm_command
from fusionlab.observe.codegen import TARGETS

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed on this platform"
)


def call(*words):
    parser = argparse.ArgumentParser(prog="fusionlib")
    asm_command.register(parser.add_subparsers(required=True))
    namespace = parser.parse_args(["asm", *words])
    return namespace.run(namespace)


def test_the_commands_words_are_the_modules_own():
    """They are hard-coded in the parser, which must not import torch."""
    for name in ("TARGETS", "NORMS", "QUANTS", "STAGES", "DTYPES"):
        assert getattr(asm_command, name) == tuple(getattr(asm, name))


@needs_triton
def test_the_census_of_every_target_is_the_default(capsys):
    assert call() == 0
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines() if line.startswith("target")] == list(TARGETS)
    loads = [" ".join(line.split()[1:]) for line in out.splitlines() if line.startswith("loads")]
    assert loads == ["3 x 16 bytes"] * len(TARGETS)  # x, gate, weight


@needs_triton
@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--target", "sm_90", "--stage", "ttir"), "tt.func public @rms_norm_gated_group_quant_kernel"),
        (("--target", "sm_100", "--stage", "ttgir"), "#ttg.blocked"),
        (("--target", "gfx942", "--stage", "llir"), "define amdgpu_kernel"),
        (("--target", "sm_90", "--stage", "ptx"), ".visible .entry"),
        (("--target", "gfx950", "--stage", "amdgcn"), "amdgpu_metadata"),
    ],
)
def test_every_stage(capsys, words, expected):
    assert call(*words) == 0
    assert expected in capsys.readouterr().out


@needs_triton
@pytest.mark.parametrize(("stage", "targets"), [("ptx", ["sm_90", "sm_100"]), ("amdgcn", ["gfx942", "gfx950"])])
def test_a_stage_names_its_targets(capsys, stage, targets):
    assert call("--stage", stage) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("===")] == targets


@needs_triton
@pytest.mark.parametrize("norm", asm.NORMS)
@pytest.mark.parametrize("quant", asm.QUANTS)
def test_every_spec(capsys, norm, quant):
    assert call("--norm", norm, "--quant", quant, "--target", "sm_90", "gfx942") == 0
    assert capsys.readouterr().out.count("spills               0") == 2


@needs_triton
def test_compare(capsys):
    assert call("--compare", "sm_90", "gfx950") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["sm_90", "|", "gfx950"]
    (at,) = (i for i, line in enumerate(lines) if "return tl.load(ptr" in line)
    block = lines[at + 1 : lines.index("", at)]
    assert any("ld.global.v4.b32" in line.split("|")[0] for line in block)
    assert any("load_dwordx4" in line.split("|")[1] for line in block)
    assert max(map(len, lines)) <= 130


@needs_triton
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target", "gfx950", "--stage", "ptx"), "target gfx950 has no stage 'ptx'; it has ttir"),
        (("--norm-size", "0"), "norm_size=0 must be a positive integer"),
        (("--norm", "mamba2", "--norm-size", "100"), "norm size 100 and group size 128 do not fit"),
        (("--hidden", "100"), "hidden=100"),
        (("--group-size", "32768", "--hidden", "32768"), "above the kernel's 16384"),
    ],
)
def test_what_cannot_be_is_a_sentence_and_two(capsys, words, message):
    assert call(*words) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.err.startswith("fusionlib asm: ")
    assert captured.out == ""


def test_without_triton_it_says_so(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert call("--target", "sm_90") == 1
    assert "is not installed" in capsys.readouterr().err


def test_unknown_words_are_argparse_s(capsys):
    with pytest.raises(SystemExit) as caught:
        call("--target", "sm_70")
    assert caught.value.code == 2
    assert "sm_90" in capsys.readouterr().err
