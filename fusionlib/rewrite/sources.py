"""The hash of everything whose change can change what the pass does."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Iterable
from pathlib import Path

from fusionlib.match.opaque import registered

PACKAGE = Path(__file__).resolve().parent.parent

#: Modules and packages that the rewrite's result depends on, from spec to kernel.
DEPENDS_ON = (
    "match",
    "rewrite",
    "spec.py",
    "reference.py",
    "contract.py",
    "op.py",
    "layout.py",
    "launch.py",
    "kernel.py",
    "kernel_quant.py",
    "ptx.py",
)


def source_files(package: Path = PACKAGE) -> list[Path]:
    """The files that `source_hash` covers, sorted."""
    files: list[Path] = []
    for name in DEPENDS_ON:
        path = package / name
        files += path.rglob("*.py") if path.is_dir() else [path]
    return sorted(files)


@functools.cache
def source_hash(package: Path = PACKAGE) -> str:
    """SHA-256 over names and contents of all these files; read once, since loaded code does not change either."""
    digest = hashlib.sha256()
    for path in source_files(package):
        digest.update(f"{path.relative_to(package)}\0".encode())
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()


def readers_hash() -> str:
    """SHA-256 over the registered readers of opaque ops: their names, and their source or code."""
    digest = hashlib.sha256()
    for target, reader in sorted(registered().items(), key=lambda item: str(item[0])):
        digest.update(f"{target}\0".encode())
        try:
            digest.update(inspect.getsource(reader).encode())
        except (OSError, TypeError):  # made by exec or in a shell: its byte code is what there is
            code = getattr(reader, "__code__", None)
            digest.update(code.co_code + repr(code.co_consts).encode() if code else repr(reader).encode())
    return digest.hexdigest()


def combined(parts: Iterable[str]) -> str:
    """One short hash of several texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
