"""The command: what it says on a CPU and, with a fake timer, everything it does besides timing."""

import json

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir

from fusionlab.observe import evidence
from fusionlab.observe.bench import cases, command, results, sweep, variants
from fusionlab.observe.bench import context as chain
from fusionlib import cli
from fusionlib.commands.errors import UsageError
from tests.lab.observe.bench.fakes import FakeTimer

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")


def parsed(*arguments):
    return cli.build_parser().parse_args(["bench", *arguments])


@WITHOUT_GPU
def test_on_a_cpu_it_says_what_it_cannot(capsys):
    assert cli.main(["bench", "--quick"]) == 2
    error = capsys.readouterr().err
    assert "no GPU is visible" in error and "--check" in error


@WITHOUT_GPU
def test_a_check_needs_no_gpu(capsys):
    arguments = ["bench", "--check", "--tokens", "2", "--shapes", "32x128", "--variants", "eager", "fused", "light"]
    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    assert "checked  32x128/2/contiguous/alone: eager, fused" in said and "checked  32x128/2/strided/alone" in said
    assert "light (2 cases): the light is a Triton kernel; it needs a GPU" in said
    assert said.splitlines()[-1] == "0 wrong results; nothing was measured"


@WITHOUT_GPU
def test_a_wrong_result_is_1(capsys, monkeypatch):
    variant = variants.VARIANTS["fused"]
    eager = variants.VARIANTS["eager"].make
    wrong = variants.Variant("fused", "ours", lambda case: lambda x, g, w: eager(case)(x * 2 + 1, g, w))
    monkeypatch.setitem(variants.VARIANTS, variant.name, wrong)
    arguments = ["bench", "--check", "--tokens", "2", "--shapes", "32x128", "--gates", "contiguous"]
    assert cli.main([*arguments, "--variants", "fused"]) == 1
    assert "1 wrong results" in capsys.readouterr().out


def test_a_check_writes_nothing(capsys, tmp_path):
    assert cli.main(["bench", "--check", "--out", str(tmp_path)]) == 2
    assert "measures nothing" in capsys.readouterr().err


@pytest.mark.parametrize("tokens", ["0", "-1", "x", "1.5", "99999999"])
def test_tokens_are_positive_integers(capsys, tokens):
    with pytest.raises(SystemExit) as caught:
        parsed(f"--tokens={tokens}")
    assert caught.value.code == 2 and "not an integer from 1" in capsys.readouterr().err


def test_the_commands_words_are_the_modules_own():
    assert tuple(variants.VARIANTS) == command.VARIANTS and tuple(cases.SHAPES) == command.SHAPES
    of = {
        name: tuple(s for s, shape in cases.SHAPES.items() if shape.producer.name == name) for name in command.PRODUCERS
    }
    assert of == command.PRODUCERS
    assert (command.CONTEXTS, command.GATES) == (cases.CONTEXTS, cases.GATES)
    assert chain.BASELINE not in command.VARIANTS


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ((), "gpu.json"),
        (("--shapes", "32x128", "mamba2"), "gpu.json"),
        (("--shapes", "16x128", "mamba2"), "gpu-shapes.json"),
        (("--contexts", "producer", "chain"), "gpu-chain.json"),
        (("--sweep", "--shapes", "mamba2"), "gpu-sweep.json"),
        (("--producers", "rms_norm", "act_and_mul"), "gpu-producers.json"),
        (("--producers", "rms_norm", "--shapes", "mamba2"), "gpu-shapes.json"),
    ],
)
def test_runs_of_different_kinds_do_not_overwrite_each_other(tmp_path, words, name):
    assert command._destination(parsed(*words, "--out", str(tmp_path)), "gpu") == tmp_path / name
    file = tmp_path / "mine.json"
    assert command._destination(parsed(*words, "--out", str(file)), "gpu") == file


def test_a_folder_that_cannot_be_written_is_found_before_anything_is_measured(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file" / "folder", tmp_path / "file" / "mine.json"):
        with pytest.raises(UsageError, match=r"cannot write to .*/file.*: .*; name a file or folder .* with --out"):
            command._destination(parsed("--out", str(out)), "gpu")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(UsageError, match=r"folder\.json is a folder"):
        command._destination(parsed("--out", str(tmp_path / "folder.json")), "gpu")


def test_what_is_measured_by_default():
    assert len(command._cases(parsed())) == 90 + 130 and "reciprocal" not in parsed().variants
    assert len(command._cases(parsed("--producers", "gated_norm"))) == 90
    both = command._cases(parsed("--producers", "act_and_mul", "--shapes", "32x128", "--tokens", "4"))
    assert list(dict.fromkeys(case.shape.name for case in both)) == ["32x128", *command.PRODUCERS["act_and_mul"]]
    quick = command._cases(parsed("--quick"))
    assert {case.shape.name for case in quick} == {"32x128"} and {case.context for case in quick} == {"alone"}
    assert sorted({case.tokens for case in quick}) == [1, 64, 1024, 8192]


def test_a_run_with_another_timer_is_written_and_read_back(tmp_path, capsys):
    """On a CPU with scripted times: everything but the times is what a run on a GPU writes."""
    arguments = parsed(
        *("--tokens", "2", "--shapes", "32x128", "--contexts", "alone", "producer", "--rounds", "3", "--seed", "5"),
        *("--variants", "eager", "aiter", "fused", "--dependent-launch", "--out", str(tmp_path / "run.json")),
    )
    assert command.bench(arguments, "cpu", FakeTimer) == 0
    said = capsys.readouterr().out
    assert "32x128, gate strided, alone: us, median (p10-p90)" in said and "goals" in said
    found = evidence.read_benchmark(tmp_path / "run.json")
    read = results.read_results(found.document, "run.json")
    assert {(row.gate, row.context) for row in read.rows} == {
        ("contiguous", "alone"),
        ("contiguous", "producer"),
        ("strided", "alone"),
    }
    assert {row.variant for row in read.rows} == {"eager", "fused", "baseline"}
    assert read.conditions["l2_bytes"] == FakeTimer.l2_bytes and read.conditions["rounds"] == 3
    assert any(entry.variant == "aiter" for entry in read.skipped)
    strided = [v for v in read.verdicts if v["target"] == "strided gate / contiguous"]
    assert [v["tokens"] for v in strided] == [2] and strided[0]["met"] in (True, False)
    if not torch.cuda.is_available():
        assert any("dependent launch needs a GPU" in entry.why for entry in read.skipped)
    expected = (
        "fusionlib bench --dependent-launch --tokens 2 --shapes 32x128 --variants eager aiter fused "
        "--gates contiguous strided --contexts alone producer --rounds 3 --compilations 3 --seed 5"
    )
    assert found.manifest.command == expected
    assert found.manifest.seed == 5
    assert json.loads((tmp_path / "run.json").read_text())["schema"] == 1


def test_a_run_that_is_stopped_keeps_the_cases_that_were_done(tmp_path):
    class Stopped(FakeTimer):
        def release(self):
            super().release()
            if prepared and len(prepared) == 2:
                raise KeyboardInterrupt
            prepared.append(None)

    prepared = []
    arguments = ("--tokens", "1", "2", "4", "--shapes", "32x128", "--gates", "contiguous", "--contexts", "alone")
    with pytest.raises(KeyboardInterrupt):
        command.bench(
            parsed(*arguments, "--variants", "eager", "--rounds", "2", "--out", str(tmp_path / "run.json")),
            "cpu",
            Stopped,
        )
    read = results.read_results(evidence.read_benchmark(tmp_path / "run.json").document, "run.json")
    assert [row.tokens for row in read.rows] == [1, 2]


def test_inductor_chooses_its_launches_in_the_run_itself():
    class Asking(FakeTimer):
        def prepare(self, calls):
            folders.append(cache_dir())
            return super().prepare(calls)

    folders = []
    arguments = ("--tokens", "1", "--shapes", "32x128", "--gates", "contiguous", "--contexts", "alone", "--rounds", "2")
    command.bench(parsed(*arguments, "--variants", "eager"), "cpu", Asking)
    assert folders and cache_dir() not in folders


def test_a_sweep_that_is_stopped_keeps_the_cases_that_were_done(tmp_path, monkeypatch):
    class Stopped(FakeTimer):
        def release(self):
            done.append(None)
            if len(done) == 2:
                raise KeyboardInterrupt

    ours, done = variants.VARIANTS["fused"].make, []
    monkeypatch.setattr(sweep, "KERNELS", {"fused": lambda case, config: ours(case)})
    arguments = ("--sweep", "--tokens", "1", "2", "--shapes", "32x128", "--gates", "contiguous", "--rounds", "1")
    with pytest.raises(KeyboardInterrupt):
        command.bench(parsed(*arguments, "--out", str(tmp_path / "s.json")), "cpu", Stopped)
    read = results.read_results(evidence.read_benchmark(tmp_path / "s.json").document, "s.json")
    assert {row.case for row in read.sweep} == {"32x128/1/contiguous/alone"}


def test_a_sweep_has_a_file_of_its_own(tmp_path, capsys, monkeypatch):
    ours = variants.VARIANTS["fused"].make
    monkeypatch.setattr(sweep, "KERNELS", {"fused": lambda case, config: ours(case)})
    arguments = ("--sweep", "--tokens", "1", "--shapes", "32x128", "--gates", "contiguous", "--rounds", "2")
    assert command.bench(parsed(*arguments, "--out", str(tmp_path)), "cpu", FakeTimer) == 0
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-sweep.json")
    read = results.read_results(evidence.read_benchmark(path).document, path.name)
    assert not read.rows and len(read.sweep) >= 10 and sum(row.heuristic for row in read.sweep) == 1
    assert "share of the best launch" in capsys.readouterr().out


@pytest.mark.gpu
def test_a_quick_run_on_a_gpu(tmp_path, capsys):
    arguments = ["bench", "--quick", "--tokens", "64", "--variants", "eager", "fused", "light", "--out", str(tmp_path)]
    assert cli.main(arguments) == 0
    (path,) = tmp_path.glob("*.json")
    read = results.read_results(evidence.read_benchmark(path).document, path.name)
    for gate in ("contiguous", "strided"):
        light, fused, eager = (
            read.find(f"32x128/64/{gate}/alone", name).median_us for name in ("light", "fused", "eager")
        )
        assert light < fused < eager
