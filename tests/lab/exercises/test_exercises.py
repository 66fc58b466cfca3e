"""Every exercise of the suite accepts its solution and rejects the mistakes that it lists."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil

import pytest

from fusionlab import exercises
from fusionlab.exercises import Exercise
from fusionlab.exercises.chapters import CHAPTERS
from fusionlab.exercises.worked import kernel_offline, traps


def every_exercise() -> list[Exercise]:
    modules = sorted(info.name for info in pkgutil.iter_modules(exercises.__path__))
    found = []
    for name in modules:
        module = importlib.import_module(f"fusionlab.exercises.{name}")
        found += [value for value in vars(module).values() if isinstance(value, Exercise)]
    return found


EXERCISES = every_exercise()


def name_of(answer: object) -> str:
    """The same in every process: the printed order of a set differs."""
    if isinstance(answer, (set, frozenset)):
        return " ".join(sorted(map(str, answer))) or "nothing"
    return getattr(answer, "__name__", repr(answer))[:40]


TRAPS = [
    pytest.param(exercise, trap, id=f"{exercise.name}-{index}-{name_of(trap)}")
    for exercise in EXERCISES
    for index, trap in enumerate(exercise.traps)
]


def test_each_exercise_is_in_one_chapter():
    names = [exercise.name for exercise in EXERCISES]
    assert len(names) == len(set(names))
    assert sorted(names) == sorted(name for chapter in CHAPTERS for name in chapter.exercises)


@pytest.mark.parametrize("exercise", EXERCISES, ids=[exercise.name for exercise in EXERCISES])
def test_the_solution_is_correct(exercise, capsys):
    exercise.check()
    assert capsys.readouterr().out.startswith("Not attempted. ")
    exercise.check(exercise.solution)
    assert capsys.readouterr().out.startswith("Correct.")
    assert exercise.traps, "an exercise without a wrong answer could accept anything"


@pytest.mark.parametrize(("exercise", "trap"), TRAPS)
def test_a_trap_is_turned_down(exercise, trap, capsys):
    if trap is traps.reference_never_ends:
        exercise = dataclasses.replace(exercise, seconds=1.0)
    exercise.check(trap)
    assert capsys.readouterr().out.startswith("Not yet: ")


def test_a_kernel_that_never_ends_is_stopped(monkeypatch):
    from fusionlab.exercises import capstone

    monkeypatch.setattr(kernel_offline, "SECONDS", 1.0)
    assert "did not end within 1 s" in capstone.KERNEL.verdict(f"{traps.KERNEL_SIGMOID}\nwhile True:\n    pass\n")


@pytest.mark.parametrize("exercise", EXERCISES, ids=[exercise.name for exercise in EXERCISES])
def test_its_repr_tells_state_and_task_and_not_the_solution(exercise):
    assert repr(exercise) == f"{exercise.name}: not attempted. {exercise.question}"
    assert exercise.solution_text not in repr(exercise) or exercise.solution_text in exercise.question
