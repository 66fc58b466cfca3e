"""What is installed, what was expected, and what each missing part costs: the logic of `fusionlib doctor`.

The expected versions come from the metadata of the installed distribution, so that pyproject.toml is the only place
that states them. This must run where only Python works: it imports nothing but the standard library at the top,
compares plain release numbers instead of using `packaging`, and wraps every probe of torch in a try.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from fusionlib.devices import converts_to_fp8

MINIMUM_PYTHON = (3, 11)

# What is lost without a package. True marks those that the walkthrough needs.
COSTS: dict[str, tuple[bool, str]] = {
    "torch": (True, "nothing runs"),
    "triton": (True, "no fused kernel, and no offline compilation for GPUs that are not here"),
    "graphlay": (False, "no figures of graphs; notebooks 02 and 04 stop at theirs"),
    "ipykernel": (True, "notebooks have no kernel to run in"),
    "ipython": (True, "notebooks cannot show a figure"),
    "ipywidgets": (False, "no controls in JupyterLab; every figure has a static form"),
    "jinja2": (True, "no offline page"),
    "jupyterlab": (False, "no `make lab`; headless runs and the site work"),
    "nbclient": (True, "notebooks cannot be executed headlessly"),
    "nbconvert": (True, "no offline page"),
    "nbformat": (True, "notebooks cannot be read"),
    "numpy": (True, "no figures"),
    "papermill": (True, "notebooks cannot be executed headlessly"),
    "plotly": (True, "no figures"),
    "pygments": (True, "no offline page"),
    "traitlets": (True, "no offline page"),
    "transformers": (True, "no real model to take the notebooks' inputs from"),
}
EXTRAS = ("notebooks", "models")


@dataclass(frozen=True)
class Gpu:
    """A GPU as torch sees it; `arch` is set on AMD only, for example gfx942."""

    name: str
    capability: tuple[int, int]
    arch: str | None = None

    @property
    def converts_to_fp8(self) -> bool:
        """Whether the kernels can convert to e4m3 on this GPU."""
        return converts_to_fp8(self.capability, self.arch)


@dataclass(frozen=True)
class Machine:
    """The facts that a diagnosis is based on; tests construct their own."""

    python: tuple[int, int, int]
    platform: str
    version_of: Callable[[str], str | None]
    requirements: Sequence[str] | None
    compiler: str | None = None
    gpu: Gpu | None = None
    torch_error: str | None = None


@dataclass(frozen=True)
class Finding:
    """One line of the table. `state` is ok, missing or differs; a blocking finding stops the walkthrough."""

    part: str
    found: str
    expected: str
    state: str
    cost: str = field(default="")
    blocking: bool = False


def diagnose(machine: Machine) -> list[Finding]:
    """Compare a machine with what fusionlib expects; reads nothing but its argument."""
    findings = [_python(machine)]
    if machine.requirements is None:
        cost = "expected versions are unknown; run pip install -e . in the checkout"
        findings.append(Finding("fusionlib", "not installed", "an installation", "missing", cost, blocking=True))
    else:
        findings += [_package(machine, *wanted) for wanted in _wanted(machine)]
    return [*findings, _compiler(machine), _gpu(machine)]


def _python(machine: Machine) -> Finding:
    found = ".".join(map(str, machine.python))
    expected = f">={'.'.join(map(str, MINIMUM_PYTHON))}"
    if machine.python[:2] >= MINIMUM_PYTHON:
        return Finding("Python", found, expected, "ok")
    return Finding("Python", found, expected, "differs", "fusionlib cannot be installed", blocking=True)


def _wanted(machine: Machine) -> list[tuple[str, str]]:
    """Return (name, version range) of the core packages, then of the extras that the walkthrough uses."""
    wanted: dict[str, str] = {}
    for requirement in machine.requirements or ():
        declaration, _, marker = requirement.partition(";")
        extra = re.search(r"extra\s*==\s*['\"](\w+)['\"]", marker)
        if extra and extra[1] not in EXTRAS:
            continue
        if "sys_platform" in marker and f"'{machine.platform}'" not in marker.replace('"', "'"):
            continue
        name, spec = _parsed(r"([\w.-]+)\s*\(?([^)]*)\)?", declaration.strip()).groups()
        wanted[name.lower()] = ",".join(sorted(spec.replace(" ", "").split(","), reverse=True))
    return list(wanted.items())


def _package(machine: Machine, name: str, expected: str) -> Finding:
    needed, cost = COSTS.get(name, (False, "whatever imports it fails"))
    if name == "torch" and machine.torch_error:
        return Finding(name, machine.torch_error, expected, "missing", "nothing runs", blocking=True)
    found = machine.version_of(name)
    if found is None:
        return Finding(name, "not installed", expected, "missing", cost, blocking=needed)
    if satisfies(found, expected):
        return Finding(name, found, expected, "ok")
    return Finding(name, found, expected, "differs", "untested with this version", blocking=False)


def _compiler(machine: Machine) -> Finding:
    if machine.compiler:
        return Finding("C compiler", machine.compiler, "any", "ok")
    cost = "Triton builds no launcher on a GPU, and Inductor compiles nothing on the CPU; eager code runs"
    return Finding("C compiler", "none", "any", "missing", cost)


def _gpu(machine: Machine) -> Finding:
    expected = "one that converts to FP8"
    gpu = machine.gpu
    if gpu is None:
        return Finding("GPU", "none", expected, "missing", "no measurements; the reference path runs on the CPU")
    found = f"{gpu.name} ({gpu.arch or 'sm_{}{}'.format(*gpu.capability)})"
    if gpu.converts_to_fp8:
        return Finding("GPU", found, expected, "ok")
    cost = "Triton cannot convert to FP8 e4m3 on it; the reference path runs there, in many kernels"
    return Finding("GPU", found, expected, "differs", cost)


def satisfies(version: str, spec: str) -> bool:
    """Compare release numbers with a range such as `>=2.11,<2.14`; supports the operators used in pyproject.toml."""
    for clause in filter(None, spec.split(",")):
        operator, bound = _parsed(r"(>=|<=|==|!=|<|>)(.+)", clause).groups()
        found, limit = _release(version), _release(bound)
        width = max(len(found), len(limit))
        found, limit = (part + (0,) * (width - len(part)) for part in (found, limit))
        holds = {
            ">=": found >= limit, "<=": found <= limit, "==": found == limit,
            "!=": found != limit, "<": found < limit, ">": found > limit,
        }  # fmt: skip
        if not holds[operator]:
            return False
    return True


def _release(version: str) -> tuple[int, ...]:
    return tuple(map(int, _parsed(r"(\d+(?:\.\d+)*).*", version)[1].split(".")))


def _parsed(pattern: str, text: str) -> re.Match[str]:
    found = re.fullmatch(pattern, text)
    if found is None:
        raise ValueError(f"{text!r} is not of the form {pattern}")
    return found


def can_run(findings: Sequence[Finding]) -> bool:
    """Return whether the walkthrough can run."""
    return not any(finding.blocking for finding in findings)


def render(findings: Sequence[Finding]) -> str:
    """Return the table as plain text with aligned columns, and the verdict below it."""
    header = ("", "found", "expected", "")
    rows = [header] + [
        (f.part, f.found, f.expected, f.state if f.state == "ok" else f.state + _colon(f)) for f in findings
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    blockers = [finding.part for finding in findings if finding.blocking]
    verdict = "The walkthrough can run."
    if blockers:
        verdict = f"The walkthrough cannot run: {', '.join(blockers)}. `make walkthrough` installs the tested set."
    return "\n".join(line.rstrip() for line in [*lines, "", verdict])


def _colon(finding: Finding) -> str:
    return f": {finding.cost}" if finding.cost else ""


def this_machine() -> Machine:
    """Collect the facts about the machine and environment that this process runs in."""
    gpu, torch_error = _probe_torch()
    return Machine(
        python=sys.version_info[:3],
        platform=sys.platform,
        version_of=installed_version,
        requirements=_requirements(),
        compiler=_find_compiler(),
        gpu=gpu,
        torch_error=torch_error,
    )


def installed_version(name: str) -> str | None:
    """Return the version of an installed distribution, or None."""
    from importlib import metadata  # imported here because it takes a third of a command's start-up time

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _requirements() -> list[str] | None:
    from importlib import metadata

    try:
        return metadata.requires("fusionlib") or []
    except metadata.PackageNotFoundError:
        return None


def _find_compiler() -> str | None:
    candidates = [os.environ.get("CC", "").split(" ")[0], "cc", "gcc", "clang"]
    return next(filter(None, map(shutil.which, filter(None, candidates))), None)


def _probe_torch() -> tuple[Gpu | None, str | None]:
    """Return the GPU that torch sees, and, if torch is installed but broken, why it cannot be imported."""
    if installed_version("torch") is None:
        return None, None
    try:
        import torch

        if not torch.cuda.is_available():
            return None, None
        properties: Any = torch.cuda.get_device_properties(0)
        arch = properties.gcnArchName.split(":")[0] if torch.version.hip else None
        return Gpu(properties.name, (properties.major, properties.minor), arch), None
    except Exception as error:  # a broken installation can raise anything; it is reported
        return None, f"does not import ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
