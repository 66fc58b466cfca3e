"""Which exercises have been tried and solved: one small JSON file of this user on this machine, and nowhere else."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SOLVED, TRIED, NEW = "solved", "attempted", "not attempted"


def state_file() -> Path:
    """Path of the state: `fusionlib/exercises.json` in the XDG state folder, by default ~/.local/state."""
    folder = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(folder, "fusionlib", "exercises.json")


def read() -> dict[str, dict[str, Any]]:
    """The recorded state by exercise name; empty if there is no file yet, or it cannot be read."""
    try:
        found = json.loads(state_file().read_text(encoding="utf-8"))["exercises"]
        return {name: entry for name, entry in found.items() if entry["state"] in (SOLVED, TRIED)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def state(name: str) -> str:
    """`SOLVED`, `TRIED` or `NEW`."""
    return read().get(name, {}).get("state", NEW)


def record(name: str, solved: bool) -> str | None:
    """Record one attempt at an exercise; once solved, it stays solved. Returns None, or why it could not be recorded.

    The file is replaced atomically. An unreadable one is kept beside it, and a new one started.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    try:
        _keep_damaged()
        entries = read()
        entry = entries.setdefault(name, {"state": TRIED, "attempts": 0, "first": now})
        entry["attempts"] = entry.get("attempts", 0) + 1
        if solved and entry["state"] != SOLVED:
            entry |= {"state": SOLVED, "solved": now}
        state_file().parent.mkdir(parents=True, exist_ok=True)
        replace_file(state_file(), json.dumps({"version": 1, "exercises": entries}, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        return f"your progress could not be noted in {state_file()}: {error.strerror or error}"
    return None


def forget() -> bool:
    """Remove the state; returns whether there was one."""
    path = state_file()
    existed = path.exists()
    path.unlink(missing_ok=True)
    return existed


def _keep_damaged() -> None:
    path = state_file()
    if not path.exists():
        return
    try:
        whole = isinstance(json.loads(path.read_text(encoding="utf-8"))["exercises"], dict)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        os.replace(path, path.with_suffix(".damaged"))


def replace_file(path: Path, text: str) -> None:
    """Write `path` whole or not at all. Raises OSError."""
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(partial, 0o644)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
