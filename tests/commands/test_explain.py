"""`fusionlib explain` from the command line."""

import pytest

from fusionlib.cli import main
from fusionlib.match.reasons import REASONS

PROBE = """
import torch
from fusionlib import GatedNorm, GroupQuant
from fusionlib.layers import AttentionOutput

def fuses():
    return (AttentionOutput(4, 128, 256).requires_grad_(False), *torch.randn(2, 5, 4, 128, dtype=torch.bfloat16))

def misses():
    norm = AttentionOutput(4, 128, 256).requires_grad_(False).norm
    x, gate = torch.randn(2, 5, 4, 128, dtype=torch.bfloat16)
    return lambda x, gate: (norm(x, gate).float() / 2.0).to(torch.float8_e4m3fn), x, gate

def others():
    return lambda y: (y / 2.0).to(torch.float8_e4m3fn), torch.randn(4, 128)

def wrong():
    return 7

def needs(x, y, *rest, z=1):
    return x

def needed_by_the_function():
    return lambda a, b: a + b, torch.ones(2)

def raises():
    raise RuntimeError("planted")

not_callable = 3
"""


@pytest.fixture
def probe(tmp_path, monkeypatch):
    (tmp_path / "explain_probe.py").write_text(PROBE)
    (tmp_path / "explain_broken.py").write_text("def make(:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return "explain_probe"


@pytest.mark.parametrize("devices", ["cpu", "cpu,cuda"])
def test_a_model_that_fuses(probe, devices, capsys):
    assert main(["explain", "--devices", devices, f"{probe}:fuses"]) == 0
    assert "1 fused, 0 refused" in capsys.readouterr().out


def test_unasked_it_answers_for_gpus_and_names_the_way_out(probe, capsys):
    assert main(["explain", f"{probe}:fuses"]) == 1
    out = capsys.readouterr().out
    assert "0 fused, 1 refused" in out and "[device]" in out
    assert "expected a tensor on cuda; found one on cpu" in out and "--devices cpu,cuda" in out


def test_unknown_devices_are_named(probe, capsys):
    with pytest.raises(SystemExit):
        main(["explain", "--devices", "cpu,tpu", f"{probe}:fuses"])
    assert "'tpu' is no type of device; name cpu or cuda, or both" in capsys.readouterr().err


def test_another_layers_quantisation_is_unclaimed(probe, capsys):
    assert main(["explain", "--devices", "cpu", f"{probe}:others"]) == 1
    out = capsys.readouterr().out
    assert "0 fused, 0 refused, 1 unclaimed" in out and "no fusion starts from" in out


def test_a_refusal_names_its_code_and_its_line(probe, capsys):
    assert main(["explain", "--devices", "cpu", f"{probe}:misses"]) == 1
    out = capsys.readouterr().out
    assert "0 fused, 1 refused" in out and "explain_probe.py" in out
    assert any(f"[{code}]" in out for code in REASONS)


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("explain_probe", "MODULE:CALLABLE"),
        ("explain_probe:absent", "absent"),
        ("explain_probe:neds", "did you mean needs?"),
        ("explain_probe:needs", "needs arguments (x, y); name a callable that needs none"),
        ("explain_probe:needed_by_the_function", "<lambda> cannot be traced: "),
        ("explain_probe:raises", "RuntimeError: planted (explain_probe.py:"),
        ("explain_probe:not_callable", "has no callable 'not_callable'"),
        ("explain_broken:make", "explain_broken cannot be imported: SyntaxError"),
        ("no_such_module:make", "no_such_module"),
        ("explain_probe:wrong", "returned int"),
    ],
)
def test_a_wrong_target_is_named(probe, capsys, target, words):
    assert main(["explain", target]) == 2
    said = capsys.readouterr().err
    assert words in said and said.startswith(f"fusionlib: error: {target!r}" if ":" not in target else "fusionlib: ")
    assert len(said.splitlines()) == 1
