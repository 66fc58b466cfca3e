"""Running a reader's function in fresh processes, each with a different `hash` salt and different addresses.

Functions and classes written in a notebook cannot be imported elsewhere, so they are sent by value: their code, what
they refer to, and their source lines, so that `inspect.getsource` works in the other process too. This file is also the
program that the other process runs.
"""

from __future__ import annotations

import builtins
import contextlib
import importlib
import io
import linecache
import marshal
import os
import pickle
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

_ITSELF = frozenset({"__dict__", "__weakref__", "__doc__", "__module__", "__qualname__"})  # of a class


class ElsewhereError(RuntimeError):
    """The answer could not be sent to another process, or failed there; the message says why."""


def results(call: Callable, *args: Any, seeds: Sequence[int] = (1, 2), seconds: float = 180.0) -> list[Any]:
    """The results of `call(*args)` in parallel fresh processes, one for each PYTHONHASHSEED in `seeds`.

    The result must be picklable. Raises ElsewhereError, including when a process takes longer than `seconds`.
    """
    try:
        payload = _pack((call, args))
    except Exception as error:
        raise ElsewhereError(
            f"it cannot be tried in another process ({error}); let it refer to functions, modules and plain values"
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        started = []
        try:
            for seed in seeds:
                started.append(_start(payload, Path(folder, str(seed)), seed))
            deadline = time.monotonic() + seconds
            return [_finish(process, place, deadline) for process, place in started]
        finally:
            for process, _ in started:
                process.kill()
                process.wait()


def _start(payload: bytes, place: Path, seed: int) -> tuple[subprocess.Popen, Path]:
    place.mkdir()
    (place / "call").write_bytes(payload)
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    environment = os.environ | {"PYTHONHASHSEED": str(seed), "PYTHONPATH": path}
    command = [sys.executable, "-m", "fusionlab.exercises.elsewhere", str(place)]
    with open(place / "said", "wb") as said:  # a file rather than a pipe, which could fill up or be held open
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=subprocess.STDOUT
        )
    return process, place


def _finish(process: subprocess.Popen, place: Path, deadline: float) -> Any:
    try:
        process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise ElsewhereError("in a process of its own it does not end") from None
    if not (place / "result").exists():
        lines = (place / "said").read_text(errors="replace").strip().splitlines()
        raise ElsewhereError(lines[-1] if lines else f"its process ended with {process.returncode}")
    return pickle.loads((place / "result").read_bytes())


def _pack(what: Any) -> bytes:
    buffer = io.BytesIO()
    carrier = _Carrier(buffer)
    carrier.dump(what)
    lines = {name: linecache.getlines(name) for name in carrier.files if not os.path.exists(name)}
    return pickle.dumps((lines, buffer.getvalue()))


class _Carrier(pickle.Pickler):
    """A pickler that includes what the other process cannot import."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.files: set[str] = set()

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, types.ModuleType):
            return importlib.import_module, (thing.__name__,)
        if isinstance(thing, types.CodeType):
            self.files.add(thing.co_filename)
            return marshal.loads, (marshal.dumps(thing),)
        if isinstance(thing, types.CellType):
            return _make_cell, (), _content(thing), None, None, _fill_cell
        if isinstance(thing, types.FunctionType) and not _is_importable(thing):
            about = (thing.__code__, thing.__name__, thing.__closure__)
            return _make_function, about, _state_of_function(thing), None, None, _fill_function
        if isinstance(thing, type) and not _is_importable(thing):
            return (
                _make_class,
                (type(thing), thing.__name__, thing.__bases__),
                _state_of_class(thing),
                None,
                None,
                _fill,
            )
        return NotImplemented


def _is_importable(thing: Any) -> bool:
    """Whether another process finds this same object by its module and name."""
    if thing.__module__ in (None, "__main__"):
        return False
    found = sys.modules.get(thing.__module__)
    for name in thing.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is thing


def _content(cell: types.CellType) -> tuple:
    try:
        return (cell.cell_contents,)
    except ValueError:  # empty
        return ()


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, types.CodeType):
            yield from _names(inner)


def _state_of_function(function: types.FunctionType) -> dict[str, Any]:
    known = function.__globals__
    return {
        "globals": {name: known[name] for name in _names(function.__code__) if name in known},
        "__defaults__": function.__defaults__,
        "__kwdefaults__": function.__kwdefaults__,
        "__qualname__": function.__qualname__,
        "__doc__": function.__doc__,
        "__dict__": function.__dict__,
    }


def _state_of_class(cls: type) -> dict[str, Any]:
    own = {name: value for name, value in vars(cls).items() if name not in _ITSELF}
    slots = (types.MemberDescriptorType, types.GetSetDescriptorType)
    kept = {name: _unbound(value) for name, value in own.items() if not isinstance(value, slots)}
    return kept | {"__doc__": cls.__doc__, "__qualname__": cls.__qualname__}


def _unbound(value: Any) -> Any:
    """A descriptor in a form that can be pickled."""
    for kind in (staticmethod, classmethod):
        if isinstance(value, kind):
            return _Descriptor(kind, (value.__func__,))
    if isinstance(value, property):
        return _Descriptor(property, (value.fget, value.fset, value.fdel))
    return value


class _Descriptor:
    def __init__(self, kind: type, parts: tuple) -> None:
        self.kind, self.parts = kind, parts

    def __reduce__(self) -> tuple:
        return self.kind, self.parts


# In the other process.


def _make_function(code: types.CodeType, name: str, closure: tuple | None) -> types.FunctionType:
    return types.FunctionType(code, {"__builtins__": builtins, "__name__": "__main__"}, name, None, closure)


def _fill_function(function: types.FunctionType, state: dict[str, Any]) -> None:
    function.__globals__.update(state.pop("globals"))
    function.__dict__.update(state.pop("__dict__"))
    for name, value in state.items():
        setattr(function, name, value)


def _make_cell() -> types.CellType:
    return types.CellType()


def _make_class(kind: type, name: str, bases: tuple) -> type:
    return types.new_class(name, bases, {"metaclass": kind}, lambda scope: scope.update(__module__="__main__"))


def _fill(cls: type, state: dict[str, Any]) -> None:
    for name, value in state.items():
        with contextlib.suppress(AttributeError):  # read-only attributes set by the metaclass
            setattr(cls, name, value)


def _fill_cell(cell: types.CellType, content: tuple) -> None:
    if content:
        cell.cell_contents = content[0]


def main(place: Path) -> None:
    """Run the call stored in the folder `place`, and write its result there."""
    lines, packed = pickle.loads((place / "call").read_bytes())
    linecache.cache.update({name: (sum(map(len, text)), None, text, name) for name, text in lines.items()})
    call, args = pickle.loads(packed)
    partial = place / "partial"
    partial.write_bytes(pickle.dumps(call(*args)))
    partial.rename(place / "result")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
