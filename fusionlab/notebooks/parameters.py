"""Parsing of `-p NAME=VALUE`: names are checked against the notebooks, values get the type of their default."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from typing import Any

from fusionlab.notebooks.catalogue import Notebook
from fusionlab.notebooks.given import given_file, names_file
from fusionlab.notebooks.parameter_limits import broken_limit
from fusionlib.commands.errors import UsageError

#: Parameters that a headless run passes to every notebook that declares them: nobody can move a control.
HEADLESS = {"interactive": "false"}
_TRUE = {"true", "yes", "on", "1"}
_FALSE = {"false", "no", "off", "0"}


def parse_assignments(assignments: Sequence[str]) -> dict[str, str]:
    """Split each `NAME=VALUE`; a name given twice is an error, because one value would be ignored."""
    parsed: dict[str, str] = {}
    for assignment in assignments:
        name, separator, value = assignment.partition("=")
        if not separator or not name.isidentifier():
            raise UsageError(f"-p {assignment}: expected NAME=VALUE, for example -p tokens=64")
        if name in parsed:
            raise UsageError(f"-p {name} is given twice ({parsed[name]!r} and {value!r}); keep one")
        parsed[name] = value
    return parsed


def parameters_of(notebook: Notebook) -> dict[str, dict[str, Any]]:
    """Return what papermill infers from the cell tagged `parameters`: name -> default, type, help."""
    import nbformat
    from papermill import translators

    cells = nbformat.read(notebook.path, as_version=4).cells
    tagged = next((cell for cell in cells if "parameters" in cell.metadata.get("tags", [])), None)
    return {found.name: found._asdict() for found in translators.PythonTranslator.inspect(tagged)} if tagged else {}


def resolve_parameters(notebooks: Sequence[Notebook], assignments: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Return the typed parameters of each notebook by its name.

    A parameter goes to every notebook that declares it. One that no notebook declares is an error: papermill itself
    would only warn and use the default. `HEADLESS` is passed unless `assignments` override it. A parameter whose name
    ends in `_file` is a file, relative to the current folder.
    """
    known = {notebook.name: parameters_of(notebook) for notebook in notebooks}
    for name in assignments:
        if not any(name in declared for declared in known.values()):
            raise UsageError(f"-p {name}: no notebook has a parameter of that name; known: {_listing(known)}")
    given = HEADLESS | dict(assignments)
    return {
        notebook: {name: convert(name, text, declared[name]) for name, text in given.items() if name in declared}
        for notebook, declared in known.items()
    }


def _listing(known: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(f"{notebook}: {', '.join(declared) or 'none'}" for notebook, declared in known.items())


def convert(name: str, text: str, declared: Mapping[str, Any]) -> Any:
    """Return `text` as the type of the declared default (int, float, bool, str, list ...).

    If the default is None or an expression, a Python literal is read as such and anything else is a string.
    """
    default = _literal(declared["default"])
    if isinstance(default, str):
        return given_file(name, _unquoted(text)) if names_file(name) else _unquoted(text)
    if isinstance(default, bool):
        return _boolean(name, text)
    value = _literal(text)
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if default is None or default is Ellipsis:
        return text if value is Ellipsis else value
    if type(value) is not type(default):
        raise UsageError(f"-p {name}={text}: expected {type(default).__name__}, like its default {json.dumps(default)}")
    if isinstance(value, (int, float)) and (limit := broken_limit(value, declared.get("help", ""))):
        raise UsageError(f"-p {name}={text}: the value must be {limit} ({declared['help']})")
    return value


def _literal(text: str) -> Any:
    """Return the Python literal in `text`, or Ellipsis if it is not one."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return Ellipsis


def _unquoted(text: str) -> str:
    quoted = len(text) >= 2 and text[0] == text[-1] and text[0] in "'\""
    return text[1:-1] if quoted else text


def _boolean(name: str, text: str) -> bool:
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    raise UsageError(f"-p {name}={text}: expected true or false")
