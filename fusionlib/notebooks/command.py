"""`fusionlib notebooks list | run | site | picture`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from fusionlib.notebooks.errors import SiteError, UsageError, missing_extra

DEFAULT_TIMEOUT = 600.0  # seconds for one notebook; the slowest is meant to take one minute on two cores


def register(subparsers: Any) -> None:
    """Add the `notebooks` command to the parser."""
    parser = subparsers.add_parser("notebooks", help="list, execute and publish the notebooks")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="show the notebooks with their parameters")
    listing.set_defaults(run=_guarded(_list))

    run = actions.add_parser("run", help="execute notebooks, then render the site")
    run.add_argument("names", nargs="*", metavar="NAME", help="notebooks to run; all when none is named")
    run.add_argument(
        "-p", "--parameter", action="append", default=[], metavar="NAME=VALUE",
        help="set a parameter in every chosen notebook that declares it; may be repeated",
    )  # fmt: skip
    run.add_argument("--output", type=Path, metavar="DIR", help="where results go (default: build/notebooks)")
    run.add_argument(
        "--timeout", type=_seconds, default=DEFAULT_TIMEOUT, metavar="SECONDS",
        help=f"limit for one notebook (default: {DEFAULT_TIMEOUT:.0f})",
    )  # fmt: skip
    run.add_argument("--force", action="store_true", help="run also what did not change since its last run")
    run.set_defaults(run=_guarded(_run))

    site = actions.add_parser("site", help="render notebooks that already ran to build/site")
    site.set_defaults(run=_guarded(_site))

    picture = actions.add_parser("picture", help="save a figure of the site as PNG, for light and for dark pages")
    picture.add_argument("name", metavar="NAME", help="the notebook")
    picture.add_argument("cell", metavar="CELL", help="the id of the cell whose first figure is taken")
    picture.add_argument("out", type=Path, metavar="OUT", help="writes OUT-light.png and OUT-dark.png")
    picture.set_defaults(run=_guarded(_picture))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number of seconds")
    return value


def _guarded(function):
    """Turn a missing extra into one sentence that says what to install."""

    def run(args: argparse.Namespace) -> int:
        try:
            return function(args)
        except ModuleNotFoundError as error:
            raise missing_extra(error) from error

    return run


def _list(args: argparse.Namespace) -> int:
    from fusionlib.notebooks.catalogue import find_notebooks, repository_root
    from fusionlib.notebooks.parameters import parameters_of

    for notebook in find_notebooks(repository_root()):
        print(f"{notebook.name}: {notebook.title}")
        for parameter in parameters_of(notebook).values():
            print(f"    -p {parameter['name']}={parameter['default']}  {parameter['help']}".rstrip())
    return 0


def _run(args: argparse.Namespace) -> int:
    from fusionlib.notebooks import runner
    from fusionlib.notebooks.audit import audit
    from fusionlib.notebooks.catalogue import find_notebooks, repository_root, select_notebooks
    from fusionlib.notebooks.parameters import parse_assignments, resolve_parameters

    root = repository_root()
    notebooks = select_notebooks(find_notebooks(root), args.names)
    parameters = resolve_parameters(notebooks, parse_assignments(args.parameter))
    output = args.output or root / "build" / "notebooks"
    results = runner.run(
        notebooks, root=root, output=output, parameters=parameters, timeout=args.timeout, force=args.force
    )
    problems = _publish(root, output)
    problems += [problem for result in results if not result.failure for problem in audit(result.output, root=root)]
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems or any(result.failure for result in results) else 0


def _site(args: argparse.Namespace) -> int:
    from fusionlib.notebooks.catalogue import repository_root

    root = repository_root()
    problems = _publish(root, root / "build" / "notebooks")
    print(*problems, sep="\n", end="\n" if problems else "", file=sys.stderr)
    return 1 if problems else 0


def _picture(args: argparse.Namespace) -> int:
    from fusionlib.notebooks.catalogue import repository_root
    from fusionlib.notebooks.picture import take_pictures

    page = repository_root() / "build" / "site" / f"{args.name}.html"
    print(*take_pictures(page, args.cell, args.out), sep="\n")
    return 0


def _publish(root: Path, executed: Path) -> list[str]:
    """Render what ran, in the order of the repository's notebooks; print where the page is, return its dead links."""
    from fusionlib.notebooks import site
    from fusionlib.notebooks.audit import broken_links
    from fusionlib.notebooks.catalogue import find_notebooks

    notebooks = find_notebooks(root)
    done = [executed / f"{notebook.name}.ipynb" for notebook in notebooks]
    for path in done:
        if not path.exists():
            print(f"not in the site: {path.stem} did not run yet", file=sys.stderr)
    done = [path for path in done if path.exists()]
    if not done:
        raise UsageError("no notebook has been executed yet; run `fusionlib notebooks run` (or `make walkthrough`)")
    try:
        index = site.build_site(done, root / "build" / "site")
    except SiteError as error:
        raise UsageError(str(error)) from error
    print(f"page: {index}")
    return broken_links(index.parent)
