"""`fusionlib reasons`: what the reason codes mean, each with the smallest example that triggers it."""

from __future__ import annotations

import argparse
from typing import Any

from fusionlib.commands.errors import UsageError
from fusionlib.commands.parser import did_you_mean


def register(subparsers: Any) -> None:
    """Add the `reasons` command to the parser."""
    parser = subparsers.add_parser("reasons", help="explain every reason code, or one, by the smallest example")
    parser.add_argument("code", nargs="?", help="one reason code; without it, all of them as a markdown page")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from fusionlab.reason_examples import EXAMPLES
    from fusionlab.reasons_page import reason_text, reasons_page

    if args.code is not None and args.code not in EXAMPLES:
        hint = did_you_mean(args.code, EXAMPLES) or "; `fusionlib reasons` lists them"
        raise UsageError(f"no reason has the code {args.code!r}{hint}")
    print(reasons_page() if args.code is None else reason_text(args.code), end="")
    return 0
