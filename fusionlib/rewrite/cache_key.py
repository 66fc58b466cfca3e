"""The hash of everything that can change what the pass does."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Iterable
from pathlib import Path

from fusionlib.fusions.fusion import Fusion
from fusionlib.fusions.producer_ops import registered_producers
from fusionlib.match.opaque import registered
from fusionlib.rewrite.fingerprint import NoFingerprint, covered_by, fingerprint

log = logging.getLogger(__name__)

PACKAGE = Path(__file__).resolve().parent.parent

#: Modules and packages that the rewrite's result depends on, from spec to kernel.
DEPENDS_ON = (
    "engines",
    "kernels",
    "fusions",
    "match",
    "rewrite",
    "contract.py",
    "devices.py",
    "op.py",
    "quant_op.py",
    "reference.py",
    "schema.py",
    "spec",
)


@functools.cache
def source_files(package: Path = PACKAGE) -> tuple[Path, ...]:
    """The files that `source_hash` covers, sorted."""
    files: list[Path] = []
    for name in DEPENDS_ON:
        path = package / name
        files += path.rglob("*.py") if path.is_dir() else [path]
    return tuple(sorted(files))


@functools.cache
def source_hash(package: Path = PACKAGE) -> str:
    """SHA-256 over names and contents of all these files, read once since loaded code does not change."""
    digest = hashlib.sha256()
    for path in source_files(package):
        digest.update(f"{path.relative_to(package)}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def fusions_hash(fusions: Iterable[Fusion]) -> str | None:
    """SHA-256 over the fusions of a pass: their names, and the code of those that are not the library's own.

    None if one has no `version` and cannot be hashed faithfully; a warning says so once, and what to do.
    """
    parts = ((fusion.name, fusion, getattr(fusion, "version", None)) for fusion in fusions)
    return _parts_hash(parts, "the fusion", "give it an attribute `version`")


def readers_hash() -> str | None:
    """SHA-256 over the registered readers of ops and Triton kernels: names, and versions or all they compute with.

    None if a reader without a version cannot be hashed faithfully; a warning says so once, and what to do.
    """
    tables = {"": registered(), "producer ": registered_producers()}
    parts = (
        (f"{kind}{name} {spec.__name__ if spec else ''}", reader, version)
        for kind, table in tables.items()
        for name, (reader, version, spec) in sorted(table.items())
    )
    return _parts_hash(parts, "the reader of", "register it with version=...")


def _parts_hash(parts: Iterable[tuple[str, object, str | None]], kind: str, remedy: str) -> str | None:
    """SHA-256 over (name, object, version): the version, or all that an object without one computes with."""
    digest, covered = hashlib.sha256(), covered_by(source_files())
    for name, part, version in parts:
        try:
            what = ("version", version) if version is not None else ("code", fingerprint(part, covered))
        except NoFingerprint as problem:
            _warn_once(f"{kind} {name}", str(problem), remedy)
            return None
        for word in (name, *what):
            digest.update(f"{len(word)}:{word}".encode())
    return digest.hexdigest()


@functools.cache
def _warn_once(part: str, problem: str, remedy: str) -> None:
    log.warning(
        "fusionlib: Inductor's caches keep nothing that FusionPass had a part in, since what %s computes with cannot "
        "be hashed: %s. Way out: %s, and give another version whenever it computes something else.",
        part,
        problem,
        remedy,
    )


def combined(parts: Iterable[str]) -> str:
    """One short hash of several texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
