"""`fusionlib exercises status | page | reset`: what the reader has tried and solved, on this machine only."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def register(subparsers: Any) -> None:
    """Add the `exercises` command to the parser."""
    parser = subparsers.add_parser("exercises", help="which exercises you have solved, and what to read next")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    status = actions.add_parser("status", help="show what was attempted and solved; nothing is sent anywhere")
    status.set_defaults(run=_status)
    page = actions.add_parser("page", help="write the same as a page, beside the site's where there is one")
    page.add_argument("--output", type=Path, metavar="FILE", help="where to (default: build/site/progress.html)")
    page.set_defaults(run=_page)
    reset = actions.add_parser("reset", help="forget all of it")
    reset.set_defaults(run=_reset)


def _status(args: argparse.Namespace) -> int:
    from fusionlab.exercises import chapters, progress

    standings = chapters.standings(progress.read())
    for standing in standings:
        tried = [name for name, state in standing.states.items() if state == progress.TRIED]
        note = f"   attempted: {', '.join(tried)}" if tried else ""
        print(f"{standing.chapter.notebook:<28}{standing.solved} of {len(standing.states)} solved{note}")
    print(chapters.summary(standings))
    print(f"Noted in {progress.state_file()}, and nowhere else.")
    return 0


def _page(args: argparse.Namespace) -> int:
    from fusionlab.exercises import progress
    from fusionlab.exercises.progress_page import render
    from fusionlib.commands.errors import UsageError

    target = args.output or _beside_the_site()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        progress.replace_file(target, render(target.parent))
    except OSError as error:
        raise UsageError(f"{target} cannot be written ({error.strerror}); name another one with --output") from error
    print(f"page: {target.resolve()}")
    return 0


def _beside_the_site() -> Path:
    from fusionlab.checkout import repository_root
    from fusionlab.exercises.progress_page import FILE

    return repository_root() / "build" / "site" / FILE


def _reset(args: argparse.Namespace) -> int:
    from fusionlab.exercises import progress
    from fusionlib.commands.errors import UsageError

    try:
        existed = progress.forget()
    except OSError as error:
        raise UsageError(f"{progress.state_file()} cannot be removed ({error.strerror})") from error
    print("Your progress is forgotten." if existed else "There was nothing to forget.")
    return 0
