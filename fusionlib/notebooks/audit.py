"""What an executed notebook must not contain before anybody else reads it."""

from __future__ import annotations

import json
import platform
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import nbformat

from fusionlib.notebooks.site import DISPLAY_PRIORITY
from fusionlib.show.figure import PLOTLY_MIME, SVG_MIME

WORDS = ("caption", "alt", "summary")


def audit(path: Path, *, root: Path) -> list[str]:
    """Return what is wrong with the outputs of the executed notebook at `path`, a sentence each that names the cell.

    Looked for: a figure without its words or its text form, an output that neither the page nor a plain reader can
    show, messages on stderr, and texts that belong to this machine: its folders and its name. `root` is the checkout.
    """
    private = private_texts(root)
    problems = []
    for cell in nbformat.read(path, as_version=4).cells:
        for output in cell.get("outputs", ()):
            problems += [f"{path.stem}: cell {cell.id}: {problem}" for problem in _problems(output, private)]
    return problems


def private_texts(root: Path) -> dict[str, str]:
    """Texts that tell where a notebook ran, each with what it is. Short ones would be found in ordinary words."""
    texts = {
        str(root): "the checkout's folder",
        str(Path.home()): "the home folder",
        sys.prefix: "the environment's folder",
        tempfile.gettempdir() + "/": "the folder for temporary files",
        platform.node(): "the machine's name",
    }
    return {text: what for text, what in texts.items() if len(text) > 4}


def _problems(output: Mapping[str, Any], private: Mapping[str, str]) -> Iterator[str]:
    if output.get("output_type") == "stream" and output.get("name") == "stderr":
        yield f"it wrote to stderr: {output['text'].strip()[:200]!r}; mend the cause, or filter this one message"
    data = output.get("data")
    if data is not None:
        if not set(data) & set(DISPLAY_PRIORITY):
            yield f"nothing can show its output of {', '.join(data) or 'no type'}; give it a text/plain form"
        if PLOTLY_MIME in data:
            about = output.get("metadata", {}).get("fusionlib", {})
            missing = [word for word in WORDS if not about.get(word)]
            missing += [form for form in ("text/plain", SVG_MIME) if form not in data]
            if missing:
                yield f"a figure without {', '.join(missing)}; show it with fusionlib.show.show"
    text = json.dumps(output, ensure_ascii=False)
    for private_text, what in private.items():
        if re.search(rf"(?<!\w){re.escape(private_text)}", text):  # not within match/a.py where home is /a
            yield f"its output holds {what}, {private_text}; print names relative to the checkout"
