"""The command-line parser: argparse with suggestions for misspelt words."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Iterable, Sequence
from typing import Any


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown `word`: the closest known word, or nothing."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors about commands, choices and options suggest the closest match.

    Without a command it prints its help. Parsers of subcommands are of this class too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.set_defaults(run=self._help)

    def _help(self, namespace: argparse.Namespace) -> int:
        self.print_help()
        return 0

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """As in argparse, but an unrecognised argument is an error here, where the known options are available."""
        parsed, rest = super().parse_known_args(args, namespace)
        if rest:
            self.error(f"unrecognized arguments: {' '.join(rest)}{self._nearest_option(rest)}")
        return parsed, rest

    def _nearest_option(self, words: Sequence[str]) -> str:
        hints = (did_you_mean(word.partition("=")[0], self._option_string_actions) for word in words if word[0] == "-")
        return next(filter(None, hints), "")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As in argparse; Python 3.14 can do the same itself."""
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), known)
            raise argparse.ArgumentError(action, f"there is no {value!r}{hint or '; known: ' + ', '.join(known)}")
