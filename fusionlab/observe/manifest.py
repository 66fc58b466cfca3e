"""Manifests: what every measured file says about itself, so that a number can be judged, repeated and trusted.

There is one manifest per folder (traces), or one inside the file itself (a benchmark). It names the hardware, the
software, the command and the commit, and the files by checksum; it contains no host name, user name or machine path.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fusionlab.checkout import git_commit
from fusionlab.observe.hardware import cpu_name, driver_version
from fusionlab.observe.privacy import command_text, leaks
from fusionlib.commands.diagnosis import installed_version

MANIFEST_NAME = "MANIFEST.json"
SCHEMA = 1

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z")
_FILE_NAME = re.compile(r"[A-Za-z0-9][\w.\-]*")
_KINDS = ("gpu", "cpu")

Label = str | int | bool


class ManifestError(ValueError):
    """An invalid manifest, or files that do not match it: the message names which, and how to fix it."""


@dataclass(frozen=True)
class Machine:
    """The measuring machine: the device's name, `gpu` or `cpu`, and the versions that decide a number.

    Args:
        device: the product's name, for example `NVIDIA H200`.
        kind: `gpu` or `cpu`.
        driver: of the GPU; None on a CPU.
        torch, triton: versions; triton is None if it is not installed.
        runtime: the CUDA or ROCm version that torch was built for; None for a CPU build.
    """

    device: str
    kind: str
    driver: str | None
    torch: str
    triton: str | None
    runtime: str | None = None

    @property
    def slug(self) -> str:
        """The device as a folder or file name: `nvidia-h200`; every CPU is `cpu`."""
        return device_slug(self.device) if self.kind == "gpu" else "cpu"


@dataclass(frozen=True)
class File:
    """One file beside the manifest: its name, checksum, size and labels (word -> text, number or flag)."""

    name: str
    sha256: str
    bytes: int
    labels: dict[str, Label]


@dataclass(frozen=True)
class Manifest:
    """Where numbers come from.

    Args:
        machine: what measured.
        date: UTC, as 2026-04-27T10:00:00Z.
        commit: of this repository, marked where files differed from it; None outside a checkout.
        command: what was run, without machine paths.
        seed: of every random input.
        files: what was written, each with its checksum; empty if the manifest is inside the only file.
        libraries: versions of other packages that were measured.
    """

    machine: Machine
    date: str
    commit: str | None
    command: str
    seed: int
    files: tuple[File, ...] = ()
    libraries: dict[str, str] | None = None

    def as_json(self) -> dict[str, Any]:
        """A plain object, the inverse of `from_json`."""
        return {"schema": SCHEMA, **asdict(self), "files": [asdict(file) for file in self.files]}

    @property
    def provenance(self) -> str:
        """Card, versions, date, commit and command in one line."""
        machine = self.machine
        libraries = "".join(f", {name} {version}" for name, version in (self.libraries or {}).items())
        return (
            f"{machine.device}, driver {machine.driver}, torch {machine.torch}, triton {machine.triton}{libraries}; "
            f"{self.date}, commit {self.commit}: {self.command}"
        )


def device_slug(name: str) -> str:
    """A product's name in lower case, everything but letters and digits replaced by single hyphens."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    if not slug:
        raise ManifestError(f"device name {name!r} holds no letter or digit; name the device")
    return slug


def this_machine() -> Machine:
    """The first GPU, or the CPU if there is none, with the versions in use."""
    import torch

    triton = installed_version("triton")
    if not torch.cuda.is_available():
        return Machine(cpu_name(), "cpu", None, torch.__version__, triton)
    runtime = torch.version.hip or torch.version.cuda
    return Machine(torch.cuda.get_device_name(0), "gpu", driver_version(), torch.__version__, triton, runtime)


def make_manifest(
    command: Sequence[str] | str,
    seed: int,
    *,
    machine: Machine | None = None,
    files: Iterable[File] = (),
    libraries: Mapping[str, str] | None = None,
) -> Manifest:
    """The manifest for what `command` measures here and now; `command` is argv-like or text."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    root = Path(__file__).resolve().parents[2]
    return Manifest(
        machine=machine or this_machine(),
        date=now,
        commit=git_commit(root, apart_from=["data"]),  # an earlier measurement's output is not a change
        command=command if isinstance(command, str) else command_text(command),
        seed=seed,
        files=tuple(files),
        libraries=dict(libraries) if libraries else None,
    )


def file_entry(path: str | Path, **labels: Label) -> File:
    """The entry of a file on disk."""
    data = Path(path).read_bytes()
    return File(Path(path).name, hashlib.sha256(data).hexdigest(), len(data), dict(labels))


def write_manifest(folder: str | Path, manifest: Manifest) -> Path:
    """Write `folder`/MANIFEST.json atomically; returns its path.

    Raises:
        ManifestError: if a string in it names this host, a user or a path, or a field has the wrong format.
    """
    target = Path(folder) / MANIFEST_NAME
    write_json(target, checked(manifest.as_json(), str(target)))
    return target


def write_json(target: Path, value: Any) -> None:
    """Write JSON atomically: readers see the old file or the new one."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n"
    temporary = target.with_name(f".{target.name}.partial")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ManifestError(
            f"{target}: cannot be written: {error.strerror}; check the folder and its rights"
        ) from error


def read_manifest(folder: str | Path) -> Manifest:
    """Read and check `folder`/MANIFEST.json, or the manifest file itself.

    Raises:
        ManifestError: if it is missing, malformed, incomplete, or names a host, a user or a path.
    """
    path = Path(folder) / MANIFEST_NAME if Path(folder).is_dir() else Path(folder)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: cannot be read as JSON ({error}); record again") from error
    return from_json(value, str(path))


def from_json(value: Any, source: str) -> Manifest:
    """The manifest from a plain object; `source` names it in errors."""
    value = checked(value, source)
    machine = Machine(**value["machine"])
    files = tuple(File(**file) for file in value["files"])
    rest = {key: value[key] for key in ("date", "commit", "command", "seed", "libraries")}
    return Manifest(machine=machine, files=files, **rest)


def checked(value: Any, source: str) -> dict[str, Any]:
    """`value` if it has a manifest's format and nothing private, else ManifestError."""

    def must(holds: bool, what: str) -> None:
        if not holds:
            raise ManifestError(f"{source}: {what}")

    names = {"schema", *(field.name for field in fields(Manifest))}
    must(isinstance(value, dict) and set(value) == names, f"must be an object of exactly {', '.join(sorted(names))}")
    must(value["schema"] == SCHEMA, f"schema={value['schema']!r} is unknown; this version reads {SCHEMA}")
    machine, parts = value["machine"], {field.name for field in fields(Machine)}
    must(isinstance(machine, dict) and set(machine) == parts, f"machine must be exactly {', '.join(sorted(parts))}")
    must(machine["kind"] in _KINDS, f"machine.kind={machine['kind']!r} must be one of {', '.join(_KINDS)}")
    for field in ("device", "torch"):
        must(_text(machine[field]), f"machine.{field}={machine[field]!r} must be text and not empty")
    for field in ("driver", "triton", "runtime"):
        must(
            machine[field] is None or _text(machine[field]), f"machine.{field}={machine[field]!r} must be text or null"
        )
    if machine["kind"] == "gpu":
        must(machine["driver"] is not None, "machine.driver is null; a GPU's numbers depend on its driver")
        must(machine["triton"] is not None, "machine.triton is null; a GPU's numbers depend on it")
    must(
        _text(value["date"]) and bool(_DATE.fullmatch(value["date"])),
        f"date={value['date']!r} must be UTC, as 2026-04-27T10:00:00Z",
    )
    must(value["commit"] is None or _text(value["commit"]), f"commit={value['commit']!r} must be text or null")
    must(_text(value["command"]), f"command={value['command']!r} must be text and not empty")
    must(type(value["seed"]) is int, f"seed={value['seed']!r} must be an integer")
    libraries = value["libraries"]
    must(
        libraries is None or (isinstance(libraries, dict) and all(_text(version) for version in libraries.values())),
        f"libraries={libraries!r} must be null or name -> version",
    )
    must(isinstance(value["files"], list), "files must be a list")
    for file in value["files"]:
        must(_is_file(file), f"files holds {str(file)!r:.120}; each takes name, sha256, bytes and labels")
    listed = [file["name"] for file in value["files"]]
    must(len(set(listed)) == len(listed), "files names a file twice")
    found = leaks(json.dumps(value, ensure_ascii=False))
    must(not found, f"holds {', '.join(map(repr, found))}: a path, an address, or a host's or user's name")
    return value


def verify(folder: str | Path, manifest: Manifest | None = None) -> Manifest:
    """Check that `folder` holds exactly the files of its manifest, byte for byte; returns the manifest.

    Raises:
        ManifestError: for a file that is missing, changed or not listed.
    """
    folder = Path(folder)
    manifest = manifest or read_manifest(folder)
    listed = {file.name: file for file in manifest.files}
    present = {path.name for path in folder.iterdir() if path.is_file()} - {MANIFEST_NAME}
    for name in sorted(listed.keys() - present):
        raise ManifestError(f"{folder / name}: named in {MANIFEST_NAME} and missing; record again or restore the file")
    for name in sorted(present - listed.keys()):
        raise ManifestError(f"{folder / name}: not in {MANIFEST_NAME}; delete it, or record again")
    for name, file in sorted(listed.items()):
        now = file_entry(folder / name)
        if (now.bytes, now.sha256) != (file.bytes, file.sha256):
            raise ManifestError(
                f"{folder / name}: {now.bytes} bytes with SHA-256 {now.sha256[:12]}…, where {MANIFEST_NAME} has "
                f"{file.bytes} and {file.sha256[:12]}…; restore the file or record again"
            )
    return manifest


def _text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _is_file(value: Any) -> bool:
    if not isinstance(value, dict) or set(value) != {field.name for field in fields(File)}:
        return False
    labels = value["labels"]
    return (
        _text(value["name"])
        and bool(_FILE_NAME.fullmatch(value["name"]))
        and isinstance(value["sha256"], str)
        and bool(_SHA256.fullmatch(value["sha256"]))
        and type(value["bytes"]) is int
        and value["bytes"] >= 0
        and isinstance(labels, dict)
        and all(isinstance(label, Label) for label in labels.values())
    )
