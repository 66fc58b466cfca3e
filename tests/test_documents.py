"""README and docs/: links lead somewhere, the first screen is whole, plans add up, the set-up needs no network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest

from fusionlab.notebooks.landing import ROUTES

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "data" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEACHING = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives a document: its headings in small letters, and those that it writes itself."""
    headings = re.findall(r"^#+ +(.+?)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), flags=re.MULTILINE)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_of_a_document_leads_to_a_file_and_a_heading(path):
    text = path.read_text(encoding="utf-8")
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
    links = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'(?:src|srcset|href)="([^"]+)"', prose)
    assert links or "](" not in prose
    for link in links:
        if "://" in link:
            continue
        file, _, anchor = unquote(link).partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.is_file(), f"{path.name}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{path.name}: {link}"


def test_every_document_can_be_reached_from_the_readme():
    readme = DOCUMENTS[0].read_text(encoding="utf-8")
    for path in DOCUMENTS[1:]:
        assert f"({path.relative_to(ROOT).as_posix()})" in readme


def test_the_first_screen_has_problem_picture_commands_the_line_and_for_whom():
    readme = DOCUMENTS[0].read_text(encoding="utf-8")
    first = readme.partition("\n## ")[0]
    order = ["pays for its own start", "<picture>", "make walkthrough", "make test", "torch.compile(model, options=",
             "*You want to understand", "*You want it in a model today*", "*You teach it*"]  # fmt: skip
    places = [first.index(text) for text in order]
    assert places == sorted(places)
    assert len(first.splitlines()) < 45
    (route,) = [route for route in ROUTES if route.code]
    assert route.code in readme, "the first page of the site says the same line"


def plan(heading: str) -> list[tuple[int, str, str]]:
    section = re.search(rf"^## {heading}\n(.*?)^## ", TEACHING, flags=re.DOTALL | re.MULTILINE)[1]
    rows = re.findall(r"^\| (\d+) \| (.*?) \| (.*?) ?\|$", section, flags=re.MULTILINE)
    return [(int(minutes), what, how) for minutes, what, how in rows]


@pytest.mark.parametrize(("heading", "minutes"), [("Two hours", 120), ("Half a day", 240)])
def test_the_minutes_of_a_plan_add_up(heading, minutes):
    assert sum(row[0] for row in plan(heading)) == minutes


def test_the_two_hours_take_the_notebooks_that_the_site_suggests_to_instructors():
    numbers = [what[:2] for _, what, _ in plan("Two hours") if what[:2].isdecimal()]
    assert tuple(numbers) == ROUTES[-1].numbers


def test_the_plans_name_notebooks_and_headings_that_exist():
    titles, headings = {}, []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        found = [line for c in cells if c.cell_type == "markdown" for line in re.findall(r"^#+ (.+)$", c.source, re.M)]
        titles[path.name[:2]] = found[0]
        headings += found
    for _, what, how in plan("Two hours") + plan("Half a day"):
        if what[:2].isdecimal():
            assert what == f"{what[:2]}, {titles[what[:2]]}"
        for quoted in re.findall(r'"([^"]+)"', how):
            assert any(heading.startswith(quoted) for heading in headings), quoted


# ---- Without a network


def recipe(*arguments: str) -> str:
    """What `make` would do, done by nobody; the set-up counts as done unless asked for."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    command = ["make", "--dry-run", "--no-print-directory", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return " ".join(done.stdout.replace("\\\n", " ").split())


def test_the_wheelhouse_is_of_the_tested_set_and_is_tried_without_a_network():
    commands = recipe("--old-file=.venv/.installed", "wheelhouse")
    collect, proof = re.findall(r"-m pip (\w+ .*?'\.\[[\w,]+\]')", commands)
    assert collect.startswith("wheel ") and "--wheel-dir build/wheelhouse" in collect
    assert proof.startswith("install ") and "--dry-run --ignore-installed" in proof
    assert "--no-index --find-links build/wheelhouse" in proof
    assert all("-c constraints.txt" in command for command in (collect, proof))
    assert collect.rpartition("'.[")[2] == proof.rpartition("'.[")[2]


def test_set_up_takes_the_wheels_that_it_is_given_and_else_the_index():
    given = recipe("--always-make", ".venv/.installed", "WHEELS=some/folder")
    assert "--no-index --find-links some/folder -c constraints.txt -e '.[" in given
    assert "--no-index" not in recipe("--always-make", ".venv/.installed")


def tiny_wheel(folder: Path, name: str, requires: str = "") -> None:
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n" + (
        f"Requires-Dist: {requires}\n" if requires else ""
    )
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", about)
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")


def test_the_proof_fails_where_a_wheel_is_missing_and_passes_where_none_is(tmp_path):
    """The Makefile's own command, on two packages that nobody has, in a folder of its own."""
    commands = recipe("--old-file=.venv/.installed", "wheelhouse")
    options = re.findall(r"-m pip (install .*?) -c constraints\.txt -e", commands)[0].split()
    options[options.index("build/wheelhouse")] = str(tmp_path)
    environment = {"PATH": "/usr/bin:/bin", "PIP_CONFIG_FILE": "/dev/null", "HOME": str(tmp_path)}

    def proof() -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "pip", *options, "fusionlib-tiny-a"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)

    tiny_wheel(tmp_path, "fusionlib_tiny_a", requires="fusionlib-tiny-b==1.0")
    missing = proof()
    assert missing.returncode != 0 and "fusionlib-tiny-b==1.0" in missing.stderr
    tiny_wheel(tmp_path, "fusionlib_tiny_b")
    assert proof().returncode == 0
