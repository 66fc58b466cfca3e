"""The judge of a pass's uuid, which must change with everything that can change the result, and nothing else."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace as with_changes
from typing import Any
from unittest import mock

import torch
from torch import fx

from fusionlab.exercises import elsewhere as processes
from fusionlab.exercises.worked import silu_and_mul as worked
from fusionlab.exercises.worked.ops import marked_op, other_op
from fusionlab.exercises.worked.silu_and_mul import Found, Refused
from fusionlib.match import QuantRead


def _other_read(y: fx.Node) -> Found:
    raise Refused("another way to read")


def _other_replace(graph: fx.Graph, quant: QuantRead, found: Found, op: torch._ops.OpOverload) -> None:
    """Another way to replace."""


def _other_fake(gate, up, round_activation, round_output, group_size, floor):
    """Another promise."""


def _other_call(self: Any, graph: fx.Graph) -> None:
    """Another way to go through a graph."""


def _twin(function: types.FunctionType) -> types.FunctionType:
    """The same function at another address."""
    return types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)


def here(answer: type) -> str | None:
    """What is wrong with the uuid of a pass, as far as one process shows."""
    parts = worked.read_silu_and_mul, worked.replace
    first = answer(marked_op()).uuid()
    if not isinstance(first, str | bytes):
        return f"uuid() is {first!r}: without a key the compile cache cannot be used."
    if first != answer(marked_op()).uuid():
        return "two equal passes have different uuids: every compile would be a cold one."
    if first == answer(other_op()).uuid():
        return "a pass with another op has the same uuid: the cache would hand out the old artefact."
    with _edited_op():
        if answer(marked_op()).uuid() == first:
            return (
                "an op of the same name with another fake gives the same uuid: the strides that the old one promised "
                "are built into the old artefact. op_source(op) is the source of all that an op was made of."
            )
    given = answer(marked_op(), *parts).uuid()
    for what, others in (("read", (_other_read, parts[1])), ("replace", (parts[0], _other_replace))):
        if given == answer(marked_op(), *others).uuid():
            return f"a pass with another way to {what} has the same uuid: after an edit the old artefact would be used."
    if given != answer(marked_op(), *map(_twin, parts)).uuid():
        return "the same functions at other addresses give another uuid: what is printed of them says where they lie."
    if not _follows_its_own_code(answer, first):
        return "an edit of its own __call__ leaves the uuid as it is: the old artefact would be used."
    return None


def _follows_its_own_code(answer: type, first: Any) -> bool:
    """Whether the uuid changes with the pass's own code, however it reads that code."""
    for edited in (_other_method, _other_source):
        with edited(answer):
            if answer(marked_op()).uuid() != first:
                return True
    return False


@contextmanager
def _edited_op() -> Iterator[None]:
    """The judge's op as a later process has it, in which somebody edited its fake."""
    name = str(marked_op())
    with mock.patch.dict(worked._made, {name: with_changes(worked._made[name], fake=_other_fake)}):
        yield


@contextmanager
def _other_method(answer: type) -> Iterator[None]:
    with mock.patch.object(answer, "__call__", _other_call):
        yield


@contextmanager
def _other_source(answer: type) -> Iterator[None]:
    plain, own = inspect.getsource, {answer, *filter(inspect.isfunction, vars(answer).values())}

    def getsource(thing: Any) -> str:
        return plain(thing) + "# edited" * (getattr(thing, "__func__", thing) in own)

    with mock.patch.object(inspect, "getsource", getsource):
        yield


def _in_this_process(answer: type) -> str | bytes:
    return answer(marked_op()).uuid()


def elsewhere(answer: type) -> str | None:
    """What is wrong with the uuid in processes with other salts and addresses."""
    try:
        first, second = processes.results(_in_this_process, answer)
    except processes.ElsewhereError as error:
        return f"its uuid could not be asked for in a process of its own: {error}"
    if first != second:
        return "in another process the same pass has another uuid, so nothing would ever be found in the cache."
    return None
