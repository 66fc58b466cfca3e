"""The `fusionlib` command.

It is built on argparse from the standard library, not on typer or click: `fusionlib doctor` is what people run when
an installation is incomplete, so it must start with only the core dependencies.

Exit codes:

- 0: done.
- 1: it ran and something is wrong: a notebook failed, or `doctor` found that the walkthrough cannot run.
- 2: it could not start: an unknown option, notebook or parameter, an extra that is not installed, a folder that cannot
  be written.
- 130: interrupted from the keyboard.
- 141: the reader of the output closed it early, as in `fusionlib notebooks list | head -1`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Any

from fusionlib.commands import cost, doctor, explain
from fusionlib.commands.diagnosis import installed_version
from fusionlib.commands.errors import UsageError
from fusionlib.commands.parser import Parser

# A subcommand is a module with `register(subparsers)`, which adds its parser and sets `run` to a function from the
# namespace to the exit code. Such a module imports at its top only what is cheap and always installed; torch is not.
# Modules outside the library join through an entry point of this group.
COMMANDS = (doctor, explain, cost)
JOINING = "fusionlib.commands"


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line with every subcommand registered."""
    parser = Parser(
        prog="fusionlib",
        description="RMSNormGated, reshape and FP8 group quantisation as one kernel.",
        epilog="exit codes: 0 done, 1 it ran and something is wrong, 2 it could not start, 130 interrupted",
    )
    parser.add_argument("--version", action=_Version, help="print the version of fusionlib and of what it stands on")
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (*COMMANDS, *_joining()):
        module.register(subparsers)
    return parser


def _joining() -> Iterator[ModuleType]:
    """The modules of commands that installed packages bring."""
    from importlib import metadata

    return (point.load() for point in metadata.entry_points(group=JOINING))


class _Version(argparse.Action):
    """Prints versions, looked up only on request."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        found = {name: installed_version(name) or "not installed" for name in ("fusionlib", "torch", "triton")}
        python = ".".join(map(str, sys.version_info[:3]))
        print("fusionlib {fusionlib} (torch {torch}, triton {triton}, ".format(**found) + f"Python {python})")
        parser.exit()


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; `argv` defaults to the arguments of the process."""
    try:
        try:
            args = build_parser().parse_args(argv)
            return args.run(args)
        finally:
            sys.stdout.flush()  # here, where a closed reader can be told from an error
    except UsageError as error:
        print(f"fusionlib: error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own flush at exit
        return 141
    except OSError as error:
        print(f"fusionlib: error: {_in_words(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("fusionlib: interrupted", file=sys.stderr)
        return 130


def _in_words(error: OSError) -> str:
    """The error in words (a full disk, an unwritable folder): which file, and what the system said."""
    return f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)


if __name__ == "__main__":
    sys.exit(main())
