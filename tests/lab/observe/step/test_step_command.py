"""`fusionlib bench --step`: what it refuses, what it runs on a CPU, and what it writes."""

import json

import pytest
import torch

from fusionlab.observe import evidence
from fusionlab.observe.bench import command, results
from fusionlab.observe.manifest import make_manifest, verify
from fusionlab.observe.step import command as step_command
from fusionlab.observe.step import step_run
from fusionlab.observe.step.block_traces import trace_blocks
from fusionlab.observe.step.decode_sizes import KINDS, QWEN3_NEXT, SMALL
from fusionlab.observe.step.step_run import StepSettings, trace_name
from fusionlab.observe.step.step_variants import STEP_VARIANTS
from fusionlab.observe.trace import read_trace
from fusionlib import cli
from tests.lab.observe.bench.fakes import FakeTimer
from tests.lab.observe.step.small_model import decoder, quick, uncompiled

WITHOUT_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")


def parsed(*arguments):
    return cli.build_parser().parse_args(["bench", *arguments])


@WITHOUT_GPU
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--step",), "no GPU is visible"),
        (("--step", "--sweep"), "--step is a run of its own"),
        (("--step", "--versions"), "leave"),
        (("--layers", "4", "--check"), "belong to --step"),
        (("--record", "x", "--check"), "belongs to --step"),
        (("--step", "--record-tokens", "4", "--check"), "belongs to --record"),
        (("--step", "--record", "x", "--check", "--tokens", "1", "4"), "name one of 1, 4 by --record-tokens"),
        (("--step", "--record", "x", "--check", "--record-tokens", "16"), "traces of 16 tokens; name one of 4"),
        (("--step", "--check", "--out", "x"), "measures nothing"),
    ],
)
def test_what_is_refused(words, says, capsys):
    assert cli.main(["bench", *words]) == 2
    assert says in capsys.readouterr().err


def test_settings():
    assert step_command.step_settings(parsed("--step"), "cuda") == StepSettings()
    assert StepSettings().sizes is QWEN3_NEXT and StepSettings().layers is None
    assert StepSettings().tokens == (1, 4, 16, 64, 256)
    check = step_command.step_settings(parsed("--step", "--check"), "cpu")
    assert (check.sizes, check.layers, check.tokens) == (SMALL, 4, (4,))
    layers = [step_command.step_settings(parsed("--step", "--layers", n), "cuda").layers for n in ("1", "11", "999")]
    assert layers == [4, 8, 48]
    longer = step_command.step_settings(parsed("--step", "--context-length", "4096"), "cuda")
    assert longer.sizes.context == 4096


@pytest.mark.parametrize(
    ("words", "tokens"),
    [((), 16), (("--tokens", "4"), 4), (("--tokens", "1", "16"), 16), (("--record-tokens", "64"), 64)],
)
def test_traces_of_one_number_of_tokens_are_recorded(words, tokens):
    arguments = parsed("--step", "--record", "x", *words)
    assert step_command.tokens_to_record(arguments, step_command.step_settings(arguments, "cuda")) == tokens


def test_the_command_is_written_as_it_can_be_repeated():
    words = ("--step", "--tokens", "4", "--step-variants", "opaque", "fused", "--layers", "8", "--seed", "3")
    assert command._command(parsed(*words)) == (
        "fusionlib bench --step --tokens 4 --step-variants opaque fused --layers 8 --rounds 30 --seed 3"
    )


def test_a_run_with_another_timer_is_written_and_read_back(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(step_run, "compile_block", quick)
    monkeypatch.setattr(step_run, "site_codes", lambda *arguments: [])
    arguments = parsed("--step", "--tokens", "1", "2", "--rounds", "3", "--out", str(tmp_path))
    assert command.bench(arguments, "cpu", FakeTimer) == 0
    (path,) = tmp_path.iterdir()
    assert path.name.endswith("-step.json")
    found = evidence.read_benchmark(path)
    read = results.read_results(found.document, path.name)
    assert [row.tokens for row in read.rows] == [1] * 4 + [2] * 4
    assert found.manifest.command.startswith("fusionlib bench --step --tokens 1 2")
    assert "stand-in for ten routed experts" in read.conditions["mlp"] and read.step["sizes"]["hidden"] == 256
    said = capsys.readouterr().out
    assert "us per step" in said and f"results: {path}" in said


def test_recorded_traces_carry_their_manifest(tmp_path):
    traces, target = tmp_path / "all", tmp_path / "steps" / "cpu"
    traces.mkdir()
    for name in ("opaque", "inductor", "fused"):
        blocks = {kind: uncompiled(STEP_VARIANTS[name], kind) for kind in KINDS}
        for tokens in (2, 3):
            trace_blocks(decoder(2), blocks, "cpu", traces / trace_name(name, tokens))
    target.mkdir(parents=True)
    (target / trace_name("opaque", 64)).write_text("an earlier run's")
    step_command._keep(traces, target, 2, False, make_manifest("fusionlib bench --step", 0))
    manifest = verify(target)
    assert [(file.name, file.labels) for file in manifest.files] == [
        (f"{name}-2-graph.json.gz", {"variant": name, "tokens": 2, "graph": False, "blocks": "linear full"})
        for name in ("opaque", "fused")
    ]
    assert all(len(read_trace(target / file.name).marks) == 4 for file in manifest.files)
    assert len(list(target.iterdir())) == 3


@WITHOUT_GPU
def test_a_check_compiles_the_blocks_and_fuses_every_site(capsys):
    """The real thing on a CPU, for the variant that has them all; comparisons, which need another, are tested apart."""
    assert cli.main(["bench", "--step", "--check", "--tokens", "2", "--step-variants", "fused"]) == 0
    said = capsys.readouterr().out
    assert "linear {'rms_norm': 2, 'gated_norm': 1, 'act_and_mul': 1}" in said
    assert "full {'rms_norm': 2, 'sigmoid_gate': 1, 'act_and_mul': 1}" in said
    assert said.splitlines()[-1] == "0 wrong results; nothing was measured"


@pytest.mark.gpu
def test_a_step_on_a_gpu(tmp_path):
    words = ["bench", "--step", "--tokens", "4", "--layers", "4", "--rounds", "5", "--out", str(tmp_path / "s.json")]
    assert cli.main(words) == 0
    found = json.loads((tmp_path / "s.json").read_text())
    assert [row["variant"] for row in found["rows"]] == ["opaque", "inductor", "gated_norm", "fused"]
    assert not any(entry["wrong"] for entry in found["skipped"])
    quants = {(e["variant"], e["kind"]): e["quantisations"] for e in found["step"]["blocks"]}
    assert quants["opaque", "linear"] == quants["opaque", "full"] == 4 and quants["gated_norm", "linear"] == 3
    assert quants["fused", "linear"] == quants["fused", "full"] == 0
    assert found["step"]["predictions"][0]["predicted_us"] > 0
