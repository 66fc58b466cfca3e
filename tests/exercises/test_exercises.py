"""Every exercise of the suite takes its solution and turns down the mistakes that it lists."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from fusionlib import exercises
from fusionlib.exercises import Exercise


def every_exercise() -> list[Exercise]:
    modules = sorted(info.name for info in pkgutil.iter_modules(exercises.__path__) if info.name != "exercise")
    found = []
    for name in modules:
        module = importlib.import_module(f"fusionlib.exercises.{name}")
        found += [value for value in vars(module).values() if isinstance(value, Exercise)]
    return found


EXERCISES = every_exercise()


def test_names_are_unique():
    names = [exercise.name for exercise in EXERCISES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("exercise", EXERCISES, ids=[exercise.name for exercise in EXERCISES])
def test_the_solution_is_correct_and_the_traps_are_not(exercise, capsys):
    exercise.check()
    assert capsys.readouterr().out.startswith("Not attempted. ")
    exercise.check(exercise.solution)
    assert capsys.readouterr().out.startswith("Correct.")
    assert exercise.traps, "an exercise without a wrong answer could accept anything"
    for trap in exercise.traps:
        exercise.check(trap)
        assert capsys.readouterr().out.startswith("Not yet: ")
    exercise.solve()
    assert capsys.readouterr().out.startswith("Solution: ")
