"""A recorded step is read with its shares, its provenance and its traces, if they are the same run's."""

import json
from dataclasses import replace

import pytest

from fusionlab.observe import evidence
from fusionlab.observe.manifest import ManifestError, file_entry, write_manifest
from fusionlab.observe.step.block_traces import trace_blocks
from fusionlab.observe.step.decode_sizes import FULL, KINDS, LINEAR
from fusionlab.observe.step.recorded_step import BlockKernels, read_step, recorded_steps
from fusionlab.observe.step.saved_parts import SavedParts
from fusionlab.observe.step.step_run import trace_name
from fusionlab.observe.step.step_variants import STEP_VARIANTS
from tests.lab.observe.step import recorded as made
from tests.lab.observe.step.small_model import decoder, uncompiled


def test_rows_are_in_order_with_shares_of_the_opaque_step(tmp_path):
    found = made.write(tmp_path)
    assert found.tokens == (2, 16) and (found.layers, found.sizes.layers) == (8, 48)
    assert found.layers_share == pytest.approx(1 / 6)
    assert [(row.tokens, row.variant) for row in found.rows] == [
        *((2, name) for name in STEP_VARIANTS),
        *((16, name) for name in ("opaque", "inductor", "fused")),
    ]
    row = found.find(2, "fused")
    assert (row.p10_us, row.median_us, row.p90_us) == (895, 900, 910)
    assert (row.saved_least, row.saved, row.saved_most) == pytest.approx((0.09, 0.1, 0.105))
    assert found.find(16, "inductor").saved == pytest.approx(-0.04)
    assert found.find(16, "gated_norm") is None
    assert found.find(2, "opaque").blocks == {kind: BlockKernels(43, 4, 20) for kind in KINDS} and row.blocks == {}
    assert row.peak_bytes == 2_200_000 and found.find(2, "opaque").peak_bytes is None


def test_predictions_carry_their_parts(tmp_path):
    few, many = made.write(tmp_path).checks
    assert (few.tokens, few.sites, few.predicted_us, few.measured_us, few.residual_us) == (2, 32, 70.0, 100.0, 30.0)
    assert few.parts == SavedParts(**made.PARTS) and few.parts.replaced == 38
    assert (many.residual_us, many.parts) == (-20.0, None)


def test_the_provenance_is_one_line_with_card_versions_date_and_command(tmp_path):
    line = made.write(tmp_path).provenance
    assert line.startswith("NVIDIA H200, driver 570.1, torch 2.11.0, triton 3.6.0; 20") and "\n" not in line
    assert line.endswith(f": {made.COMMAND}")


def test_without_an_opaque_step_there_are_times_and_no_shares(tmp_path):
    results = made.results()
    results.rows = [row for row in results.rows if row.variant != "opaque"]
    row = made.write(tmp_path, results).find(2, "fused")
    assert row.median_us == 900 and (row.saved, row.saved_least, row.saved_most) == (None, None, None)


def test_other_benchmarks_are_no_steps_and_another_format_is_refused(tmp_path):
    made.write(tmp_path)
    path = tmp_path / "benchmarks" / "nvidia-h200-step.json"
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"step": {}}))
    assert recorded_steps(tmp_path) == []
    path.write_text(json.dumps(document | {"step": document["step"] | {"sizes": {"depth": 48}}}))
    with pytest.raises(ManifestError, match="its step has another format"):
        recorded_steps(tmp_path)


def test_traces_of_the_same_run_are_found_and_others_are_not(tmp_path):
    made.write(tmp_path)
    benchmark = evidence.read_benchmark(tmp_path / "benchmarks" / "nvidia-h200-step.json")
    folder = tmp_path / "steps" / "nvidia-h200"
    folder.mkdir(parents=True)
    files = []
    for name in ("opaque", "fused"):
        path = folder / trace_name(name, 2)
        trace_blocks(decoder(2), {kind: uncompiled(STEP_VARIANTS[name], kind) for kind in KINDS}, "cpu", path)
        files.append(file_entry(path, variant=name, tokens=2, graph=True, blocks="linear full"))
    manifest = replace(benchmark.manifest, files=tuple(files))
    write_manifest(folder, manifest)
    (found,) = recorded_steps(tmp_path)
    assert found.traces.keys() == {("opaque", 2), ("fused", 2)} and len(found.trace("fused", 2).marks) == 4
    with pytest.raises(KeyError):
        found.trace("fused", 16)
    write_manifest(folder, replace(manifest, date="2020-01-01T00:00:00Z"))
    assert read_step(benchmark, folder).traces == {}


def test_what_an_older_document_lacks_comes_from_the_traces(tmp_path, monkeypatch):
    from fusionlab.observe.step import recorded_step
    from tests.lab.observe.step.test_saved_parts import FUSED, OPAQUE, kernels

    results = made.results()
    for entry in results.step["blocks"]:
        del entry["copies"]
    for entry in results.step["predictions"]:
        del entry["parts"]
    made.write(tmp_path, results)
    copied = kernels(("Memcpy DtoD", 0, 1), category="gpu_memcpy")
    blocks = {"opaque": OPAQUE + copied, "fused": FUSED}
    benchmark = evidence.read_benchmark(tmp_path / "benchmarks" / "nvidia-h200-step.json")
    monkeypatch.setattr(recorded_step, "_traces", lambda *arguments: {(name, 16): name for name in blocks})
    monkeypatch.setattr(recorded_step, "read_trace", lambda name: name)
    monkeypatch.setattr(recorded_step, "block_kernels", lambda name: dict.fromkeys(KINDS, blocks[name]))
    found = read_step(benchmark, tmp_path)
    assert found.find(16, "opaque").blocks[LINEAR] == BlockKernels(6, 1, 1)
    assert found.find(2, "opaque").blocks[FULL] == BlockKernels(43, 4, None)
    few, many = found.checks
    assert few.parts is None
    assert (many.parts.quantised_us, many.parts.fused) == (8 * 1.5, 8)  # six linear blocks and two full ones
