"""`fusionlib explain`: what the pass would do to a function."""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fusionlib.commands.errors import UsageError
from fusionlib.commands.failure import in_a_line
from fusionlib.commands.parser import did_you_mean
from fusionlib.devices import DEVICES, KERNEL_DEVICES


def register(subparsers: Any) -> None:
    """Add the `explain` command to the parser."""
    parser = subparsers.add_parser("explain", help="say which sites of a function would fuse, and why the others not")
    parser.add_argument(
        "target", metavar="MODULE:CALLABLE",
        help="a callable without parameters that returns (function or module, argument, ...)",
    )  # fmt: skip
    parser.add_argument(
        "--devices", type=_device_types, default=KERNEL_DEVICES, metavar="TYPE,...",
        help="where the pass may rewrite, of cpu and cuda (default: cuda, where the kernel runs)",
    )  # fmt: skip
    parser.set_defaults(run=_run)


def _device_types(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in DEVICES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no type of device; name {' or '.join(DEVICES)}, or both")
    return names


def _run(args: argparse.Namespace) -> int:
    """Print the report; 0 if sites would fuse and none is refused, 1 otherwise."""
    from fusionlib.explanation import explain

    function, *arguments = _call_target(args.target)
    try:
        report = explain(function, *arguments, devices=args.devices)
    except Exception as error:  # whatever the function raises: it is the user's own
        raise UsageError(f"{args.target}: {_name_of(function)} cannot be traced: {_describe_error(error)}") from error
    print(report)
    return 0 if report.fused and not report.refused else 1


def _call_target(target: str) -> tuple[Any, ...]:
    """Call the callable named by `target`; returns the function and arguments it makes."""
    make = _import_target(target)
    needed = [name for name, parameter in _parameters(make).items() if _is_needed(parameter)]
    if needed:
        raise UsageError(
            f"{target} needs arguments ({', '.join(needed)}); name a callable that needs none and returns "
            "(function or module, argument, ...)"
        )
    try:
        made = make()
    except Exception as error:  # whatever the user's own code raises
        raise UsageError(f"{target}: {_describe_error(error)}") from error
    if not isinstance(made, tuple) or not made or not callable(made[0]):
        raise UsageError(f"{target} returned {type(made).__name__}; it must return (function or module, argument, ...)")
    return made


def _import_target(target: str) -> Callable[[], Any]:
    """The callable named by `target`."""
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise UsageError(f"{target!r} is not MODULE:CALLABLE; write for example mymodel.probe:make")
    sys.path.insert(0, os.getcwd())  # as `python -m` does, so that modules in the working directory are found
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a missing module, or whatever the user's own code raises
        raise UsageError(f"{target}: {module_name} cannot be imported: {_describe_error(error)}") from error
    found = getattr(module, name, None)
    if not callable(found):
        hint = did_you_mean(name, (other for other in vars(module) if callable(getattr(module, other))))
        raise UsageError(f"{target}: {module_name} has no callable {name!r}{hint}")
    return found


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return {}


def _is_needed(parameter: inspect.Parameter) -> bool:
    return parameter.default is parameter.empty and parameter.kind not in (
        parameter.VAR_POSITIONAL,
        parameter.VAR_KEYWORD,
    )


def _name_of(function: Any) -> str:
    return getattr(function, "__qualname__", type(function).__name__)


def _describe_error(error: Exception) -> str:
    """An exception in one line, with the innermost line of the user's own code in its traceback."""
    package = Path(__file__).parents[1]
    own = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((str(package), sys.prefix, sys.base_prefix, "<"))
    ]
    where = f" ({Path(own[-1].filename).name}:{own[-1].lineno})" if own else ""
    return f"{in_a_line(error, 300)}{where}"
