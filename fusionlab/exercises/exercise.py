"""An exercise: a question, a judge, hints and a solution.

The judge runs the answer rather than comparing texts. Every exercise has wrong answers that must be rejected, and a
test tries them all, so that no exercise can be passed by accident.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fusionlab.exercises import folded, progress
from fusionlab.exercises.time_limit import Escape, OutOfTime, within


def _say(text: str) -> None:
    """Print one paragraph, wrapped to fit a notebook page."""
    print(textwrap.fill(text.strip(), 88, break_long_words=False, break_on_hyphens=False))


def source_of(solution: Any) -> str:
    """A solution as a reader would write it: a value, or the source of a function or class, underscore removed."""
    if not inspect.isroutine(solution) and not inspect.isclass(solution):
        return repr(solution)
    return re.sub(r"^(def|class) _", r"\1 ", textwrap.dedent(inspect.getsource(solution))).strip()


@dataclass(eq=False, repr=False)
class Exercise:
    """One exercise of a notebook. Its repr shows the state and the task, not the solution.

    Args:
        name: what its notebook calls it, unique in the suite; the reader's progress is noted under it.
        question: what is asked, in words.
        judge: takes an answer; returns None if it is correct, else a sentence that says what is wrong without giving
            the answer away. An exception inside it counts as wrong and is reported.
        solution: an answer that the judge accepts.
        traps: wrong answers that it must reject: typical mistakes.
        hints: shown one by one.
        explanation: shown when the answer is correct, and with the solution.
        solution_text: the solution as a reader should see it, if neither source nor repr is suitable.
        seconds: time limit of the judge.
    """

    name: str
    question: str
    judge: Callable[[Any], str | None]
    solution: Any
    traps: tuple[Any, ...]
    hints: tuple[str, ...] = ()
    explanation: str = ""
    solution_text: str = ""
    seconds: float = 20.0
    _next: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self.solution_text = self.solution_text or source_of(self.solution)

    def __repr__(self) -> str:
        return f"{self.name}: {progress.state(self.name)}. {self.question}"

    def verdict(self, answer: Any) -> str | None:
        """None if `answer` is correct, else what is wrong with it.

        The answer may be any code: what it raises is reported as a sentence, since a traceback would show the judge.
        """
        try:
            return within(self.seconds, lambda: self.judge(answer))
        except OutOfTime:
            return f"it was stopped after {self.seconds:g} s; is there a loop in it that never ends?"
        except Escape as error:
            return f"it raised {error}, which would have ended the notebook's process."
        except Exception as error:
            return f"it raised {type(error).__name__}: {error}"

    def attempt(self, answer: Any) -> str | None:
        """`verdict`, recorded in the reader's progress."""
        wrong = self.verdict(answer)
        if (problem := progress.record(self.name, solved=wrong is None)) is not None:
            _say(f"({problem})")
        return wrong

    def check(self, answer: Any = ..., *, interactive: bool = True) -> None:
        """Print whether `answer` is correct. `...`, the placeholder in the notebook, does not count as an answer.

        With `interactive=False`, when no one can ask for them, folded hints and solution follow.
        """
        if answer is ...:
            _say(f"Not attempted. {self.question}")
        elif (wrong := self.attempt(answer)) is None:
            _say(f"Correct. {self.explanation}")
        else:
            _say(f"Not yet: {wrong}")
        if not interactive:
            folded.publish(self)

    def hint(self) -> None:
        """Print the next hint, starting over after the last one."""
        if not self.hints:
            print("There is no hint for this one.")
            return
        print(
            f"Hint {self._next % len(self.hints) + 1} of {len(self.hints)}: {self.hints[self._next % len(self.hints)]}"
        )
        self._next += 1

    def solve(self) -> None:
        """Print the solution."""
        print("Solution:", self.solution_text, sep="\n" if "\n" in self.solution_text else " ")
        if self.explanation:
            _say(self.explanation)
