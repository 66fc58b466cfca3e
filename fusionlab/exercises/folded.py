"""Hints and solution of an exercise for a static page, each folded behind a line that opens it."""

from __future__ import annotations

import re
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusionlab.exercises.exercise import Exercise

ROLE = "exercise-help"


def publish(exercise: Exercise) -> None:
    """Show the folded hints and solution of `exercise` as an output of the running cell."""
    from IPython.display import publish_display_data

    count = len(exercise.hints)
    text = f"{count} hint{'s' * (count != 1)} and the solution are folded in here; a running notebook tells them too."
    publish_display_data({"text/html": html(exercise), "text/plain": text}, metadata={"fusionlib": {"role": ROLE}})


def html(exercise: Exercise) -> str:
    """One <details> for each hint and one for the solution, all closed."""
    count = len(exercise.hints)
    parts = [_folded(f"Hint {number} of {count}", _words(hint)) for number, hint in enumerate(exercise.hints, start=1)]
    reason = _words(exercise.explanation) if exercise.explanation else ""
    return "\n".join([*parts, _folded("Solution", _code(exercise.solution_text) + reason)])


def _words(text: str) -> str:
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
    return f"<p>{marked}</p>"


def _folded(title: str, content: str) -> str:
    return f'<details class="{ROLE}"><summary>{title}</summary>\n{content}\n</details>'


def _code(text: str) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    return highlight(text, PythonLexer(), HtmlFormatter(cssclass="highlight", wrapcode=True)).strip()
