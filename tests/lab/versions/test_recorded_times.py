"""What `fusionlib bench --versions` writes, with a fake timer; the times themselves need a GPU."""

import pytest
import torch

from fusionlab.observe import evidence
from fusionlab.observe.bench import command, results
from fusionlab.versions import VERSIONS, timing
from fusionlab.versions import recorded_times as record
from fusionlib import cli

KEYS = [*(f"v{version.number}" for version in VERSIONS), "light", "copy"]


class Clock:
    """Counts the calls without running them: no version runs on a CPU."""

    l2_bytes = 100_000

    def __init__(self):
        self.calls = []

    def prepare(self, calls):
        self.calls.append(len(calls))
        return len(self.calls)

    def sample(self, handle):
        return float(handle)

    def release(self):
        pass


@pytest.fixture(scope="module", autouse=True)
def few_rows():
    """The interpreter, which checks the versions here, is slow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "CHECKED_TOKENS", 1)
        yield


@pytest.fixture(scope="module")
def document(tmp_path_factory):
    path = tmp_path_factory.mktemp("versions") / "run.json"
    words = ["bench", "--versions", "--tokens", "2", "--rounds", "3", "--seed", "5", "--out", str(path)]
    assert command.bench(cli.build_parser().parse_args(words), "cpu", Clock) == 0
    return evidence.read_benchmark(path)


def test_every_version_the_light_and_a_copy_are_written_in_every_case(document):
    read = results.read_results(document.document, "run.json")
    cases = {(row.gate, row.context) for row in read.rows}
    assert cases == {("contiguous", "versions"), ("strided", "versions"), ("contiguous", "versions_warm")}
    for gate, context in cases:
        assert [row.variant for row in read.rows if (row.gate, row.context) == (gate, context)] == KEYS
    assert document.manifest.command == "fusionlib bench --versions --tokens 2 --rounds 3 --seed 5"


def test_only_a_strided_gate_makes_the_early_versions_copy(document):
    read = results.read_results(document.document, "run.json")
    moved = {(row.variant, row.gate): row.bytes for row in read.rows if row.context == record.ROTATING}
    for version in VERSIONS:
        more = moved[f"v{version.number}", "strided"] - moved[f"v{version.number}", "contiguous"]
        assert more == (0 if version.strided else 2 * 2 * 2 * 32 * 128)  # 2 tokens of bf16, read and written


def test_warm_calls_share_one_set_of_buffers_and_others_do_not(document):
    read = results.read_results(document.document, "run.json")
    copies = {row.context: row.copies for row in read.rows}
    assert copies[record.WARM] == 1 and copies[record.ROTATING] > 1


def test_what_was_written_reads_back_as_what_was_timed(document):
    read = results.read_results(document.document, "run.json")
    timed = record.recorded(read, 2)
    assert [one.key for one in timed] == KEYS and [one.median_us for one in timed] == list(range(1, len(KEYS) + 1))
    assert timed[0].name == "1 two kernels" and timed[-2].name == "the light" and timed[-2].version is None
    assert record.recorded(read, 3) == []


def test_a_record_is_found_by_device_and_case(document, tmp_path):
    (tmp_path / "benchmarks").mkdir()
    assert record.everywhere(2, data=tmp_path) == {}
    (tmp_path / "benchmarks" / "gpu-versions.json").write_bytes(document.path.read_bytes())
    assert record.everywhere(3, data=tmp_path) == {}
    ((device, timed),) = record.everywhere(2, "strided", data=tmp_path).items()
    assert device == document.manifest.machine.device and [one.key for one in timed] == KEYS
    ((_, warm),) = record.everywhere(2, context=record.WARM, data=tmp_path).items()
    assert {one.sets for one in warm} == {1}


def test_a_version_that_is_wrong_is_named(monkeypatch):
    found = results.Results({})
    good = record.check_all

    def off(*arguments):
        first, *others = good(*arguments)
        return [type(first)(**{**vars(first), "steps": 2}), *others]

    monkeypatch.setattr(record, "check_all", off)
    record.measure([1], Clock(), found, rounds=2, seed=1, device="cpu")
    (entry,) = found.skipped
    assert entry.variant == "v1" and entry.wrong and "2 FP8 steps" in entry.why


def test_versions_go_to_a_file_of_their_own_and_mix_with_no_other_run(tmp_path, capsys):
    parsed = cli.build_parser().parse_args(["bench", "--versions", "--out", str(tmp_path)])
    assert command._destination(parsed, "gpu") == tmp_path / "gpu-versions.json"
    assert cli.main(["bench", "--versions", "--sweep"]) == 2
    assert "a run of its own" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_without_a_gpu_nothing_is_timed():
    with pytest.raises(timing.CannotTime, match="no GPU"):
        timing.time_all(1, 2, record.NORM, record.QUANT)
