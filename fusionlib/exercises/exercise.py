"""An exercise: a question, a judge, hints and a solution.

The judge runs; it does not compare texts. Every exercise carries answers that must be turned down, and a test plants
them all, so that no exercise can be passed by accident.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def _say(text: str) -> None:
    """Print one paragraph in lines that a notebook page shows whole."""
    print(textwrap.fill(text.strip(), 88, break_long_words=False, break_on_hyphens=False))


@dataclass
class Exercise:
    """One exercise of a notebook.

    Args:
        name: a stable identifier, unique in the suite.
        question: what is asked, in words.
        judge: takes an answer; returns None if it is correct, else a sentence that says what is wrong without giving
            the answer away. An exception inside it counts as wrong and is told.
        solution: an answer that the judge accepts.
        traps: answers that it must turn down: the mistakes one makes.
        hints: told one by one.
        explanation: told with the praise, and with the solution.
        solution_text: the solution as a reader should see it, where its repr does not serve.
    """

    name: str
    question: str
    judge: Callable[[Any], str | None]
    solution: Any
    traps: tuple[Any, ...]
    hints: tuple[str, ...] = ()
    explanation: str = ""
    solution_text: str = ""
    _told: int = field(default=0, init=False, repr=False)

    def verdict(self, answer: Any) -> str | None:
        """None if `answer` is correct, else what is wrong with it."""
        try:
            return self.judge(answer)
        except Exception as error:  # the answer may be any code of the reader's, and a traceback would be the judge's
            return f"it raised {type(error).__name__}: {error}"

    def check(self, answer: Any = ...) -> None:
        """Print whether `answer` is correct. `...`, the placeholder in the notebook, is no answer yet."""
        if answer is ...:
            _say(f"Not attempted. {self.question}")
        elif (wrong := self.verdict(answer)) is None:
            _say(f"Correct. {self.explanation}")
        else:
            _say(f"Not yet: {wrong}")

    def hint(self) -> None:
        """Print the next hint; after the last one, the first again."""
        if not self.hints:
            print("There is no hint for this one.")
            return
        print(
            f"Hint {self._told % len(self.hints) + 1} of {len(self.hints)}: {self.hints[self._told % len(self.hints)]}"
        )
        self._told += 1

    def solve(self) -> None:
        """Print the solution."""
        print(f"Solution: {self.solution_text or repr(self.solution)}")
        if self.explanation:
            _say(self.explanation)
