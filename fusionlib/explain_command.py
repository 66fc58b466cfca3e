"""`fusionlib explain`: what the pass would do with a function, or what its reason codes mean."""

from __future__ import annotations

import argparse
import difflib
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
    what.add_argument("--reasons", action="store_true", help="print every reason code with its example, as markdown")
    what.add_argument("--reason", metavar="CODE", help="print one reason with the smallest example that triggers it")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    """Print the report; 0 if every site found would fuse, 1 otherwise."""
    if args.reasons or args.reason:
        print(_reasons(args.reason), end="")
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


def _reasons(code: str | None) -> str:
    """The page of all reasons, or the text of one."""
    from fusionlib.match.reasons import REASONS

    if code is not None and code not in REASONS:
        near = difflib.get_close_matches(code, REASONS, n=1)
        raise UsageError(f"no reason has the code {code!r}; {f'did you mean {near[0]}?' if near else 'see --reasons'}")
    from fusionlib.reasons_page import reason_text, reasons_page

    return reasons_page() if code is None else reason_text(code)
