"""Progress: recorded when an exercise is checked, written atomically, shown by command and page, kept private."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from fusionlab.exercises import Exercise, capstone, chapters, progress
from fusionlab.exercises.chapters import CHAPTERS
from fusionlab.exercises.progress_page import render
from fusionlib import cli

NOTEBOOKS = Path(__file__).parents[3] / "notebooks"


def exercise(name: str = "exercises.a_scale") -> Exercise:
    return Exercise(name, "What is half of nine?", lambda answer: None if answer == 4.5 else "no", 4.5, (4,))


def test_what_is_checked_is_noted_and_what_is_solved_stays_solved(capsys):
    asked = exercise()
    asked.check()
    assert progress.read() == {} and repr(asked).startswith("exercises.a_scale: not attempted. ")
    asked.check(4)
    assert progress.state(asked.name) == "attempted" and repr(asked).startswith("exercises.a_scale: attempted. ")
    asked.check(4.5)
    asked.check(4)
    entry = progress.read()[asked.name]
    assert entry["state"] == "solved" and entry["attempts"] == 3 and entry["first"] <= entry["solved"]
    assert repr(asked) == "exercises.a_scale: solved. What is half of nine?"


def test_the_capstone_is_noted_too(capsys):
    capstone.use(capstone.BYTES, ...)
    assert progress.read() == {}
    capstone.use(capstone.BYTES, capstone.BYTES.solution)
    assert progress.state("capstone.BYTES") == "solved"


def test_other_entries_survive_and_no_partial_file_is_left():
    progress.record("a", solved=True)
    progress.record("b", solved=False)
    assert {name: entry["state"] for name, entry in progress.read().items()} == {"a": "solved", "b": "attempted"}
    assert os.listdir(progress.state_file().parent) == ["exercises.json"]


@pytest.mark.parametrize("damaged", ["", "{", "[]", '{"exercises": 3}'])
def test_a_damaged_file_is_kept_aside(damaged):
    progress.record("a", solved=True)
    progress.state_file().write_text(damaged)
    assert progress.read() == {}
    progress.record("b", solved=True)
    assert list(progress.read()) == ["b"]
    assert progress.state_file().with_suffix(".damaged").read_text() == damaged


def test_a_failed_write_leaves_the_old_file(monkeypatch, capsys):
    progress.record("a", solved=True)
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    exercise().check(4.5)
    said = " ".join(capsys.readouterr().out.split())
    assert "could not be noted" in said and "No space left on device" in said and "Correct." in said
    assert list(progress.read()) == ["a"] and os.listdir(progress.state_file().parent) == ["exercises.json"]


def test_a_folder_that_cannot_be_made_is_told_and_the_verdict_still_comes(monkeypatch, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    exercise().check(4.5)
    out = capsys.readouterr().out
    assert "Correct." in out and "could not be noted" in out


def test_the_file_lies_in_the_users_state_folder(monkeypatch):
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/reader")
    assert progress.state_file() == Path("/home/reader/.local/state/fusionlib/exercises.json")


def called(notebook: str) -> list[str]:
    """The names of the exercises that a notebook's cells check, in order."""
    cells = json.loads((NOTEBOOKS / f"{notebook}.ipynb").read_text())["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    module = re.search(r"from fusionlab\.exercises(?: import (\w+)|\.(\w+) import \w+)", source)
    module = module[1] or module[2]
    names = re.findall(r"^(?:exercises\.)?(\w+)\.check\(", source, re.MULTILINE)
    names += re.findall(r"capstone\.use\(capstone\.(\w+)", source)
    scope = vars(__import__(f"fusionlab.exercises.{module}", fromlist=["_"]))
    return [scope[name].name for name in names if isinstance(scope.get(name), Exercise)]


@pytest.mark.parametrize("chapter", CHAPTERS, ids=[chapter.notebook for chapter in CHAPTERS])
def test_an_exercise_has_the_name_that_its_page_uses(chapter):
    cells = json.loads((NOTEBOOKS / f"{chapter.notebook}.ipynb").read_text())["cells"]
    source = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    used = re.findall(r"^(?:\w+ = capstone\.use\()?([\w.]+)(?:\.check\(|, \w+, interactive)", source, re.MULTILINE)
    assert used == list(chapter.exercises)


@pytest.mark.parametrize("chapter", CHAPTERS, ids=[chapter.notebook for chapter in CHAPTERS])
def test_a_chapter_lists_what_its_notebook_checks(chapter):
    assert list(chapter.exercises) == called(chapter.notebook)
    cells = json.loads((NOTEBOOKS / f"{chapter.notebook}.ipynb").read_text())["cells"]
    assert "".join(cells[0]["source"]).splitlines()[0] == f"# {chapter.title}"


@pytest.mark.parametrize("chapter", CHAPTERS, ids=[chapter.notebook for chapter in CHAPTERS])
def test_every_exercise_knows_whether_somebody_can_ask(chapter):
    source = (NOTEBOOKS / f"{chapter.notebook}.ipynb").read_text()
    assert source.count("interactive=interactive)") >= len(chapter.exercises)
    calls = re.findall(r"^ +\"(?:exercises\.\w+|\w+)\.check\(.*|^ +\"\w+ = capstone\.use\(.*", source, re.MULTILINE)
    assert len(calls) == len(chapter.exercises) and all("interactive=interactive)" in call for call in calls)


def test_every_notebook_has_a_chapter():
    assert [chapter.notebook for chapter in CHAPTERS] == sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))


def solve(*names: str) -> None:
    for name in names:
        progress.record(name, solved=True)


def next_notebook() -> str | None:
    standing = chapters.what_next(chapters.standings(progress.read()))
    return standing and standing.chapter.notebook


def test_what_is_next():
    assert next_notebook() == "00_the_nine_microseconds"
    solve("wider_inputs")
    assert next_notebook() == "01_one_row"
    progress.record("exercises.readers", solved=False)
    assert next_notebook() == "02_what_the_compiler_sees"
    solve("exercises.readers", "exercises.fused_bytes")
    assert next_notebook() == "03_matching"
    solve(*(name for chapter in CHAPTERS[3:] for name in chapter.exercises))
    assert next_notebook() == "01_one_row", "what was left behind"
    solve(*CHAPTERS[1].exercises)
    assert next_notebook() is None


def test_the_command_tells(capsys):
    solve("wider_inputs", "exercises.read_a_byte")
    progress.record("exercises.a_scale", solved=False)
    assert cli.main(["exercises", "status"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^00_the_nine_microseconds +1 of 1 solved$", out, re.MULTILINE)
    assert re.search(r"^01_one_row +1 of 3 solved +attempted: exercises.a_scale$", out, re.MULTILINE)
    total = sum(len(chapter.exercises) for chapter in CHAPTERS)
    assert f"2 of {total} exercises are solved." in out
    assert "Next, in 01_one_row: exercises.a_scale, exercises.free_roundings." in out
    assert cli.main(["exercises", "reset"]) == 0
    assert progress.read() == {} and not progress.state_file().exists()


def test_the_page_tells_the_same_and_loads_nothing(tmp_path, capsys):
    from fusionlab.notebooks.site import external_resources

    solve("wider_inputs")
    progress.record("exercises.a_scale", solved=False)
    (tmp_path / "01_one_row.html").write_text("")
    target = tmp_path / "progress.html"
    assert cli.main(["exercises", "page", "--output", str(target)]) == 0
    html = target.read_text()
    assert external_resources(html) == [] and "<script" not in html
    assert "exercises.a_scale: attempted" in html and "wider_inputs: solved" in html and "1 of 1 solved" in html
    assert '<a href="01_one_row.html">' in html and "03_matching.html" not in html
    assert sorted(path.name for path in tmp_path.glob("*.html")) == ["01_one_row.html", "progress.html"]


def test_a_page_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["exercises", "page", "--output", str(tmp_path / "file" / "page.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_where_nothing_is_noted_the_page_says_how_it_comes_about(tmp_path):
    (tmp_path / "index.html").write_text("")
    html = render(tmp_path)
    assert "wider_inputs: not attempted" in html and "0 of 1 solved" in html and "1 of 1 solved" not in html
    assert "Nothing is noted here yet." in html and '<a href="index.html">' in html
    progress.record("wider_inputs", solved=False)
    assert "Nothing is noted here yet." not in render(tmp_path)


def test_a_site_that_is_built_again_shows_the_progress_of_now(tmp_path):
    from fusionlab.notebooks.site import build_site

    notebooks = [NOTEBOOKS / "00_the_nine_microseconds.ipynb"]
    page = build_site(notebooks, tmp_path / "site").parent / "progress.html"
    assert "wider_inputs: not attempted" in page.read_text() and "0 of 1 solved" in page.read_text()
    solve("wider_inputs")
    build_site(notebooks, tmp_path / "site")
    assert "wider_inputs: solved" in page.read_text() and "1 of 1 solved" in page.read_text()
    assert '<a href="00_the_nine_microseconds.html">' in page.read_text()
    cli.main(["exercises", "reset"])
    build_site(notebooks, tmp_path / "site")
    assert "wider_inputs: not attempted" in page.read_text()
