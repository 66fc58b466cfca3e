"""`fusionlib notebooks list | run | site | lab | picture`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionlab.files import locked, require_writable
from fusionlab.notebooks.failures import SiteError, missing_extra
from fusionlib.commands.errors import UsageError

LAB = "lab"  # the readers' copies, in the checkout but not under version control
DEFAULT_TIMEOUT = 600.0  # seconds per notebook; the slowest should take one minute on two cores


def register(subparsers: Any) -> None:
    """Add the `notebooks` command to the parser."""
    parser = subparsers.add_parser("notebooks", help="list, execute, publish and open the notebooks")
    actions = parser.add_subparsers(title="actions", metavar="ACTION")

    listing = actions.add_parser("list", help="show the notebooks with their parameters")
    listing.set_defaults(run=_guarded(_list))

    run = actions.add_parser("run", help="execute notebooks, then render the site")
    run.add_argument(
        "names", nargs="*", metavar="NAME", help="notebooks to run, by name or number; all when none is named"
    )
    run.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE",
        help="set a parameter in every chosen notebook that declares it; may be repeated",
    )  # fmt: skip
    _add_output(run)
    run.add_argument(
        "--timeout", type=_seconds, default=DEFAULT_TIMEOUT, metavar="SECONDS",
        help=f"limit for one notebook (default: {DEFAULT_TIMEOUT:.0f})",
    )  # fmt: skip
    run.add_argument("--force", action="store_true", help="run also what did not change since its last run")
    run.set_defaults(run=_guarded(_run))

    site = actions.add_parser("site", help="render notebooks that already ran")
    _add_output(site)
    site.set_defaults(run=_guarded(_site))

    lab = actions.add_parser("lab", help="open working copies of the notebooks in JupyterLab")
    lab.add_argument("name", nargs="?", metavar="NAME", help="the notebook to open, by name or number; else the first")
    lab.add_argument(
        "--folder", type=Path, metavar="DIR", help=f"where the copies lie (default: {LAB}/ of the checkout)"
    )
    lab.add_argument("--no-open", action="store_true", help="make or refresh the copies only")
    lab.set_defaults(run=_guarded(_lab))

    picture = actions.add_parser("picture", help="save a figure of the site as PNG, for light and for dark pages")
    picture.add_argument("name", metavar="NAME", help="the notebook, by name or number")
    picture.add_argument("cell", metavar="CELL", help="the id of the cell whose first figure is taken")
    picture.add_argument("out", type=Path, metavar="OUT", help="writes OUT-light.png and OUT-dark.png")
    picture.set_defaults(run=_guarded(_picture))


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--output", type=Path, metavar="DIR",
        help="where results go, and the site in DIR/site (default: build/notebooks and build/site)",
    )  # fmt: skip


@dataclass(frozen=True)
class Places:
    """Where a command reads and writes: the results of runs, and the site made from them."""

    results: Path
    site: Path

    @classmethod
    def of(cls, output: Path | None, root: Path) -> Places:
        """The places in the checkout `root`, or both in `output`: a site shows the results next to it."""
        if output is None:
            return cls(root / "build" / "notebooks", root / "build" / "site")
        return cls(output, output / "site")

    def require_writable(self) -> None:
        """Check before any work that everything can be written; UsageError if not."""
        for folder in (self.results, self.site.parent):
            require_writable(folder, "name a folder that can be written with --output DIR")


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def _guarded(function):
    """Turn the ImportError of a missing extra into a sentence that says what to install."""

    def run(args: argparse.Namespace) -> int:
        try:
            return function(args)
        except ModuleNotFoundError as error:
            raise missing_extra(error) from error

    return run


def _list(args: argparse.Namespace) -> int:
    from fusionlab.checkout import repository_root
    from fusionlab.notebooks.catalogue import find_notebooks
    from fusionlab.notebooks.parameters import parameters_of

    for notebook in find_notebooks(repository_root()):
        print(f"{notebook.name}: {notebook.title}")
        for parameter in parameters_of(notebook).values():
            print(f"    -p {parameter['name']}={parameter['default']}  {parameter['help']}".rstrip())
    return 0


def _run(args: argparse.Namespace) -> int:
    from fusionlab.checkout import repository_root
    from fusionlab.notebooks import runner
    from fusionlab.notebooks.audit import audit
    from fusionlab.notebooks.catalogue import find_notebooks, select_notebooks
    from fusionlab.notebooks.parameters import parse_assignments, resolve_parameters

    root = repository_root()
    notebooks = select_notebooks(find_notebooks(root), args.names)
    parameters = resolve_parameters(notebooks, parse_assignments(args.parameter))
    places = Places.of(args.output, root)
    places.require_writable()
    try:
        results = runner.run(
            notebooks,
            root=root,
            output=places.results,
            parameters=parameters,
            timeout=args.timeout,
            force=args.force,
            progress=sys.stderr.isatty(),
        )
    except OSError as error:  # the error of a full disk names no file
        raise OSError(error.errno, error.strerror, error.filename or str(places.results)) from error
    problems = _publish(root, places)
    problems += [problem for result in results if not result.failure for problem in audit(result.output, root=root)]
    return _report_problems(problems) or int(any(result.failure for result in results))


def _site(args: argparse.Namespace) -> int:
    from fusionlab.checkout import repository_root

    root = repository_root()
    return _report_problems(_publish(root, Places.of(args.output, root)))


def _lab(args: argparse.Namespace) -> int:
    from fusionlab.checkout import repository_root
    from fusionlab.notebooks.catalogue import find_notebooks, select_notebooks
    from fusionlab.notebooks.lab import open_lab, refresh_copies

    root = repository_root()
    notebooks = find_notebooks(root)
    first = select_notebooks(notebooks, [args.name] if args.name else [])[0]
    folder = (args.folder or root / LAB).resolve()
    if folder == root / "notebooks":
        raise UsageError(f"--folder {args.folder} holds the notebooks themselves; copies of them need another")
    require_writable(folder, "name a folder that can be written with --folder DIR")
    for line in refresh_copies([notebook.path for notebook in notebooks], folder):
        print(line, flush=True)
    return 0 if args.no_open else open_lab(folder, first.name)


def _picture(args: argparse.Namespace) -> int:
    from fusionlab.checkout import repository_root
    from fusionlab.notebooks.catalogue import find_notebooks, select_notebooks
    from fusionlab.notebooks.png import take_pictures

    root = repository_root()
    (notebook,) = select_notebooks(find_notebooks(root), [args.name])
    require_writable(args.out.parent, "name another OUT")
    page = Places.of(None, root).site / f"{notebook.name}.html"
    print(*take_pictures(page, args.cell, args.out), sep="\n")
    return 0


def _publish(root: Path, places: Places) -> list[str]:
    """Render the executed notebooks in catalogue order; print the site's address and return its dead links."""
    from fusionlab.notebooks import site
    from fusionlab.notebooks.audit import broken_links
    from fusionlab.notebooks.catalogue import find_notebooks
    from fusionlab.notebooks.output_folder import Results

    results = Results(places.results)
    notebooks = find_notebooks(root)
    places.require_writable()
    with locked(places.site.with_name(f".{places.site.name}.lock")):
        done = {notebook.name: results.published(notebook.name) for notebook in notebooks}
        if not any(done.values()):
            raise UsageError("no notebook has been executed yet; run `fusionlib notebooks run` (or `make walkthrough`)")
        for name in (name for name, path in done.items() if path is None):
            print(f"not in the site: {name} has no result yet, or a damaged one; run it", file=sys.stderr)
        try:
            index = site.build_site([path for path in done.values() if path], places.site)
        except SiteError as error:
            raise UsageError(str(error)) from error
        print(f"page: {index}")
        return broken_links(index.parent)


def _report_problems(problems: Sequence[str]) -> int:
    """Print what is wrong with results or pages; returns the exit code."""
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0
