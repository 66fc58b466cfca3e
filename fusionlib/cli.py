"""The `fusionlib` command.

It is built on argparse from the standard library, not on typer or click: `fusionlib doctor` is what a person runs when
an installation is incomplete, so it must start where only the core dependencies exist.

Exit codes:

- 0: done.
- 1: it ran and something is wrong: a notebook failed, or `doctor` found that the walkthrough cannot run.
- 2: it could not start: an unknown option, notebook or parameter, or an extra that is not installed.
- 130: interrupted from the keyboard.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fusionlib import cost, doctor, explain_command
from fusionlib.notebooks import command as notebooks
from fusionlib.notebooks.errors import UsageError
from fusionlib.observe import asm, record_command
from fusionlib.observe.bench import command as bench

# One entry per subcommand: a module with `register(subparsers)`, which adds its parser and sets `run` to a function
# (namespace) -> exit code. Such a module imports at its top only what is cheap and always installed.
COMMANDS = (doctor, notebooks, asm, explain_command, cost, bench, record_command)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line with every subcommand registered."""
    parser = argparse.ArgumentParser(
        prog="fusionlib",
        description="RMSNormGated, reshape and FP8 group quantisation as one kernel.",
        epilog="exit codes: 0 done, 1 it ran and something is wrong, 2 it could not start, 130 interrupted",
    )
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `argv` defaults to the arguments of the process."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except UsageError as error:
        print(f"fusionlib: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fusionlib: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
