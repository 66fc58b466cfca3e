"""Code written in a notebook runs in a fresh process as it does here."""

from __future__ import annotations

import linecache
import types

import pytest

from fusionlab.exercises import elsewhere
from fusionlab.exercises.elsewhere import ElsewhereError, results

CELL = '''
import hashlib
import inspect
import json as js

FACTOR = 3

def helper(n):
    """Twice."""
    return FACTOR * n

class Base:
    def __init__(self, n=1, *, read=helper):
        self.n, self.read = n, read

    @property
    def value(self):
        return self.read(self.n)

    @staticmethod
    def dumps(what):
        return js.dumps(what)

class Mine(Base):
    def value_twice(self):
        return super().value * 2

    def source(self):
        return inspect.getsource(self.read) + inspect.getsource(type(self).value_twice)

def outer(n):
    return lambda k: n + k

add_four = outer(4)

def asked():
    mine = Mine(5)
    return mine.value, mine.value_twice(), mine.dumps([1]), mine.source(), add_four(1), helper.__doc__

def salted():
    return hash("text")

def ordered():
    return "".join({"a", "b", "c", "d", "e", "f"})

def ends():
    raise SystemExit("gone")

def spins():
    while True:
        pass

stream = open("/dev/null")

def holds_a_file():
    return stream
'''


@pytest.fixture
def cell():
    """A cell's names as a notebook's kernel defines them: in __main__, with source lines that are in no file."""
    name = "/nowhere/ipykernel_1/2.py"
    linecache.cache[name] = (len(CELL), None, CELL.splitlines(keepends=True), name)
    scope = {"__name__": "__main__"}
    exec(compile(CELL, name, "exec"), scope)
    yield types.SimpleNamespace(**scope)
    del linecache.cache[name]
    scope["stream"].close()


def test_functions_and_classes_travel_with_all_that_they_refer_to(cell):
    (there,) = results(cell.asked, seeds=(5,))
    assert there == cell.asked()
    assert "return FACTOR * n" in there[3] and "super().value * 2" in there[3]


def test_hash_is_salted_differently(cell):
    def all_three(*functions):
        return [function() for function in functions]

    first, second = results(all_three, cell.salted, cell.ordered)
    assert first[0] != second[0] and first[1] != second[1]


@pytest.mark.parametrize(
    ("name", "said"), [("ends", "gone"), ("spins", "does not end"), ("holds_a_file", "stream|pickle")]
)
def test_what_fails_there_is_told(cell, name, said):
    with pytest.raises(ElsewhereError, match=said):
        results(getattr(cell, name), seeds=(1,), seconds=60 if name != "spins" else 1)


def test_what_can_be_imported_is_not_copied():
    assert elsewhere._is_importable(linecache.getline) and not elsewhere._is_importable(lambda: 0)
