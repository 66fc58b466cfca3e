"""Results: percentiles, writing and reading, and what is refused."""

import json
from dataclasses import asdict

import pytest

from fusionlab.observe import evidence
from fusionlab.observe.bench.results import Results, Skipped, SweepRow, percentiles, read_results, write_results
from fusionlab.observe.manifest import Machine, ManifestError, make_manifest
from tests.lab.observe.bench.fakes import row

H200 = Machine("NVIDIA H200", "gpu", "570.1", "2.11.0", "3.6.0", "12.8")


def test_percentiles_are_linear_between_samples():
    assert percentiles([3.0, 1.0, 2.0]) == (2.0, 1.2, 2.8)
    assert percentiles([5.0]) == (5.0, 5.0, 5.0)
    assert percentiles(list(range(1, 12))) == (6.0, 2.0, 10.0)


@pytest.mark.parametrize("samples", [[], [0.0], [1.0, -1.0], [float("nan")], [float("inf")]])
def test_no_time_is_no_sample(samples):
    with pytest.raises(ValueError, match="positive times"):
        percentiles(samples)


@pytest.fixture
def results():
    made = Results({"rounds": 3}, [row("fused", 2.0, launch={"rows": 8, "num_warps": 8}), row("light", 1.5)])
    made.skipped.append(Skipped("c", "aiter", "not installed"))
    made.sweep.append(SweepRow("c", 128, 32, "fused", {"rows": 1, "num_warps": 1}, 2.0, 1.9, 2.1, True))
    return made


def test_what_is_written_is_read(tmp_path, results):
    path = tmp_path / "nvidia-h200.json"
    write_results(path, results, make_manifest("fusionlib bench", 0, machine=H200))
    found = evidence.read_benchmark(path)
    assert found.device == "nvidia-h200"
    again = read_results(found.document, str(path))
    assert asdict(again) == asdict(results)
    assert again.find("32x128/64/contiguous/alone", "light").median_us == 1.5
    assert again.find("32x128/64/contiguous/alone", "eager") is None


def test_a_manifest_that_gives_something_away_is_not_written(tmp_path, results):
    with pytest.raises(ManifestError, match="/home/alice"):
        write_results(tmp_path / "r.json", results, make_manifest("bench /home/alice/x", 0, machine=H200))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2},
        {"extra": 1},
        {"rows": [{"case": "c"}]},
        {"rows": [asdict(row("fused", 2.0)) | {"median_us": 0.0}]},
        {"rows": [asdict(row("fused", 2.0)) | {"p10_us": 9.0}]},
    ],
    ids=str,
)
def test_another_form_is_refused(results, change):
    document = json.loads(json.dumps(results.document(make_manifest("bench", 0, machine=H200)))) | change
    with pytest.raises(ManifestError, match="source"):
        read_results(document, "source")
