"""Everything in data/ matches its manifests; and what evidence.py finds there."""

import gzip
import json
from pathlib import Path

import pytest

from fusionlab.observe import evidence
from fusionlab.observe.bench.results import read_results
from fusionlab.observe.clean import SIZE_LIMIT
from fusionlab.observe.manifest import (
    MANIFEST_NAME,
    Machine,
    ManifestError,
    file_entry,
    from_json,
    make_manifest,
    verify,
    write_json,
    write_manifest,
)
from fusionlab.observe.privacy import leaks
from fusionlab.observe.references import ReferenceFileError, read_reference
from fusionlab.observe.step.recorded_step import recorded_steps
from fusionlab.observe.trace_sources import benchmark_times
from tests.lab.observe.traces import EVENTS

DATA = Path(__file__).parents[3] / "data"
FILES = sorted(path for path in DATA.rglob("*") if path.is_file())
H200 = Machine("NVIDIA H200", "gpu", "570.1", "2.11.0", "3.6.0", "12.8")
LABELS = {"variant": "fused", "tokens": 64, "graph": True, "steps": 1}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(DATA)))
def test_every_file_of_data_belongs_and_gives_nothing_away(path):
    place = path.relative_to(DATA).parts
    data = path.read_bytes()
    if place[0] in ("traces", "steps"):
        assert len(place) == 3 and (path.name == MANIFEST_NAME or path.name.endswith(".json.gz"))
        assert len(data) <= SIZE_LIMIT
    elif place[0] in ("benchmarks", "counters"):
        assert place[1:-1] in ((), ("further",)) and path.suffix == ".json"
        assert from_json(json.loads(data)["manifest"], path.name).machine.kind == "gpu"
    elif place != ("README.md",):
        assert place[0] == "reference" and len(place) == 2
        assert read_reference(path).measured_by_this_project is False
    text = gzip.decompress(data) if path.suffix == ".gz" else data
    # Names in traces are C++: a template's "operator/" is not a path. The cleaner has scrubbed the names it keeps.
    assert leaks(text.decode("utf-8")) == []
    if path.suffix == ".gz":
        assert data[4:8] == b"\0\0\0\0", "a gzip header with a time: the file is not reproducible"


def test_what_is_recorded_is_a_gpus_and_whole():
    for folder in sorted((DATA / "traces").glob("*")):
        found = evidence.folder_traces(folder)  # checksums, labels, provenance
        assert found, f"{folder.name} holds no trace"
        for recorded in found:
            assert recorded.manifest.machine.kind == "gpu" and folder.name == recorded.device
            assert recorded.manifest.commit is not None
            trace = recorded.read()
            assert trace.kernels and trace.launches and len(trace.marks) == recorded.steps
    for folder in sorted((DATA / "steps").glob("*")):
        manifest = verify(folder)
        assert manifest.machine.kind == "gpu" and folder.name == manifest.machine.slug and manifest.files
    for recorded in evidence.benchmarks(DATA):
        assert recorded.manifest.machine.kind == "gpu"
        kinds = ("", "-chain", "-model", "-producers", "-shapes", "-step", "-sweep", "-versions")
        assert recorded.path.stem.removeprefix(recorded.device) in kinds
        found = read_results(recorded.document, recorded.path.name)
        assert bool(found.sweep) == recorded.path.stem.endswith("-sweep") and (found.rows or found.sweep or found.model)
        assert bool(found.model) == recorded.path.stem.endswith("-model")
        assert bool(found.step) == recorded.path.stem.endswith("-step")
        of_versions = {row.context.startswith("versions") for row in found.rows}
        assert of_versions in (set(), {recorded.path.stem.endswith("-versions")})
        assert recorded.manifest.commit is not None


def test_the_counters_read_the_bytes_that_the_ledger_counts():
    """x and gate come from memory once; the weight and what L2 keeps make up less than a hundredth."""
    (large,) = (
        row["counters"]
        for row in json.loads((DATA / "counters" / "nvidia-h200.json").read_text())["rows"]
        if row["tokens"] == 8192
    )
    assert large["dram__bytes_read.sum"] == pytest.approx(8192 * 4096 * (2 + 2), rel=0.01)


def test_the_survey_is_designs_table():
    survey = evidence.reference("h200_survey", DATA)
    times, shares = survey.tables["times"], survey.tables["shares"]
    assert times.value("two_kernel", 64) == 4.34 and times.value("light", 8192) == 40.5
    assert times.value("inductor", 32768) is None
    assert shares.value("divide_exp2", 8192) == 0.98 and shares.columns == (1, 64, 256, 8192, 32768)
    with pytest.raises(KeyError, match="tokens=256 is not in the table"):
        times.value("light", 256)
    assert survey.values["tensor_copy_in_cuda_graph_gb_s"] == 2750
    assert (survey.url, survey.measured_by_this_project) == (None, False)
    assert survey.conditions["torch"] == "2.11" and survey.conditions["triton"] == "3.6"
    # The light's bandwidth follows from its times and the bytes of the path: 5.03 an element, to three digits.
    bandwidth = 8192 * 4096 * (5 + 4 / 128) / (times.value("light", 8192) * 1e-6) / 1e9
    assert (
        survey.values["light_bandwidth_low_gb_s"] == round(bandwidth, -1) < survey.values["light_bandwidth_high_gb_s"]
    )


def test_a_reference_that_is_not_there():
    with pytest.raises(ReferenceFileError, match=r"nothing\.json"):
        evidence.reference("nothing", DATA)


@pytest.fixture
def recorded(tmp_path):
    folder = tmp_path / "traces" / "nvidia-h200"
    folder.mkdir(parents=True)
    files = []
    for variant, tokens in (("fused", 64), ("eager", 8192), ("eager", 64)):
        path = folder / f"{variant}-{tokens}.json.gz"
        path.write_bytes(gzip.compress(json.dumps({"traceEvents": EVENTS}).encode(), mtime=0))
        files.append(file_entry(path, **(LABELS | {"variant": variant, "tokens": tokens})))
    write_manifest(folder, make_manifest("fusionlib record", 0, machine=H200, files=files))
    return tmp_path


def test_recorded_traces_are_found_in_order(recorded):
    found = evidence.traces(recorded)
    assert [(t.device, t.variant, t.tokens, t.graph) for t in found] == [
        ("nvidia-h200", "eager", 64, True),
        ("nvidia-h200", "eager", 8192, True),
        ("nvidia-h200", "fused", 64, True),
    ]
    assert len(found[0].read().kernels) == 3 and found[0].manifest.machine == H200


def test_a_changed_trace_is_no_evidence(recorded):
    path = recorded / "traces" / "nvidia-h200" / "fused-64.json.gz"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ManifestError, match=r"fused-64\.json\.gz"):
        evidence.traces(recorded)
    assert len(evidence.traces(recorded, check=False)) == 3


def test_labels_must_say_what_a_trace_is(recorded):
    folder = recorded / "traces" / "nvidia-h200"
    files = [file_entry(path, variant="fused") for path in sorted(folder.glob("*.gz"))]
    write_manifest(folder, make_manifest("fusionlib record", 0, machine=H200, files=files))
    with pytest.raises(ManifestError, match="labels must be variant, tokens, graph, steps"):
        evidence.traces(recorded)


def test_nothing_recorded_is_an_empty_list(tmp_path):
    assert evidence.traces(tmp_path) == [] and evidence.benchmarks(tmp_path) == []


def test_a_benchmark_carries_its_manifest(tmp_path):
    (tmp_path / "benchmarks").mkdir()
    path = tmp_path / "benchmarks" / "nvidia-h200.json"
    write_json(path, {"manifest": make_manifest("fusionlib bench", 0, machine=H200).as_json(), "rows": []})
    (found,) = evidence.benchmarks(tmp_path)
    assert (found.device, found.path, found.document["rows"]) == ("nvidia-h200", path, [])
    write_json(path, {"rows": []})
    with pytest.raises(ManifestError, match="no manifest"):
        evidence.benchmarks(tmp_path)


def test_the_tables_in_readmes_are_the_benchmarks():
    """Microseconds with three digits, ratios with two decimals, of the contiguous gate."""
    others = {  # AITER was not measured on the H100
        DATA.parent / "README.md": ("nvidia-h200", ("two_kernel", "inductor", "aiter")),
        DATA / "README.md": ("nvidia-h100-80gb-hbm3", ("two_kernel", "inductor")),
    }
    for readme, (device, names) in others.items():
        times = benchmark_times(evidence.read_benchmark(DATA / "benchmarks" / f"{device}.json"))
        for tokens in (1, 64, 1024, 8192, 32768):
            us = {variant: series[tokens] for variant, series in times.items()}
            cells = [f"{us[name]:.3g}" for name in (*names, "fused", "light")]
            ratios = [f"{us[name] / us['fused']:.2f}" for name in (*names, "light")]
            assert f"| {tokens} | {' | '.join(cells + ratios)} |" in readme.read_text(encoding="utf-8")


def test_the_producers_table_is_the_benchmark():
    """Ratios with two decimals: light, two kernels and Inductor, each over ours."""
    path = DATA / "benchmarks" / "nvidia-h100-80gb-hbm3-producers.json"
    rows = read_results(evidence.read_benchmark(path).document, path.name).rows
    times = {(row.shape, row.tokens, row.variant): row.median_us for row in rows}
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    columns = [("light", tokens) for tokens in (1, 16, 64, 256, 8192)]
    columns += [(name, tokens) for name in ("two_kernel", "inductor") for tokens in (1, 64, 8192)]
    shapes = {shape for shape, _, _ in times}
    assert len(shapes) == 13
    for shape in shapes:
        cells = [f"{times[shape, tokens, name] / times[shape, tokens, 'fused']:.2f}" for name, tokens in columns]
        assert f"| `{shape}` | {' | '.join(cells)} |" in readme


def test_the_step_in_the_readme_is_the_recorded_one():
    """Milliseconds with two decimals, what is saved of the opaque step with one."""
    (recorded,) = recorded_steps()
    readme = (DATA.parent / "README.md").read_text(encoding="utf-8")
    for tokens in (1, 4, 16, 64, 256):
        variants = {name: recorded.find(tokens, name) for name in ("opaque", "inductor", "gated_norm", "fused")}
        cells = [f"{row.median_us / 1000:.2f}" for row in variants.values()]
        cells += [f"{variants[name].saved * 100:.1f} %" for name in ("gated_norm", "fused")]
        assert f"| {tokens} | {' | '.join(cells)} |" in readme


def test_what_all_fusions_save_in_each_run_of_a_step():
    """Per cent with one decimal of the opaque step, and README's spread of them."""
    data, readme = ((folder / "README.md").read_text(encoding="utf-8") for folder in (DATA, DATA.parent))
    device = "nvidia-h100-80gb-hbm3"
    named = {
        f"further/{device}-step-1.json": "`further/...-step-1.json`",
        f"{device}-step.json": "`...-step.json`",
        f"further/{device}-step-2.json": "`further/...-step-2.json`, five captures",
        f"further/{device}-step-3.json": "`further/...-step-3.json`, five captures",
    }
    runs = []
    for file, name in named.items():
        step = json.loads((DATA / "benchmarks" / file).read_text(encoding="utf-8"))["step"]
        shares = {entry["tokens"]: entry["share"] for entry in step["gains"] if entry["variant"] == "fused"}
        cells = [f"{shares[tokens] * 100:.1f} %" if tokens in shares else "-" for tokens in (1, 4, 16, 64, 256)]
        assert f"| {name} | {' | '.join(cells)} |" in data
        runs.append(shares)
    spread = {tokens: [f"{end(run[tokens] for run in runs) * 100:.1f}" for end in (min, max)] for tokens in (1, 4, 16)}
    (least, most), others = spread[1], [" to ".join(spread[tokens]) for tokens in (4, 16)]
    assert f"{least} to {most} % at 1 token, {others[0]} at 4, {others[1]} at 16" in " ".join(readme.split())
    assert all(run[4] >= 0.06 for run in runs) and not all(run[tokens] >= 0.06 for run in runs for tokens in (1, 16))


def _document(file):
    found = evidence.read_benchmark(DATA / "benchmarks" / file)
    return read_results(found.document, file), found.manifest, file


def test_the_launch_heuristic_is_what_the_sweep_says():
    """The launches that the code chooses are among those swept, and close to the best of each size."""
    config = pytest.importorskip("fusionlib.kernels.config", reason="Triton is not installed on this platform")
    path = DATA / "benchmarks" / "nvidia-h200-sweep.json"
    sweep = [row for row in read_results(evidence.read_benchmark(path).document, path.name).sweep]
    sizes = {(row.units, row.unit) for row in sweep}
    assert len(sizes) == 18
    for units, unit in sizes:
        ours = [row for row in sweep if (row.units, row.unit, row.kernel) == (units, unit, "fused")]
        (chosen,) = [row for row in ours if row.launch == vars(config.choose_launch(units, unit))]
        best = min(row.median_us for row in ours)
        assert best / chosen.median_us > 0.99, (units, unit)
