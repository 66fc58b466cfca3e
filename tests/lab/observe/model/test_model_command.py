"""`fusionlib bench --model`: what it refuses, its settings, and what it writes."""

import sys

import pytest
import torch

from fusionlab.observe import evidence
from fusionlab.observe.bench import command
from fusionlab.observe.manifest import ManifestError
from fusionlab.observe.model import model_command, model_run
from fusionlab.observe.model.model_run import MODEL_VARIANTS, ModelSettings
from fusionlab.observe.model.recorded_model import recorded_models
from fusionlab.observe.model.workload import DECODE, PREFILL, Workload
from fusionlib import cli
from fusionlib.commands.errors import UsageError
from tests.lab.observe.bench.fakes import FakeTimer
from tests.lab.observe.model.small_qwen import embedded, small, uncompiled

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")


def parsed(*arguments):
    return cli.build_parser().parse_args(["bench", *arguments])


@WITHOUT_GPU
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model", "qwen3_next"), "no GPU is visible"),
        (("--model", "qwen3_next", "--step", "--check"), "--model is a run of its own"),
        (("--prompts", "64", "--check"), "belong to --model"),
        (("--experts", "64", "--step", "--check"), "belong to --model"),
        (("--compilations", "2", "--step", "--check"), "--compilations is not of --step"),
        (("--model", "qwen3_next", "--record", "x", "--check"), "--record belongs to --step"),
        (
            ("--model", "qwen3_next", "--check", "--step-variants", "opaque", "inductor"),
            "--model has the variants opaque, gated_norm, fused, and not inductor",
        ),
        (("--model", "qwen3_next", "--check", "--layers", "6"), "--layers 6 must be a multiple of 4"),
        (("--model", "qwen3_next", "--check", "--layers", "8"), "the small model that a CPU gets has 4 layers"),
    ],
)
def test_what_is_refused(words, says, capsys):
    assert cli.main(["bench", *words]) == 2
    assert says in capsys.readouterr().err


def test_without_transformers_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setattr(model_command.importlib.util, "find_spec", lambda name: None)
    assert cli.main(["bench", "--model", "qwen3_next", "--check"]) == 2
    assert "pip install '.[models]'" in capsys.readouterr().err
    assert "transformers" in sys.modules  # of these tests; the command had not asked it


def test_settings():
    model = ("--model", "qwen3_next")
    assert model_command.model_settings(parsed(*model), "cuda") == ModelSettings()
    assert [each.tokens for each in ModelSettings().workloads] == [1, 4, 16, 64, 128, 1024, 8192]
    assert ModelSettings().variants == MODEL_VARIANTS and ModelSettings().context == 1024
    words = ("--prompts", "512", "--layers", "8", "--compilations", "2")
    only = model_command.model_settings(parsed(*model, *words), "cuda")
    assert only.workloads == (Workload(PREFILL, 512),) and (only.layers, only.compilations) == (8, 2)
    assert "the fastest of 2" in model_command.conditions(only, None)["compiled"]
    assert "fastest" not in model_command.conditions(ModelSettings(), None)["compiled"]
    with pytest.raises(UsageError, match="--layers 52 must be a multiple of 4, and the model has 48 layers"):
        model_command.model_settings(parsed(*model, "--layers", "52"), "cuda")
    check = model_command.model_settings(parsed(*model, "--check", "--step-variants", "fused"), "cpu")
    assert (check.workloads, check.variants, check.context) == ((Workload(DECODE, 4),), ("fused",), 32)


def test_the_command_is_written_as_it_can_be_repeated():
    words = ("--model", "qwen3_next", "--tokens", "4", "--prompts", "64", "--experts", "32", "--layers", "8")
    command_line = "fusionlib bench --model qwen3_next --tokens 4 --prompts 64 --experts 32"
    assert command._command(parsed(*words)) == f"{command_line} --layers 8 --rounds 30 --seed 0"
    several = command._command(parsed(*words, "--compilations", "3"))
    assert several == f"{command_line} --compilations 3 --layers 8 --rounds 30 --seed 0"


def test_a_run_is_written_and_found_as_evidence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(model_run, "make_model", lambda *arguments: small())
    monkeypatch.setattr(model_run, "forward", embedded)
    monkeypatch.setattr(model_run, "compiled", uncompiled)
    monkeypatch.setattr(model_run.CompiledModel, "problem", lambda self, model: None)
    (tmp_path / "benchmarks").mkdir()
    words = ("--model", "qwen3_next", "--tokens", "2", "--rounds", "3", "--out", str(tmp_path / "benchmarks"))
    assert command.bench(parsed(*words), "cpu", FakeTimer) == 0
    (recorded,) = recorded_models(tmp_path)
    assert [row.variant for row in recorded.rows] == list(MODEL_VARIANTS)
    assert recorded.manifest.libraries["transformers"] and "random weights" in recorded.conditions["model"]
    said = capsys.readouterr().out
    assert "µs of a step" in said and "every variant fused what it must; how near" in said and "-model.json" in said
    (path,) = (tmp_path / "benchmarks").iterdir()
    path.write_text(path.read_text().replace('"layers_of_all"', '"layers_of_some"'))
    with pytest.raises(ManifestError, match="its model has another format"):
        recorded_models(tmp_path)
    assert evidence.benchmarks(tmp_path)
