from __future__ import annotations

import pytest

from fusionlab.notebooks.catalogue import find_notebooks
from fusionlab.notebooks.parameters import parse_assignments, resolve_parameters
from fusionlib.commands.errors import UsageError

DECLARED = """\
tokens = 8  # rows
eps = 1e-6
dtype = "bfloat16"
strict = False
sizes = [64, 128]
seed = None
"""


def resolve(checkout, *assignments: str):
    return resolve_parameters(find_notebooks(checkout.root), parse_assignments(assignments))


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("tokens=64", 64),
        ("eps=1", 1.0),
        ("eps=2e-5", 2e-5),
        ("dtype=float16", "float16"),
        ("dtype='float16'", "float16"),
        ("dtype=1", "1"),
        ("strict=true", True),
        ("strict=0", False),
        ("sizes=[1, 2]", [1, 2]),
        ("seed=3", 3),
        ("seed=abc", "abc"),
        ("seed=None", None),
        ("dtype=a=b", "a=b"),
    ],
)
def test_a_value_gets_the_type_of_its_default(checkout, assignment, value):
    checkout.add("one", parameters=DECLARED)
    name = assignment.partition("=")[0]
    resolved = resolve(checkout, assignment)["one"][name]
    assert (resolved, type(resolved)) == (value, type(value))


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("tokns=8", ["tokns", "one: tokens, eps, dtype, strict, sizes, seed"]),
        ("tokens=many", ["tokens=many", "expected int", "default 8"]),
        ("tokens=1.5", ["tokens=1.5", "expected int"]),
        ("tokens=True", ["expected int"]),
        ("strict=maybe", ["strict=maybe", "true or false"]),
        ("tokens", ["NAME=VALUE"]),
        ("=3", ["NAME=VALUE"]),
    ],
)
def test_a_wrong_assignment_names_the_value_and_the_way_out(checkout, assignment, words):
    checkout.add("one", parameters=DECLARED)
    with pytest.raises(UsageError) as caught:
        resolve(checkout, assignment)
    assert all(word in str(caught.value) for word in words)


def test_a_parameter_goes_to_the_notebooks_that_declare_it(checkout):
    checkout.add("one", parameters="tokens = 1")
    checkout.add("two", parameters="heads = 1")
    checkout.add("three")
    assert resolve(checkout, "tokens=5") == {"one": {"tokens": 5}, "three": {}, "two": {}}
    with pytest.raises(UsageError, match="one: tokens; three: none; two: heads"):
        resolve(checkout, "groups=5")


def test_a_name_given_twice_is_refused():
    with pytest.raises(UsageError, match="'1' and '2'"):
        parse_assignments(["tokens=1", "tokens=2"])


def test_a_headless_run_turns_controls_off_unless_told_otherwise(checkout):
    checkout.add("one", parameters="interactive: bool = True  # live controls\n")
    checkout.add("two", parameters="tokens = 8\n")
    assert resolve(checkout) == {"one": {"interactive": False}, "two": {}}
    assert resolve(checkout, "interactive=yes")["one"] == {"interactive": True}
