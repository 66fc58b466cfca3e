from __future__ import annotations

from fusionlib.exercises import Exercise


def half(answer: float) -> str | None:
    return None if answer * 2 == 9 else f"twice {answer} is {answer * 2}, not 9"


def exercise() -> Exercise:
    return Exercise("half", "What is half of nine?", half, 4.5, (4,), ("more than four", "less than five"), "9 / 2.")


def test_the_three_states(capsys):
    for answer, said in ((..., "Not attempted. What"), (4, "Not yet: twice 4 is 8, not 9"), (4.5, "Correct. 9 / 2.")):
        exercise().check(answer)
        assert capsys.readouterr().out.startswith(said)


def test_an_answer_that_raises_is_wrong_and_told_why(capsys):
    exercise().check(None)
    assert "it raised TypeError: unsupported operand" in capsys.readouterr().out


def test_hints_come_one_by_one_and_start_again(capsys):
    asked = exercise()
    for _ in range(3):
        asked.hint()
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["Hint 1 of 2: more than four", "Hint 2 of 2: less than five", "Hint 1 of 2: more than four"]


def test_the_solution_comes_with_its_reason(capsys):
    exercise().solve()
    assert capsys.readouterr().out == "Solution: 4.5\n9 / 2.\n"
