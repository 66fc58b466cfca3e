"""Files shared by several runs: written atomically, by one writer at a time, and checked for access in advance."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from fusionlib.commands.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows: no lock; results are still replaced atomically
    fcntl = None  # type: ignore[assignment]

_PROBE = b"\0" * 4096  # not empty, because an empty file can be created on a full disk


def require_writable(folder: Path, way_out: str) -> None:
    """Create `folder`, and write and delete a file in it; UsageError with `way_out` if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(_PROBE)
            probe.flush()
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error.strerror or error}; {way_out}") from error


def results_file(out: Path | None, name: str) -> Path | None:
    """The file that `--out` names, or `name`.json in the folder that it names, which is made; None without one."""
    if out is None:
        return None
    path = out if out.suffix == ".json" else out / f"{name}.json"
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; a name that ends in .json is that of a file")
    require_writable(path.parent, "name a file or folder that can be written with --out")
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Write a file atomically: readers see the old content or the new."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def locked(path: Path, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Hold the lock file `path` against other processes; `waiting` is called once if another one holds it.

    The system releases the lock when a process ends, however it ends. The file exists only while the lock is held.
    """
    if fcntl is None:
        yield
        return
    descriptor = _acquired(path, waiting)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while the lock is held, so that waiters create a new file
        os.close(descriptor)


def _acquired(path: Path, waiting: Callable[[], None]) -> int:
    """A descriptor of the locked file, checked to be still the one at `path`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                waiting = lambda: None  # noqa: E731
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.exists(path) and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def replace_folder(made: Path, target: Path) -> None:
    """Replace the folder `target` by `made`; the old one is deleted only once `made` is in place."""
    old = made.with_name(f"{made.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    try:
        made.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    shutil.rmtree(old, ignore_errors=True)
