"""Manifests: written and read back, compared with the files, and refused if they contain private data."""

import json
from dataclasses import replace

import pytest

from fusionlab.observe import manifest as manifest_module
from fusionlab.observe.manifest import (
    MANIFEST_NAME,
    Machine,
    ManifestError,
    device_slug,
    file_entry,
    make_manifest,
    read_manifest,
    this_machine,
    verify,
    write_manifest,
)
from fusionlab.observe.privacy import command_text, leaks, own_names

H200 = Machine("NVIDIA H200", "gpu", "570.1", "2.11.0", "3.6.0", "12.8")
LABELS = {"variant": "fused", "tokens": 64, "graph": True, "steps": 2}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "fused.json.gz").write_bytes(b"content")
    files = [file_entry(tmp_path / "fused.json.gz", **LABELS)]
    manifest = make_manifest(["fusionlib", "record"], 3, machine=H200, files=files, libraries={"aiter": "0.1"})
    write_manifest(tmp_path, manifest)
    return tmp_path


def test_what_is_written_is_read(folder):
    manifest = verify(folder)
    assert manifest == read_manifest(folder / MANIFEST_NAME)
    assert manifest.machine == H200 and manifest.machine.slug == "nvidia-h200"
    assert (manifest.command, manifest.seed, manifest.libraries) == ("fusionlib record", 3, {"aiter": "0.1"})
    (file,) = manifest.files
    assert (file.name, file.bytes, file.labels) == ("fused.json.gz", 7, LABELS)
    # printf content | sha256sum
    assert file.sha256 == "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    assert not list(folder.glob(".*"))


def test_a_changed_a_missing_and_a_strange_file_are_named(folder):
    path = folder / "fused.json.gz"
    path.write_bytes(b"CONTENT")
    with pytest.raises(ManifestError, match=r"fused\.json\.gz: 7 bytes with SHA-256"):
        verify(folder)
    path.unlink()
    with pytest.raises(ManifestError, match=r"fused\.json\.gz: named in MANIFEST\.json and missing"):
        verify(folder)
    path.write_bytes(b"content")
    (folder / "other.json.gz").write_bytes(b"")
    with pytest.raises(ManifestError, match=r"other\.json\.gz: not in MANIFEST\.json"):
        verify(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema": 2}, "schema=2"),
        ({"date": "yesterday"}, "date='yesterday'"),
        ({"date": None}, "date=None"),
        ({"seed": True}, "seed=True"),
        ({"command": " "}, "command=' '"),
        ({"commit": 7}, "commit=7"),
        ({"libraries": {"a": 1}}, "libraries="),
        ({"files": [{}]}, "files holds"),
        ({"files": [{"name": "../a", "sha256": "0" * 64, "bytes": 1, "labels": {}}]}, "files holds"),
        ({"files": [{"name": "a", "sha256": "0" * 63, "bytes": 1, "labels": {}}]}, "files holds"),
        ({"files": [{"name": "a", "sha256": "0" * 64, "bytes": 1, "labels": {}}] * 2}, "twice"),
        ({"machine": {}}, "machine must be exactly"),
        ({"host": "x"}, "exactly"),
        ({"command": "fusionlib record --out /home/alice/x"}, "a path"),
        ({"command": "fusionlib record on 10.1.2.3"}, "10.1.2.3"),
    ],
    ids=str,
)
def test_another_form_is_refused(folder, change, words):
    value = json.loads((folder / MANIFEST_NAME).read_text()) | change
    (folder / MANIFEST_NAME).write_text(json.dumps(value))
    with pytest.raises(ManifestError) as caught:
        read_manifest(folder)
    assert words in str(caught.value) and MANIFEST_NAME in str(caught.value)


@pytest.mark.parametrize("change", [{"kind": "tpu"}, {"driver": None}, {"triton": None}, {"torch": ""}, {"device": 1}])
def test_a_gpu_names_what_its_numbers_depend_on(folder, change):
    value = json.loads((folder / MANIFEST_NAME).read_text())
    value["machine"] |= change
    (folder / MANIFEST_NAME).write_text(json.dumps(value))
    with pytest.raises(ManifestError, match=f"machine.{next(iter(change))}"):
        read_manifest(folder)


def test_no_file_and_no_json(tmp_path):
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path)
    (tmp_path / MANIFEST_NAME).write_text("{")
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path)


def test_a_manifest_that_gives_something_away_is_not_written(tmp_path):
    manifest = make_manifest("fusionlib record", 0, machine=replace(H200, device="card of bob at /dev/nvidia0"))
    with pytest.raises(ManifestError, match="/dev/nvidia0"):
        write_manifest(tmp_path, manifest)
    assert not list(tmp_path.iterdir())


def test_a_command_keeps_no_absolute_path():
    words = ["fusionlib", "record", "--out", "/home/alice/traces", "--out=/scratch/x", "data/traces"]
    assert command_text(words) == "fusionlib record --out traces --out=x data/traces"


def test_leaks_are_found_and_web_addresses_are_none():
    text = "a /tmp/torchinductor_alice/x, host gpubox17 of alice at https://example.org/a/b"
    assert leaks(text, secrets=["gpubox17"]) == ["/tmp/torchinductor_alice/x", "alice", "gpubox17"]
    assert leaks("bytes/s, 32x128, data/traces, 1/2", secrets=["box"]) == []
    assert leaks("a boxer's box", secrets=["box"]) == ["box"]


def test_a_host_called_like_its_gpu_can_still_record(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "h200.cluster")
    monkeypatch.setattr("getpass.getuser", lambda: "alice")
    assert own_names() == ["alice", "h200.cluster"]
    write_manifest(tmp_path, make_manifest("fusionlib record", 0, machine=H200))
    with pytest.raises(ManifestError, match="Alice"):
        write_manifest(tmp_path, make_manifest("fusionlib record for Alice", 0, machine=H200))


def test_slugs():
    assert device_slug("NVIDIA H200 (141 GB)") == "nvidia-h200-141-gb"
    with pytest.raises(ManifestError, match="no letter"):
        device_slug("--")
    assert replace(H200, kind="cpu").slug == "cpu"


def test_this_machine_is_one_that_can_be_written(tmp_path):
    machine = this_machine()
    assert machine.kind in ("gpu", "cpu") and machine.device and machine.torch
    assert (machine.driver is None) == (machine.kind == "cpu")


def test_what_was_measured_before_is_no_local_change(monkeypatch):
    """Several commands in a row write to data/; each records the checked-out commit as unchanged."""
    monkeypatch.setattr(manifest_module, "git_commit", lambda root, apart_from=(): ",".join(apart_from))
    assert make_manifest("x", 0, machine=H200).commit == "data"
