"""The comment after a parameter states its limits, for people and the command line alike."""

from __future__ import annotations

import pytest

from fusionlab.checkout import repository_root
from fusionlab.notebooks.catalogue import find_notebooks
from fusionlab.notebooks.parameter_limits import broken_limit
from fusionlab.notebooks.parameters import parameters_of, parse_assignments, resolve_parameters
from fusionlib.commands.errors import UsageError

NOTEBOOKS = find_notebooks(repository_root())


@pytest.mark.parametrize(
    ("words", "kept", "broken"),
    [
        ("rows; at least 1", [1, 2, 1e9], [0, -1, 0.5]),
        ("time, milliseconds; 1 to 100", [1, 100, 1.5], [0.99, 101]),
        ("-1 to 1", [-1, 0, 1], [-1.1, 2]),
        ("a row; a multiple of 128, at least 128", [128, 4096], [0, 64, 129, -128]),
        ("a ratio; 0.5 to 2.5", [0.5, 2.5], [0.4]),
        ("anything; -1 is the last one", [-5, 0, 7], []),
        ("tokens in 3 to 5 sizes", [-5, 0, 7], []),
        ("", [0], []),
    ],
)
def test_what_the_words_say_is_kept(words, kept, broken):
    assert [broken_limit(value, words) for value in kept] == [None] * len(kept)
    assert all(broken_limit(value, words) in words.split("; ")[-1] for value in broken)
    assert all(broken_limit(value, words) for value in broken)


@pytest.mark.parametrize(("value", "limit"), [("0", "at least 2"), ("3", "a multiple of 2")])
def test_a_value_outside_is_one_sentence_before_anything_runs(checkout, value, limit):
    checkout.add("one", parameters="heads = 4  # of the call; a multiple of 2, at least 2")
    with pytest.raises(UsageError) as caught:
        resolve_parameters(find_notebooks(checkout.root), parse_assignments([f"heads={value}"]))
    assert str(caught.value) == (
        f"-p heads={value}: the value must be {limit} (of the call; a multiple of 2, at least 2)"
    )


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda notebook: notebook.name)
def test_every_default_keeps_its_own_limits(notebook):
    for parameter in parameters_of(notebook).values():
        resolve_parameters([notebook], {parameter["name"]: parameter["default"]})


def test_every_notebook_with_tokens_refuses_none():
    with_tokens = [notebook for notebook in NOTEBOOKS if "tokens" in parameters_of(notebook)]
    assert len(with_tokens) >= 8
    for notebook in with_tokens:
        with pytest.raises(UsageError, match=r"-p tokens=0: the value must be at least 1 \(.+\)$"):
            resolve_parameters([notebook], {"tokens": "0"})
