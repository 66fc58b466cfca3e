"""The files at the top of the repository agree with each other, and the wheel holds what it should."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from collections import Counter
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("fusionlib", "fusionlab")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    split = [re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;+]+)", line) for line in lines]
    assert all(split), [line for line, match in zip(lines, split, strict=True) if not match]
    names = [canonicalize_name(match[1]) for match in split]
    assert len(names) == len(set(names))
    return {name: Version(match[2]) for name, match in zip(names, split, strict=True)}


def direct_requirements() -> list[Requirement]:
    extras = PROJECT["optional-dependencies"].values()
    return [Requirement(text) for text in [*PROJECT["dependencies"], *(line for extra in extras for line in extra)]]


@pytest.mark.parametrize("requirement", direct_requirements(), ids=lambda requirement: requirement.name)
def test_every_direct_dependency_is_a_range_that_holds_its_pin(requirement):
    pinned = pins()[canonicalize_name(requirement.name)]
    assert pinned in requirement.specifier
    operators = {clause.operator for clause in requirement.specifier}
    assert operators == {">=", "<"}, "a range has a lower and an upper end"


def test_the_core_needs_torch_and_triton_only():
    core = [Requirement(text) for text in PROJECT["dependencies"]]
    assert [requirement.name for requirement in core] == ["torch", "triton"]
    assert str(core[1].marker) == 'sys_platform == "linux"'


def test_the_tested_set_is_complete():
    """Whatever an installed pinned distribution requires on this platform is pinned too."""
    from importlib.metadata import PackageNotFoundError, requires

    missing = []
    for name in pins():
        try:
            declared = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue
        needed = [r.name for r in declared if r.marker is None or r.marker.evaluate({"extra": ""})]
        missing += [(name, other) for other in needed if canonicalize_name(other) not in pins()]
    platform_only = ("nvidia-", "cuda-")
    assert [pair for pair in missing if not pair[1].startswith(platform_only)] == []


def test_what_is_installed_is_the_tested_set_when_make_installed_it():
    stamp = Path(sys.prefix) / ".installed"
    if not stamp.exists():
        pytest.skip("this environment was not made by `make`")
    from importlib.metadata import version

    different = {name: version(name) for name in ("torch", "triton", "papermill", "nbconvert", "plotly")}
    assert {name: Version(found).public for name, found in different.items()} == {
        name: str(pins()[name]) for name in different
    }


def test_environment_yml_installs_the_same_set():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = environment["dependencies"]
    assert pip == "pip"
    minimum = PROJECT["requires-python"].removeprefix(">=")
    assert python == f"python={minimum}"
    extras = ",".join(PROJECT["optional-dependencies"])
    assert packages == {"pip": ["-c constraints.txt", f"-e .[{extras}]"]}


def test_the_makefile_installs_the_same_set():
    makefile = (ROOT / "Makefile").read_text()
    extras = ",".join(PROJECT["optional-dependencies"])
    assert f"EXTRAS := {extras}\n" in makefile
    assert "-c constraints.txt -e '.[$(EXTRAS)]'" in makefile


def test_lint_checks_the_types_that_the_package_ships():
    settings = PYPROJECT["tool"]["mypy"]
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"]["fusionlib"]
    assert settings["packages"] == ["fusionlib"]
    assert settings["python_version"] == PROJECT["requires-python"].removeprefix(">=")
    assert settings["disallow_untyped_defs"] and settings["warn_unused_ignores"]
    lint = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "\t$(BIN)/mypy\n" in lint[1]
    assert "mypy" in [Requirement(text).name for text in PROJECT["optional-dependencies"]["test"]]


def test_what_the_type_checker_leaves_out_is_named_one_by_one():
    """Modules whose functions cannot be annotated exist, and an ignored line names what is ignored there."""
    untyped = [each for each in PYPROJECT["tool"]["mypy"]["overrides"] if "disallow_untyped_defs" in each]
    for module in (name for each in untyped for name in each["module"]):
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists(), module
    lines = [line for path in (ROOT / "fusionlib").rglob("*.py") for line in path.read_text("utf-8").splitlines()]
    assert [line for line in lines if re.search(r"#\s*type:\s*ignore(?!\[[a-z-]+\])", line)] == []


def test_pre_commit_uses_the_tested_versions():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    revisions = {Path(hook["repo"]).name: hook["rev"].removeprefix("v") for hook in hooks}
    assert revisions["ruff-pre-commit"] == str(pins()["ruff"])
    assert revisions["nbstripout"] == str(pins()["nbstripout"])


def test_ci_calls_the_same_commands():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert commands == [".ci/run"]
    script = (ROOT / ".ci/run").read_text()
    assert script.index("make test") < script.index("make walkthrough")


def test_the_constraints_name_no_index_and_no_platform():
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"://|--|@|^(nvidia|cuda)[-_]", text, re.MULTILINE)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata
    ids = [cell.get("id") for cell in notebook.cells]
    assert None not in ids
    assert len(set(ids)) == len(ids)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.id for cell in code if cell.outputs or cell.execution_count is not None] == []
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1


def test_the_examples_in_readme_and_docs_run(capsys):
    from fusionlib.fusions.producer_ops import producers_kept, registered_producers
    from fusionlib.match.opaque import readers_kept, registered

    (rewrite,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    use = (ROOT / "docs" / "use.md").read_text()
    op, others, outcomes, readers, model = re.findall(r"```python\n(.*?)```", use, flags=re.DOTALL)
    names: dict = {}
    exec(op, names)
    assert names["q"].shape == names["y"].shape == (16, 4096)
    assert names["scale"].shape == (16, 32)
    exec(others, names)
    assert names["q"].shape == (16, 5120) and names["total"].shape == (16, 2048)
    exec(compile(outcomes, "model.py", "exec"), names)
    (printed,) = re.findall(r"```text\n(.*?)```", use, flags=re.DOTALL)
    assert _without_numbers(printed) == _without_numbers(capsys.readouterr().out)
    exec(model, names)
    told = capsys.readouterr().out
    assert "1 linear layer in block-FP8, 0 left" in told and "1 fused, 0 refused in 1 graph" in told
    with readers_kept(), producers_kept():
        exec(readers, names)
        assert {"mine::quant_", "triton kernel mine.kernels.quant_kernel"} <= set(registered())
        assert "mine::rms_norm" in registered_producers()
    names = {}
    exec(rewrite, names)
    assert names["fusion"].report().summary.startswith("1 fused, 0 refused")


def _without_numbers(report: str) -> str:
    """A report on one line, without numbers of nodes and of lines in this package, which every edit may move."""
    return re.sub(r"(%[a-z_]+?)_?\d*\b|(fusionlib/\w+\.py):\d+", r"\1\2", " ".join(report.split()))


def test_the_readme_says_how_large_the_library_is():
    sources = (ROOT / "fusionlib").rglob("*.py")
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in sources)
    (said,) = re.findall(r"`fusionlib/` has ([\d,]+) lines", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert int(said.replace(",", "")) == pytest.approx(lines, rel=0.05)


def test_the_readme_lists_the_built_in_fusions():
    from fusionlib.fusions import BUILT_IN

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.partition("| fusion | what it reads")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE) == [fusion.name for fusion in BUILT_IN]


def test_the_library_imports_nothing_of_the_walkthrough():
    """Everything in it, in one process: neither by an import at the top nor by one in a function that is imported."""
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in (ROOT / "fusionlib").rglob("*.py")
        if path.name != "doctor.py"  # also a script
    ]
    code = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
        "lab = {'fusionlab', 'plotly', 'IPython', 'ipywidgets', 'nbformat', 'nbconvert', 'papermill', 'transformers'}\n"
        "print(sorted(lab & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"
    mentions = [path for path in (ROOT / "fusionlib").rglob("*.py") if "fusionlab" in path.read_text(encoding="utf-8")]
    assert not mentions


def test_no_module_name_is_used_twice():
    """Apart from those that mean the same wherever they stand."""
    alike = {"__init__", "command", "explain", "quant"}
    alike |= {"gated_norm", "rms_norm", "act_and_mul"}  # a producer: its kernel, and its fusion
    alike |= {"activation"}  # silu, sigmoid, gelu: their device code, and how they are read from a graph
    names = [path.stem for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path.stem not in alike]
    assert sorted(name for name, times in Counter(names).items() if times > 1) == []


def test_importing_the_package_loads_no_plotly_and_no_jupyter():
    code = (
        "import sys, fusionlib\n"
        "heavy = {'plotly', 'IPython', 'ipywidgets', 'jupyter_client', 'nbformat', 'nbconvert', 'papermill'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """Build from a copy: setuptools writes its scratch folders beside the sources."""
    import shutil

    source = tmp_path_factory.mktemp("source") / "fusionlib"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (source / "dist").glob("*.whl")
    assert built.name == f"fusionlib-{PROJECT['version']}-py3-none-any.whl"
    return zipfile.ZipFile(built)


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    files = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == files
    assert "fusionlib/py.typed" in held
    assert "fusionlab/notebooks/templates/page/index.html.j2" in held
    assert "fusionlab/notebooks/assets/site.css" in held


def test_the_wheel_declares_its_command_and_licence(wheel):
    (entry_points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    declared = wheel.read(entry_points).decode()
    assert "fusionlib = fusionlib.cli:main" in declared
    assert "bench = fusionlab.bench_command\n" in declared
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())
