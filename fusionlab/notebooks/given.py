"""Files that a reader passes to a notebook: resolved in the reader's folder, identified by content, shown by name.

A notebook runs in its own folder, and others read its page. So a parameter whose name ends in `_file` is passed as an
absolute path, two runs count as the same if the content is the same, and the path is never published.
"""

from __future__ import annotations

import hashlib
import html
import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import nbformat

from fusionlib.commands.errors import UsageError

_SUFFIX = "_file"


class GivenFile(str):
    """The absolute path of a file passed by a reader."""

    @property
    def shown(self) -> str:
        """What a page shows instead of the path."""
        return os.path.basename(self)

    @cached_property
    def digest(self) -> str:
        """The SHA-256 of the content."""
        with open(self, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def names_file(parameter: str) -> bool:
    """Whether a parameter with this name is a file."""
    return parameter.endswith(_SUFFIX)


def given_file(name: str, text: str, folder: Path | None = None) -> str:
    """The file that `-p name=text` means, relative to `folder` (default: the current one); empty text means no file.

    Raises:
        UsageError: if there is no such file or it cannot be read.
    """
    if not text:
        return text
    path = GivenFile(os.path.abspath(Path(folder or Path.cwd(), Path(text).expanduser())))
    try:
        with open(path, "rb"):
            return path
    except (OSError, ValueError) as error:  # a null byte in the name
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"-p {name}={text}: {path} cannot be read: {reason}; give an existing file") from error


def identified(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`parameters` with each file's content hash instead of its path; equal if a notebook would do the same."""
    return {
        name: {"name": value.shown, "sha256": value.digest} if isinstance(value, GivenFile) else value
        for name, value in parameters.items()
    }


def shown(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`parameters` as a page shows them, files by name."""
    return {name: value.shown if isinstance(value, GivenFile) else value for name, value in parameters.items()}


def conceal_paths(node: nbformat.NotebookNode, parameters: Mapping[str, Any]) -> None:
    """Replace the paths of given files by their names everywhere in an executed notebook."""
    from papermill.translators import PythonTranslator

    spellings: dict[str, str] = {}
    for value in parameters.values():
        if isinstance(value, GivenFile):
            for spell in (str, lambda path: PythonTranslator.translate(path)[1:-1], lambda path: repr(path)[1:-1]):
                spellings[spell(str(value))] = spell(value.shown)
    for path, name in list(spellings.items()):
        for encode in (html.escape, lambda text: json.dumps(text)[1:-1]):
            spellings.setdefault(encode(path), encode(name))
    _replace(node, sorted(spellings.items(), key=lambda pair: -len(pair[0])))


def _replace(node: Any, pairs: list[tuple[str, str]]) -> Any:
    """`node` with the replacements made in every string, containers in place."""
    if isinstance(node, str):
        for old, new in pairs:
            node = node.replace(old, new)
    elif isinstance(node, dict):
        for key in node:
            node[key] = _replace(node[key], pairs)
    elif isinstance(node, list):
        node[:] = [_replace(part, pairs) for part in node]
    return node
