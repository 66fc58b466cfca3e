from __future__ import annotations

import ast
import dataclasses
import importlib.metadata
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from fusionlib.commands import diagnosis, doctor
from fusionlib.commands.diagnosis import MINIMUM_PYTHON, Gpu, Machine, _wanted, can_run, diagnose, render, satisfies

REQUIREMENTS = [
    "torch<2.14,>=2.11",
    'triton<3.8,>=3.6; sys_platform == "linux"',
    'jupyterlab<5,>=4.3; extra == "notebooks"',
    'papermill<3,>=2.6; extra == "notebooks"',
    'transformers<6,>=5.0; extra == "models"',
    'pytest<10,>=8.3; extra == "test"',
]
VERSIONS = {
    "torch": "2.13.0+cpu",
    "triton": "3.7.1",
    "jupyterlab": "4.6.6",
    "papermill": "2.7.0",
    "transformers": "5.23.0",
}
H200 = Gpu("NVIDIA H200", (9, 0))


def machine(without: str = "", versions: dict | None = None, **changes) -> Machine:
    installed = {name: v for name, v in (VERSIONS | (versions or {})).items() if name != without}
    complete = Machine(
        python=(3, 12, 1),
        platform="linux",
        version_of=installed.get,
        requirements=REQUIREMENTS,
        compiler="/usr/bin/cc",
        gpu=H200,
    )
    return dataclasses.replace(complete, **changes)


def finding(part: str, of: Machine) -> diagnosis.Finding:
    return next(found for found in diagnose(of) if found.part == part)


def test_a_complete_machine_is_all_ok_and_lists_no_test_tools():
    findings = diagnose(machine())
    assert {f.state for f in findings} == {"ok"}
    assert [f.part for f in findings] == ["Python", *VERSIONS, "C compiler", "GPU"]
    assert finding("torch", machine()).expected == ">=2.11,<2.14"
    assert render(findings).endswith("The walkthrough can run.")


@pytest.mark.parametrize("name", ["torch", "triton", "papermill", "transformers"])
def test_a_missing_part_that_the_walkthrough_needs_stops_it(name):
    findings = diagnose(machine(without=name))
    assert not can_run(findings)
    assert finding(name, machine(without=name)).found == "not installed"
    assert f"cannot run: {name}." in render(findings)


@pytest.mark.parametrize(
    "lacking", [{"without": "jupyterlab"}, {"gpu": None}, {"compiler": None}, {"versions": {"torch": "2.10.1"}}]
)
def test_what_the_walkthrough_can_do_without_is_named_with_its_cost(lacking):
    findings = diagnose(machine(**lacking))
    assert can_run(findings)
    (lack,) = [f for f in findings if f.state != "ok"]
    assert lack.cost in render(findings)


def test_an_old_python_stops_it():
    old = finding("Python", machine(python=(3, 10, 9)))
    assert (old.found, old.expected, old.blocking) == ("3.10.9", ">=3.11", True)


def test_triton_is_expected_on_linux_only():
    assert "triton" not in [f.part for f in diagnose(machine(platform="darwin"))]


def test_a_torch_that_does_not_import_is_missing_with_its_error():
    broken = finding("torch", machine(torch_error="does not import (OSError: libcudart)"))
    assert (broken.found, broken.blocking) == ("does not import (OSError: libcudart)", True)


def test_without_metadata_it_says_what_to_do():
    assert "pip install -e ." in render(diagnose(machine(requirements=None)))
    assert not can_run(diagnose(machine(requirements=None)))


@pytest.mark.parametrize(
    ("gpu", "converts"),
    [
        (Gpu("A100", (8, 0)), False),
        (Gpu("L4", (8, 9)), True),
        (H200, True),
        (Gpu("B200", (10, 0)), True),
        (Gpu("MI250X", (9, 0), "gfx90a"), False),
        (Gpu("MI300X", (9, 4), "gfx942"), True),
        (Gpu("MI355X", (9, 5), "gfx950"), True),
    ],
)
def test_which_gpus_convert_to_fp8(gpu, converts):
    assert gpu.converts_to_fp8 is converts
    assert finding("GPU", machine(gpu=gpu)).state == ("ok" if converts else "differs")


@pytest.mark.parametrize(
    ("version", "spec", "holds"),
    [
        ("2.11.0", ">=2.11,<2.14", True),
        ("2.13.0+cpu", ">=2.11,<2.14", True),
        ("2.14.0", ">=2.11,<2.14", False),
        ("2.9.1", ">=2.11", False),
        ("3.10", "<3.9", False),
        ("1.2", "==1.2.0", True),
        ("1.2.1", "!=1.2.0,>1.2,<=1.2.1", True),
        ("5.0rc1", ">=5.0", True),
        ("1", "", True),
    ],
)
def test_ranges(version, spec, holds):
    assert satisfies(version, spec) is holds


def test_the_table_is_aligned():
    lines = render(diagnose(machine(gpu=None))).splitlines()[:-2]
    column = lines[0].index("expected")
    assert all(line[column - 2 : column] == "  " and line[column] != " " for line in lines)


def test_expected_versions_come_from_the_installed_metadata():
    if diagnosis.installed_version("fusionlib") is None:
        pytest.skip("fusionlib is not installed in this environment, only importable")
    here = diagnosis.this_machine()
    assert here.requirements == importlib.metadata.requires("fusionlib")
    assert {"torch", "papermill", "transformers"} <= {f.part for f in diagnose(here)}


def test_every_requirement_of_the_walkthrough_has_its_cost_in_words():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].items()
    declared = project["dependencies"] + [f'{r}; extra == "{extra}"' for extra, rs in extras for r in rs]
    assert {name for name, _ in _wanted(machine(requirements=declared))} == set(diagnosis.COSTS)


def test_as_a_script_it_needs_nothing_but_the_standard_library():
    """What still runs when torch cannot be imported and the package is not installed."""
    code = f"import runpy, sys; sys.modules['torch'] = None; runpy.run_path({doctor.__file__!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "does not import (ModuleNotFoundError" in done.stdout or "an installation" in done.stdout
    assert "The walkthrough cannot run" in done.stdout


@pytest.mark.parametrize("minor", range(4, 14))
def test_every_python_3_can_parse_what_says_that_it_is_too_old(minor):
    ast.parse(Path(doctor.__file__).read_text(encoding="utf-8"), feature_version=(3, minor))


@pytest.mark.parametrize("version", [(3, 4, 10), (3, 8, 18), (3, 10, 13)])
def test_an_old_python_is_told_so_and_nothing_else_runs(version, monkeypatch, capsys):
    """The file as an old interpreter would run it: without the package and without newer syntax."""
    monkeypatch.setattr(sys, "version_info", (*version, "final", 0))
    with pytest.raises(SystemExit) as end:
        exec(compile(Path(doctor.__file__).read_text(encoding="utf-8"), doctor.__file__, "exec"), {"__name__": "x"})
    assert end.value.code == 1
    assert capsys.readouterr().out.startswith(f"Python {'.'.join(map(str, version))} is too old: fusionlib needs")


def old_pythons() -> list[str]:
    """Interpreters older than the project requires, on the PATH or in pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    named = [path for minor in range(4, MINIMUM_PYTHON[1]) if (path := shutil.which(f"python3.{minor}"))]
    kept = [str(path) for minor in range(4, MINIMUM_PYTHON[1]) for path in pyenv.glob(f"3.{minor}.*/bin/python")]
    works = [path for path in named + kept if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0]
    return sorted(works)


@pytest.mark.skipif(not old_pythons(), reason="this machine has no older Python")
def test_the_old_pythons_of_this_machine_are_told_so():
    for python in old_pythons():
        done = subprocess.run([python, doctor.__file__], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (1, ""), python
        assert "is too old: fusionlib needs Python 3.11 or newer" in done.stdout


def test_the_oldest_python_is_the_one_that_the_project_names():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    minimum = project["requires-python"].removeprefix(">=")
    assert ".".join(map(str, MINIMUM_PYTHON)) == minimum
    assert f"needs Python {minimum} or newer" in Path(doctor.__file__).read_text()
