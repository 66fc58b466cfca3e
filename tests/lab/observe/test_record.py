"""Recording on a CPU: what a trace holds there, what it is refused, and that what is written can be found again."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from fusionlab.observe import evidence, record, record_command
from fusionlab.observe.manifest import MANIFEST_NAME, verify
from fusionlab.observe.privacy import leaks
from fusionlab.observe.record import RecordError, Recording, make_step, own_code, record_step
from fusionlab.observe.structure import nest, steps
from fusionlab.observe.trace import TraceError
from fusionlib import cli
from fusionlib.testing.roundings import roundings_kept

SMALL = {"heads": 4, "out_features": 128, "device": "cpu"}
HAS_GPU = torch.cuda.is_available()


def test_a_step_is_recorded_and_marked(tmp_path):
    trace = record_step("eager", 3, path=tmp_path / "t.json.gz", steps=2, **SMALL)
    assert trace.path == tmp_path / "t.json.gz" and list(tmp_path.iterdir()) == [trace.path]
    assert (trace.kernels, trace.launches) == ((), ())
    assert [mark.name for mark in trace.marks] == ["fusionlib step 0", "fusionlib step 1"]
    first, second = steps(trace)
    assert [op.name for op in first.ops] == [op.name for op in second.ops] and len(first.ops) * 2 == len(trace.ops)
    names = [nested.op.name for nested in nest(first.ops) if nested.depth == 0]
    for name in ("aten::silu", "aten::rsqrt", "aten::amax", "aten::div", "aten::matmul"):
        assert name in names
    text = gzip.decompress(trace.path.read_bytes()).decode()
    assert leaks(text) == [] and "Python" not in text


def test_live_it_leaves_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    trace = record_step("eager", 1, steps=1, **SMALL)
    assert trace.path == Path("eager-1.json.gz") and len(trace.marks) == 1 and trace.ops
    assert not list(tmp_path.iterdir())


def test_the_fused_way_calls_the_op_and_agrees_with_eager():
    fused = Recording("fused", 3, **SMALL)
    with roundings_kept():
        assert torch.equal(make_step(fused)(), make_step(Recording("eager", 3, **SMALL))())
    trace = record_step("fused", 3, steps=1, **SMALL)
    assert [op.name for op in trace.ops].count("fusionlib::rms_norm_gated_group_quant") == 1
    assert "fusionlib::group_quant" not in {op.name for op in trace.ops}


def test_two_kernels_are_a_compiled_norm_and_the_opaque_op():
    """The loops that Inductor wrote are in the trace by name."""
    names = [op.name for op in record_step("two_kernel", 5, steps=1, **SMALL).ops]
    assert names.count("fusionlib::group_quant") == 1
    assert any("cpp_fused" in name and "silu" in name for name in names)
    assert "aten::silu" not in names


def test_the_same_seed_is_the_same_step_and_random_state_is_left_alone():
    state = torch.get_rng_state()
    first, again = (make_step(Recording("eager", 2, **SMALL))() for _ in range(2))
    assert torch.equal(first, again) and torch.equal(state, torch.get_rng_state())
    assert not torch.equal(first, make_step(Recording("eager", 2, seed=1, **SMALL))())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"variant": "fast"}, "variant 'fast' is unknown; choose one of eager, two_kernel, inductor, fused"),
        ({"tokens": 0}, "tokens=0"),
        ({"tokens": 1.5}, "tokens=1.5"),
        ({"steps": 4}, "steps=4 must be an integer from 1 to 3"),
        ({"graph": True, "device": "cpu"}, "a CPU has no CUDA graphs"),
    ],
    ids=str,
)
def test_what_cannot_be_recorded_is_named(change, words):
    with pytest.raises(RecordError) as caught:
        Recording(**({"variant": "eager", "tokens": 1} | change)).resolved()
    assert words in str(caught.value)


@pytest.mark.skipif(HAS_GPU, reason="is about a machine without a GPU")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(RecordError, match="no GPU is visible"):
        Recording("eager", 1, device="cuda").resolved()
    assert Recording("eager", 1).resolved().device == "cpu"


def test_a_trace_that_is_too_large_is_not_written(tmp_path, monkeypatch):
    clean = record.clean_trace
    monkeypatch.setattr(record, "clean_trace", lambda *a, **k: clean(*a, **k, size_limit=500))
    with pytest.raises(TraceError, match="over the limit of 500"):
        record_step("eager", 1, path=tmp_path / "t.json.gz", **SMALL)
    assert not list(tmp_path.iterdir())


def test_own_code_gives_dynamo_a_function_it_has_not_seen():
    def twice(x, by=2):
        return x * by + offset

    offset = 1
    other = own_code(twice)
    assert other(3) == twice(3) == 7 and other.__code__ is not twice.__code__ and other.__code__ != twice.__code__


@pytest.fixture
def quick(monkeypatch):
    """The command with a small layer and no compiler; a variant called to fail does."""

    def small(variant, tokens, path, **options):
        if variant == "inductor":
            raise RuntimeError("no compiler\nat all")
        return record_step("eager", tokens, path=path, **(options | SMALL))

    monkeypatch.setattr(record, "record_step", small)


@pytest.mark.skipif(HAS_GPU, reason="is about a machine without a GPU")
def test_the_command_writes_where_it_is_asked_and_can_be_read_back(tmp_path, capsys, quick):
    out = tmp_path / "traces"
    assert cli.main(["record", "--out", str(out), "--tokens", "2", "3", "--variants", "eager", "fused"]) == 0
    said = capsys.readouterr().out
    assert "no kernel, no launch, no CUDA graph" in said and f"traces: {out / 'cpu'}" in said
    manifest = verify(out / "cpu")
    assert manifest.command == "fusionlib record --variants eager fused --tokens 2 3 --steps 2 --graphs both --seed 0"
    assert manifest.machine.kind == "cpu" and manifest.machine.driver is None
    found = evidence.traces(tmp_path)
    assert [(t.device, t.variant, t.tokens, t.graph, t.steps) for t in found] == [
        ("cpu", "eager", 2, False, 2),
        ("cpu", "eager", 3, False, 2),
        ("cpu", "fused", 2, False, 2),
        ("cpu", "fused", 3, False, 2),
    ]
    assert found[0].read().ops
    assert sorted(p.name for p in out.iterdir()) == ["cpu"]


@pytest.mark.skipif(HAS_GPU, reason="is about a machine without a GPU")
def test_a_variant_that_fails_is_named_and_the_others_are_kept(tmp_path, capsys, quick):
    arguments = ["record", "--out", str(tmp_path), "--tokens", "1", "--variants"]
    assert cli.main([*arguments, "eager", "inductor"]) == 1
    assert "missing  inductor-1.json.gz: RuntimeError: no compiler\n" in capsys.readouterr().err
    assert [file.name for file in verify(tmp_path / "cpu").files] == ["eager-1.json.gz"]
    before = (tmp_path / "cpu" / MANIFEST_NAME).read_bytes()
    assert cli.main([*arguments, "inductor"]) == 1  # nothing at all: what was there stays
    assert "nothing was recorded" in capsys.readouterr().err
    assert (tmp_path / "cpu" / MANIFEST_NAME).read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["cpu"]


@pytest.mark.skipif(HAS_GPU, reason="is about a machine without a GPU")
def test_a_folder_that_holds_something_else_is_left_alone(tmp_path, capsys, quick):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "thesis.txt").write_text("mine")
    assert cli.main(["record", "--out", str(tmp_path), "--tokens", "1", "--variants", "eager"]) == 2
    assert "something other than recorded traces" in capsys.readouterr().err
    assert (tmp_path / "cpu" / "thesis.txt").read_text() == "mine" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.skipif(HAS_GPU, reason="is about a machine without a GPU")
def test_recording_again_replaces_the_whole(tmp_path, quick):
    arguments = ["record", "--out", str(tmp_path), "--variants", "eager", "--tokens"]
    assert cli.main([*arguments, "1", "2"]) == cli.main([*arguments, "3"]) == 0
    assert [file.name for file in verify(tmp_path / "cpu").files] == ["eager-3.json.gz"]
    assert [path.name for path in tmp_path.iterdir()] == ["cpu"]


@pytest.mark.skipif(HAS_GPU, reason="is about a machine without a GPU")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "Give --out FOLDER"),
        (["--out", "data/traces"], "holds what GPUs measured"),
        (["--out", "x", "--graphs", "with"], "no CUDA graph"),
        (["--out", "x", "--tokens", "0"], "tokens=0"),
        (["--out", "x", "--steps", "9"], "steps=9"),
    ],
    ids=str,
)
def test_on_a_cpu_it_pretends_nothing(capsys, monkeypatch, arguments, words):
    monkeypatch.chdir(Path(__file__).parents[3])
    monkeypatch.setattr(record_command, "write_traces", lambda *a: pytest.fail("recorded"))
    assert cli.main(["record", *arguments]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.skipif(HAS_GPU, reason="is about a machine without a GPU")
def test_a_folder_that_cannot_be_written_is_found_before_anything_is_recorded(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(record_command, "write_traces", lambda *a: pytest.fail("recorded"))
    assert cli.main(["record", "--out", str(tmp_path / "file" / "traces")]) == 2
    said = capsys.readouterr().err
    assert f"cannot write to {tmp_path / 'file' / 'traces'}: Not a directory" in said and "--out FOLDER" in said


def test_the_commands_variants_are_the_recorders():
    assert record_command.VARIANTS == record.VARIANTS and record_command.MANIFEST_NAME == MANIFEST_NAME


@pytest.mark.gpu
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("variant", record.VARIANTS)
def test_on_a_gpu_a_trace_has_kernels_with_their_launches(tmp_path, variant, graph):
    trace = record_step(variant, 64, path=tmp_path / "t.json.gz", graph=graph, steps=2)
    assert trace.kernels and all(k.launch is not None for k in trace.kernels)
    first, second = steps(trace)
    assert [k.name for k in first.kernels] == [k.name for k in second.kernels]
    names = [k.name for k in first.kernels]
    if variant == "fused":
        assert names.count("rms_norm_gated_group_quant_kernel") == 1
    if variant == "two_kernel":
        assert names.count("group_quant_kernel") == 1
    if graph:
        assert {k.launch.name for k in first.kernels} <= {"cudaGraphLaunch", "hipGraphLaunch"}
    text = json.loads(gzip.decompress((tmp_path / "t.json.gz").read_bytes()))
    assert leaks(json.dumps(text)) == []
