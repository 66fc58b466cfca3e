"""A spec as an op's scalars: the schema's declaration, a call's arguments, and the spec read back from them.

All three follow from the fields of the frozen dataclass, in their order. A set of words becomes one text, in the order
of its `Literal`, so that equal specs make equal calls.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Literal, TypeVar, get_args, get_origin

import torch

Spec = TypeVar("Spec")

_NAMES = {int: "int", float: "float", bool: "bool", str: "str", torch.dtype: "ScalarType"}

#: For each declared spec, its fields, and for a set of words all words in order. A plain dict, which the compiler can
#: look into when a model calls an op with a spec.
_FIELDS: dict[type, tuple[tuple[str, tuple[str, ...] | None], ...]] = {}


def declared(*specs: type) -> str:
    """The scalars of specs as an op's schema declares them: "int group_size, ScalarType dtype, float? floor".

    Raises TypeError if a field has a type that no schema can carry.
    """
    parts = []
    for spec in specs:
        hints = typing.get_type_hints(spec)
        own = [(field.name, hints[field.name]) for field in fields(spec)]
        parts += [f"{_type_name(name, hint)} {name}" for name, hint in own]
        _FIELDS[spec] = tuple((name, _words(hint)) for name, hint in own)
    return ", ".join(parts)


def _type_name(field: str, hint: Any) -> str:
    inner = [each for each in get_args(hint) if each is not type(None)]
    if get_origin(hint) in (typing.Union, types.UnionType) and len(inner) == 1 and _words(inner[0]) is None:
        return f"{_type_name(field, inner[0])}?"
    if _are_words(hint) or _words(hint) is not None:
        return "str"
    if not isinstance(hint, type) or hint not in _NAMES:
        listed = ", ".join(kind.__name__ for kind in _NAMES)
        raise TypeError(
            f"field {field!r} is {hint!r}, which no schema can carry; use {listed}, one of them or None, a Literal of "
            "words, or a frozenset of one"
        )
    return _NAMES[hint]


def _are_words(hint: Any) -> bool:
    words = get_args(hint) if get_origin(hint) is Literal else ()
    return bool(words) and all(isinstance(word, str) and word and "," not in word for word in words)


def _words(hint: Any) -> tuple[str, ...] | None:
    """All words of a set of words, in order; None for any other type."""
    return get_args(get_args(hint)[0]) if get_origin(hint) is frozenset and _are_words(get_args(hint)[0]) else None


def scalars(*specs: Any) -> tuple[Any, ...]:
    """The scalars that a call carries for specs of declared types, in the order of `declared`."""
    values = []
    for spec in specs:
        for name, words in _FIELDS[type(spec)]:
            value = getattr(spec, name)
            values.append(value if words is None else ",".join([word for word in words if word in value]))
    return tuple(values)


def from_scalars(spec: type[Spec], values: Sequence[Any]) -> Spec:
    """The spec of a declared type that a call's scalars stand for."""
    pairs = zip(_FIELDS[spec], values, strict=True)
    return spec(*(value if words is None else frozenset(filter(None, value.split(","))) for (_, words), value in pairs))


def split(specs: Sequence[type], values: Sequence[Any]) -> tuple[Any, ...]:
    """The specs that the scalars of one call stand for, in order."""
    read: list[Any] = []
    begin = 0
    for spec in specs:
        end = begin + len(_FIELDS[spec])
        read.append(from_scalars(spec, values[begin:end]))
        begin = end
    return tuple(read)
