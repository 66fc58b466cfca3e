"""The notebooks of the repository: their paths, names, titles and summaries."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionlib.commands.errors import UsageError
from fusionlib.commands.parser import did_you_mean


@dataclass(frozen=True)
class Notebook:
    """One notebook file with its title and summary from the first markdown cells."""

    path: Path
    title: str
    summary: str
    language: str = "python"

    @property
    def name(self) -> str:
        """The file name without suffix, as used on the command line."""
        return self.path.stem

    @property
    def number(self) -> int | None:
        """The number that the file name begins with; None if there is none."""
        digits = re.match(r"\d+", self.name)
        return int(digits[0]) if digits else None


def find_notebooks(root: Path) -> list[Notebook]:
    """Return the notebooks in `root`/notebooks, in the order of their file names."""
    return [describe(path) for path in sorted((root / "notebooks").glob("*.ipynb"))]


def select_notebooks(notebooks: Sequence[Notebook], names: Sequence[str]) -> list[Notebook]:
    """Return the notebooks called `names`, or all if no name is given.

    A name may include folder and suffix, or be the number that the file name begins with: `5` or `05` means
    `05_the_kernel`.
    """
    if not notebooks:
        raise UsageError("the folder notebooks/ holds no .ipynb file, so there is nothing to run")
    wanted = {_named(name, notebooks).path for name in names}
    chosen = [notebook for notebook in notebooks if not wanted or notebook.path in wanted]
    for notebook in chosen:
        if notebook.language != "python":
            raise UsageError(
                f"{notebook.name} is written in {notebook.language}; only Python notebooks can be run here"
            )
    return chosen


def _named(name: str, notebooks: Sequence[Notebook]) -> Notebook:
    """The one notebook that `name` means."""
    stem = Path(name).name.removesuffix(".ipynb")
    found = [notebook for notebook in notebooks if notebook.name == stem]
    if not found and stem.isdecimal():
        found = [notebook for notebook in notebooks if notebook.number == int(stem)]
    if len(found) == 1:
        return found[0]
    known = [notebook.name for notebook in notebooks]
    if found:
        raise UsageError(f"several notebooks have the number {stem}: {', '.join(notebook.name for notebook in found)}")
    raise UsageError(f"no notebook called {stem}{did_you_mean(stem, known)}; known: {', '.join(known)}")


def describe(path: Path) -> Notebook:
    """Read title and summary: the first heading of level one, and the first paragraph after it."""
    try:
        node = json.loads(path.read_text(encoding="utf-8"))
        cells = [cell for cell in node["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
        language = _language(node["metadata"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is not a notebook ({error}); restore it or move it out of notebooks/") from error
    heading = re.search(r"^# +(.+?) *#* *$", text, flags=re.MULTILINE)
    if heading is None:
        return Notebook(path, title=path.stem, summary="", language=language)
    return Notebook(path, plain(heading[1]), _first_paragraph(text[heading.end() :]), language)


def _language(metadata: Mapping[str, Any]) -> str:
    """The language declared in a notebook's metadata; Python if there is none."""
    said = metadata.get("language_info", {}).get("name") or metadata.get("kernelspec", {}).get("language") or "python"
    return said.lower()


def _first_paragraph(text: str) -> str:
    for block in re.split(r"\n\s*\n", text):
        block = block.strip()
        if block and not block.startswith(("#", "<", "|", "```", "---")):
            return plain(block)
    return ""


def plain(markdown: str) -> str:
    """Return one paragraph of markdown as plain text: link texts, no tags, emphasis or code marks."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    text = re.sub(r"</?[a-zA-Z][^<>]*>|\*\*|`", "", text)
    text = re.sub(r"(?<!\w)[*_](?=\S)(.+?)(?<=\S)[*_](?!\w)", r"\1", text)
    return " ".join(text.split())
