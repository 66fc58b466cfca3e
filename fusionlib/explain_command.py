"""`fusionlib explain`: what the pass would do with a function, or what its reason codes mean."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from fusionlib.notebooks.errors import UsageError


def register(subparsers: Any) -> None:
    """Add the `explain` command to the parser."""
    parser = subparsers.add_parser("explain", help="say which sites of a function would fuse, and why the others not")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "target", nargs="?", metavar="MODULE:CALLABLE",
        help="a callable without parameters that returns (function or module, argument, ...)",
    )  # fmt: skip
    what.add_argument("--reasons", action="store_true", help="list every reason code as a markdown table")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    """Print the report; 0 if every site found would fuse, 1 otherwise."""
    if args.reasons:
        print(reasons_table(), end="")
        return 0
    from fusionlib.rewrite.explain import explain

    function, *arguments = _made(args.target)
    report = explain(function, *arguments)
    print(report)
    return 0 if report.fused and not report.refused else 1


def _made(target: str) -> tuple[Any, ...]:
    """What the callable that `target` names returns: a function and its arguments."""
    module, _, name = target.partition(":")
    if not module or not name:
        raise UsageError(f"{target!r} is not MODULE:CALLABLE; write for example mymodel.probe:make")
    sys.path.insert(0, os.getcwd())  # as `python -m` does, so that a file beside the user is found
    try:
        make: Callable[[], Any] = getattr(importlib.import_module(module), name)
    except (ModuleNotFoundError, AttributeError) as error:
        raise UsageError(f"{target}: {error}") from error
    made = make()
    if not isinstance(made, tuple) or not made or not callable(made[0]):
        raise UsageError(f"{target} returned {type(made).__name__}; it must return (function or module, argument, ...)")
    return made


def reasons_table() -> str:
    """Every reason code, what it means and the way out, as markdown."""
    from fusionlib.match.reasons import REASONS

    rows = [f"| `{reason.code}` | {reason.sentence} | {reason.fix} |" for reason in REASONS.values()]
    return "\n".join(["| code | what it means | the way out |", "|---|---|---|", *rows, ""])
