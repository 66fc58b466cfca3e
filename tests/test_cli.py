from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch

from fusionlab.notebooks import runner
from fusionlib import cli
from fusionlib.commands import doctor
from fusionlib.commands.diagnosis import Finding, installed_version

v4 = nbformat.v4


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "fusionlib"\n')
    (tmp_path / "notebooks").mkdir()
    for name, code in {"01_good": "print('rows:', tokens)", "02_bad": "raise ValueError('planted')"}.items():
        cells = [
            v4.new_markdown_cell(f"# Notebook {name}"),
            v4.new_code_cell("tokens = 4  # rows", metadata={"tags": ["parameters"]}),
            v4.new_code_cell(code),
        ]
        metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        node = v4.new_notebook(cells=cells, metadata=metadata)
        nbformat.write(node, tmp_path / "notebooks" / f"{name}.ipynb")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_run_ends_with_the_path_of_the_page(checkout, capsys):
    assert cli.main(["notebooks", "run", "01_good", "-p", "tokens=7"]) == 0
    out = capsys.readouterr().out.splitlines()
    index = checkout / "build" / "site" / "index.html"
    assert out[-1] == f"page: {index.resolve()}"
    assert "rows: 7" in (checkout / "build" / "site" / "01_good.html").read_text()


def test_a_failing_notebook_makes_the_exit_code_1_after_all_ran_and_were_rendered(checkout, capsys):
    assert cli.main(["notebooks", "run"]) == 1
    out = capsys.readouterr().out
    assert "executed   01_good" in out
    assert "ValueError: planted" in out
    assert (checkout / "build" / "site" / "02_bad.html").exists()


def test_output_goes_where_it_is_asked_to_and_the_site_of_the_checkout_stays(checkout, capsys):
    assert cli.main(["notebooks", "run"]) == 1
    pages = {path.name: path.read_bytes() for path in (checkout / "build" / "site").glob("*.html")}
    assert {"01_good.html", "02_bad.html"} < set(pages)
    executed = sorted((checkout / "build" / "notebooks").iterdir())
    assert cli.main(["notebooks", "run", "01_good", "--output", "elsewhere"]) == 0
    assert (checkout / "elsewhere" / "01_good.ipynb").exists()
    assert capsys.readouterr().out.splitlines()[-1] == f"page: {checkout / 'elsewhere' / 'site' / 'index.html'}"
    assert pages == {path.name: path.read_bytes() for path in (checkout / "build" / "site").glob("*.html")}
    assert sorted((checkout / "build" / "notebooks").iterdir()) == executed


def test_a_run_of_one_notebook_keeps_the_pages_of_the_others(checkout, capsys):
    assert cli.main(["notebooks", "run"]) == 1
    assert cli.main(["notebooks", "run", "1"]) == 0
    assert {path.name for path in (checkout / "build" / "site").glob("*.html")} == {
        "index.html", "01_good.html", "02_bad.html", "progress.html",
    }  # fmt: skip


def test_a_checkout_that_cannot_be_written_is_enough_with_an_output(checkout, tmp_path_factory, capsys, monkeypatch):
    """Where build/ would be there is a file: nothing can be made in it, whoever one is."""
    (checkout / "build").write_text("")
    with monkeypatch.context() as patched:
        patched.setattr(runner, "run", lambda *a, **k: pytest.fail("worked before it knew"))
        assert cli.main(["notebooks", "run", "01_good"]) == 2
    assert f"cannot write to {checkout / 'build' / 'notebooks'}" in (said := capsys.readouterr().err)
    assert "--output DIR" in said and "Traceback" not in said
    output = tmp_path_factory.mktemp("output")
    assert cli.main(["notebooks", "run", "01_good", "--output", str(output)]) == 0
    assert (output / "site" / "01_good.html").exists()


def test_the_page_of_a_failed_run_is_that_of_the_last_good_one_and_says_so(checkout, capsys):
    assert cli.main(["notebooks", "run", "01_good"]) == 0
    path = checkout / "notebooks" / "01_good.ipynb"
    node = nbformat.read(path, as_version=4)
    node.cells[-1].source = "raise ValueError('planted later')"
    nbformat.write(node, path)
    assert cli.main(["notebooks", "run", "01_good"]) == 1
    page = (checkout / "build" / "site" / "01_good.html").read_text()
    assert "rows: 4" in page and "planted later" not in page
    assert "A later run of this notebook failed" in page
    assert "A later run of this notebook failed" in (checkout / "build" / "site" / "index.html").read_text()


def test_a_damaged_result_is_named_and_the_other_pages_are_made(checkout, capsys):
    cli.main(["notebooks", "run"])
    for damage in ("[]", "null", "", '{"cells": [], "metadata": {}, "nbformat": 4}'):
        (checkout / "build" / "notebooks" / "01_good.ipynb").write_text(damage)
        capsys.readouterr()
        assert cli.main(["notebooks", "site"]) == 0
        assert "not in the site: 01_good has no result yet, or a damaged one" in capsys.readouterr().err
        assert (checkout / "build" / "site" / "02_bad.html").exists()


def test_a_dead_link_is_named_and_makes_the_exit_code_1(checkout, capsys):
    path = checkout / "notebooks" / "01_good.ipynb"
    node = nbformat.read(path, as_version=4)
    node.cells[0].source += "\n\n[there](02_bad.ipynb#No-such-part)"
    nbformat.write(node, path)
    cli.main(["notebooks", "run"])
    capsys.readouterr()
    assert cli.main(["notebooks", "site"]) == 1
    assert "01_good.html: the link '02_bad.html#No-such-part' leads to an anchor" in capsys.readouterr().err


def test_list_shows_titles_and_parameters(checkout, capsys):
    assert cli.main(["notebooks", "list"]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["01_good: Notebook 01_good", "    -p tokens=4  rows"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["notebooks", "run", "03_none"], "no notebook called 03_none; known: 01_good, 02_bad"),
        (["notebooks", "run", "01_god"], "no notebook called 01_god; did you mean 01_good?"),
        (["notebooks", "run", "7"], "no notebook called 7; known: 01_good, 02_bad"),
        (["notebooks", "run", "-p", "tokns=1"], "known: 01_good: tokens; 02_bad: tokens"),
        (["notebooks", "site"], "run `fusionlib notebooks run`"),
    ],
)
def test_what_cannot_start_is_2_and_runs_nothing(checkout, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(runner, "run", lambda *a, **k: pytest.fail("ran"))
    assert cli.main(arguments) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("seconds", ["0", "-1", "soon", "inf", "nan"])
def test_a_timeout_is_a_positive_number(capsys, seconds):
    with pytest.raises(SystemExit) as caught:
        cli.main(["notebooks", "run", f"--timeout={seconds}"])
    assert caught.value.code == 2
    assert f"'{seconds}' is not a positive number of seconds" in capsys.readouterr().err


def test_a_missing_extra_is_one_sentence(checkout, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "papermill", None)
    monkeypatch.delitem(sys.modules, "fusionlab.notebooks.runner", raising=False)
    assert cli.main(["notebooks", "list"]) == 2
    assert "pip install 'fusionlib[notebooks,models]'" in capsys.readouterr().err


def test_an_interrupt_is_130(checkout, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run", interrupt)
    assert cli.main(["notebooks", "run"]) == 130


@pytest.mark.parametrize(("blocking", "code"), [(False, 0), (True, 1)])
def test_doctor_says_by_its_exit_code_whether_the_walkthrough_can_run(capsys, monkeypatch, blocking, code):
    found = Finding("part", "1", "2", "differs", "cost", blocking)
    monkeypatch.setattr(doctor, "diagnose", lambda machine: [found])
    assert cli.main(["doctor"]) == code
    assert "differs: cost" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--help"], [], ["--version"], ["asm", "--help"], ["bench", "--help"], ["dctor"]])
def test_what_needs_no_tensor_imports_no_torch(words):
    """That is what makes it fast; a time would be another one on every machine."""
    code = (
        "import sys; from fusionlib import cli\n"
        f"try: code = cli.main({words})\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'triton', 'numpy', 'papermill', 'nbconvert', 'nbformat', 'plotly', 'IPython'}\n"
        "print(code, sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{2 if words == ['dctor'] else 0} []"


def test_the_name_alone_prints_the_help(capsys):
    for words in ([], ["notebooks"]):
        assert cli.main(words) == 0
        alone = capsys.readouterr().out
        with pytest.raises(SystemExit):
            cli.main([*words, "--help"])
        assert alone == capsys.readouterr().out != ""


def test_the_version_is_that_of_the_project(capsys):
    with pytest.raises(SystemExit) as end:
        cli.main(["--version"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and len(out.splitlines()) == 1
    installed = installed_version("fusionlib")
    assert out.startswith(f"fusionlib {installed or 'not installed'} (torch {torch.__version__}, triton ")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["dctor"], "there is no 'dctor'; did you mean doctor?"),
        (["notebooks", "rnu"], "there is no 'rnu'; did you mean run?"),
        (["notebooks", "run", "--timout=3"], "--timout=3; did you mean --timeout?"),
        (["bench", "--shapes", "32x129"], "there is no '32x129'; did you mean 32x128?"),
        (["asm", "--target", "zzz"], "there is no 'zzz'; known: sm_90, sm_100, gfx942, gfx950"),
    ],
)
def test_a_misspelt_word_is_told_what_it_was_meant_to_be(capsys, words, meant):
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 2
    assert meant in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", [False, True])
def test_a_closed_pipe_is_no_error(checkout, unbuffered):
    """As behind `| head`: nothing is said, and the exit code is the one that a shell gives to it."""
    code = "import sys; from fusionlib.cli import main; sys.exit(main(['notebooks', 'list']))"
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, *["-u"] * unbuffered, "-c", code]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=checkout)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


FULL_DISK = """
import resource, signal, sys
from fusionlib.cli import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))  # each write behind that fails, as on a disk that is full
sys.exit(main(["notebooks", "run", "01_good"]))
"""


def test_a_disk_that_fills_up_is_one_sentence_and_the_last_result_stays(checkout):
    assert cli.main(["notebooks", "run", "01_good"]) == 0
    before = {path: path.read_bytes() for path in (checkout / "build").rglob("*.*")}
    path = checkout / "notebooks" / "01_good.ipynb"
    node = nbformat.read(path, as_version=4)
    node.cells[-1].source = "print('x' * 20_000)"
    nbformat.write(node, path)
    done = subprocess.run([sys.executable, "-c", FULL_DISK], capture_output=True, text=True, cwd=checkout)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert re.fullmatch(rf"fusionlib: error: {checkout}.*: File too large\n", done.stderr.splitlines(keepends=True)[-1])
    assert {path: path.read_bytes() for path in (checkout / "build").rglob("*.*")} == before


def test_bars_of_progress_are_for_a_terminal(checkout, capsys, monkeypatch):
    assert cli.main(["notebooks", "run", "01_good", "--force"]) == 0
    assert "\r" not in (said := capsys.readouterr().err) and "%" not in said
    asked = []
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(runner, "run", lambda *a, progress, **k: asked.append(progress) or [])
    cli.main(["notebooks", "run", "01_good"])
    assert asked == [True]
