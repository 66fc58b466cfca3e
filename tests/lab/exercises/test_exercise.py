from __future__ import annotations

import re

import pytest

from fusionlab.exercises import Exercise


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


@pytest.fixture
def published(monkeypatch):
    found = []
    monkeypatch.setattr("IPython.display.publish_display_data", lambda data, metadata: found.append((data, metadata)))
    return found


def test_where_somebody_can_ask_nothing_is_folded_in(published, capsys):
    exercise().check()
    exercise().check(4.5)
    assert published == []


@pytest.mark.parametrize("answer", [..., 4, 4.5])
def test_on_a_page_hints_and_solution_follow_closed(published, capsys, answer):
    exercise().check(answer, interactive=False)
    ((data, metadata),) = published
    html = data["text/html"]
    assert re.findall(r"<summary>(.*?)</summary>", html) == ["Hint 1 of 2", "Hint 2 of 2", "Solution"]
    assert "<details open" not in html and html.count("<details") == 3
    assert "more than four" in html and "less than five" in html and "9 / 2." in html
    assert re.sub("<[^>]*>", "", html.split("Solution</summary>")[1]).split()[0] == "4.5"
    assert "4.5" not in data["text/plain"], "who cannot unfold is not told"
    assert metadata == {"fusionlib": {"role": "exercise-help"}}


def test_markup_in_a_hint_is_text(published, capsys):
    asked = Exercise("a", "?", half, "x < y", (4,), ("a < b & `c`",), "<b>")
    asked.check(interactive=False)
    html = published[0][0]["text/html"]
    assert "a &lt; b &amp; <code>c</code>" in html and "<b>" not in html and "x < y" not in html


def _double(answer):
    """Twice."""
    return 2 * answer


def test_a_function_is_shown_by_its_source():
    text = Exercise("a", "?", half, _double, (4,)).solution_text
    assert text == 'def double(answer):\n    """Twice."""\n    return 2 * answer'


@pytest.mark.parametrize("raised", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
def test_what_would_end_the_process_is_a_wrong_answer(raised, capsys):
    def judge(answer):
        raise raised

    Exercise("a", "?", judge, 1, (2,)).check(1)
    assert f"Not yet: it raised {type(raised).__name__}" in capsys.readouterr().out


def test_an_answer_that_does_not_come_back_is_stopped(capsys):
    def judge(answer):
        while True:
            pass

    Exercise("a", "?", judge, 1, (2,), seconds=0.1).check(1)
    assert "Not yet: it was stopped after 0.1 s" in capsys.readouterr().out


def test_evaluated_in_a_cell_it_tells_the_task_and_not_the_solution():
    from IPython.core.formatters import DisplayFormatter

    asked = Exercise("a.b", "What is asked?", half, 4.5, (4,), ("a hint",), "because", "the solution")
    for thing in (asked, asked.check, [asked]):
        data, _ = DisplayFormatter().format(thing)
        assert "What is asked?" in data["text/plain"]
        assert not any(word in str(data) for word in ("4.5", "a hint", "because", "the solution"))
    assert repr(asked) == "a.b: not attempted. What is asked?"
