"""The notebooks of the repository: where they are, what they are called, what they are about."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fusionlib
from fusionlib.notebooks.errors import UsageError


@dataclass(frozen=True)
class Notebook:
    """One notebook file with what its first markdown cells say about it."""

    path: Path
    title: str
    summary: str

    @property
    def name(self) -> str:
        """The file's name without its suffix; what the command line takes."""
        return self.path.stem


def repository_root(start: Path | None = None) -> Path:
    """Return the checkout to work in: the one around `start` (the working directory), else this package's own."""
    start = (start or Path.cwd()).resolve()
    package_parent = Path(fusionlib.__file__).resolve().parent.parent
    for folder in (start, *start.parents, package_parent):
        if _is_checkout(folder):
            return folder
    raise UsageError(
        f"no checkout of fusionlib found at or above {start}, and this installation is not an editable one; "
        "the notebooks are not part of the wheel: clone the repository and run the command inside it"
    )


def _is_checkout(folder: Path) -> bool:
    project = folder / "pyproject.toml"
    if not project.is_file() or not (folder / "notebooks").is_dir():
        return False
    try:
        return tomllib.loads(project.read_text(encoding="utf-8")).get("project", {}).get("name") == "fusionlib"
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        return False


def find_notebooks(root: Path) -> list[Notebook]:
    """Return the notebooks in `root`/notebooks, in the order of their file names."""
    return [describe(path) for path in sorted((root / "notebooks").glob("*.ipynb"))]


def select_notebooks(notebooks: Sequence[Notebook], names: Sequence[str]) -> list[Notebook]:
    """Return the notebooks called `names` (with or without folder and suffix), all of them when no name is given."""
    if not notebooks:
        raise UsageError("the folder notebooks/ holds no .ipynb file, so there is nothing to run")
    by_name = {notebook.name: notebook for notebook in notebooks}
    wanted = [Path(name).name.removesuffix(".ipynb") for name in names]
    unknown = [name for name in wanted if name not in by_name]
    if unknown:
        raise UsageError(f"no notebook called {', '.join(unknown)}; known: {', '.join(by_name)}")
    return [notebook for notebook in notebooks if not wanted or notebook.name in wanted]


def describe(path: Path) -> Notebook:
    """Read title and summary: the first heading of level one, and the first paragraph after it."""
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not a notebook ({error}); restore it or move it out of notebooks/") from error
    text = "\n\n".join("".join(cell["source"]) for cell in cells if cell.get("cell_type") == "markdown")
    heading = re.search(r"^# +(.+?) *#* *$", text, flags=re.MULTILINE)
    if heading is None:
        return Notebook(path, title=path.stem, summary="")
    return Notebook(path, title=plain(heading[1]), summary=_first_paragraph(text[heading.end() :]))


def _first_paragraph(text: str) -> str:
    for block in re.split(r"\n\s*\n", text):
        block = block.strip()
        if block and not block.startswith(("#", "<", "|", "```", "---")):
            return plain(block)
    return ""


def plain(markdown: str) -> str:
    """Return one paragraph of markdown as text: links by their words, no tags, emphasis or code marks."""
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", markdown)
    text = re.sub(r"</?[a-zA-Z][^<>]*>|\*\*|`", "", text)
    text = re.sub(r"(?<!\w)[*_](?=\S)(.+?)(?<=\S)[*_](?!\w)", r"\1", text)
    return " ".join(text.split())
