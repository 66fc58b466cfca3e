"""Nothing lower imports anything higher: read from the sources, so an import in a function counts too."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("fusionlib", "fusionlab")
#: The parts of each package, the lowest first; those of one line import nothing of each other. A part is a folder, or
#: a module outside of them; a module that is not listed has only to be free of cycles.
LAYERS = {
    "fusionlib": [
        {"spec", "devices"},
        {"kernels"},
        {"op"},
        {"block_linear"},
        {"match", "layers", "models"},
        {"fusions"},
        {"engines"},
        {"rewrite"},
        {"explanation"},
        {"pattern", "testing", "commands"},
        {"cli"},
    ],
    "fusionlab": [
        {"checkout", "codes", "files", "recorder", "spellings"},
        {"observe", "scoreboard"},
        {"versions", "exercises"},
        {"show"},
        {"notebooks", "reasons_page"},
        {"bench_command", "exercises_command", "reasons_command"},
    ],
}


def modules() -> dict[str, Path]:
    """Every module's file by its name."""
    files = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imports(name: str, source: str, known: set[str]) -> set[str]:
    """The modules of `known` that module `name` imports: at its top, in its functions, or by their names.

    Imports for the type checker alone are left out: they never run.
    """
    found, tree = set(), ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative imports are not used here"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each if each in known else node.module or "" for each in inner}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)}
    return (found & known) - {name}


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    files = modules()
    return {name: imports(name, path.read_text(encoding="utf-8"), set(files)) for name, path in files.items()}


def part(name: str) -> tuple[str, str]:
    package, _, rest = name.partition(".")
    return package, rest.partition(".")[0]


def upward(graph: dict[str, set[str]]) -> list[str]:
    """The imports that go up or sideways."""
    height = {
        (package, each): i for package, layers in LAYERS.items() for i, layer in enumerate(layers) for each in layer
    }
    return [
        f"{name} -> {other}"
        for name, others in graph.items()
        for other in others
        if part(name) != part(other) and part(name)[0] == part(other)[0] and {part(name), part(other)} <= set(height)
        if height[part(other)] >= height[part(name)]
    ]


def test_no_import_goes_up(graph):
    assert upward(graph) == []
    listed = {f"{package}.{each}" for package, layers in LAYERS.items() for layer in layers for each in layer}
    assert listed <= set(graph)


def test_no_imports_go_round(graph):
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_an_import_in_a_function_counts():
    known = {"fusionlab.observe.trace", "fusionlab.versions", "fusionlab.versions.timing"}
    for lazy in (
        "from fusionlab.versions import timing",
        "from fusionlab.versions.timing import time_all",
        "import fusionlab.versions.timing",
        "importlib.import_module('fusionlab.versions.timing')",
    ):
        found = imports("fusionlab.observe.trace", f"def f():\n    if True:\n        {lazy}", known)
        assert found == {"fusionlab.versions.timing"}
        assert upward({"fusionlab.observe.trace": found})
