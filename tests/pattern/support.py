"""Helpers shared by the tests of traced patterns."""

from __future__ import annotations

from collections.abc import Callable

from torch import fx

from fusionlab.spellings import Spelling
from fusionlib.testing.run_edited import run_edited


def run_spelling(graph_pass: Callable[[fx.Graph], object], spelling: Spelling):
    """(outputs with the pass, outputs without) of a spelling."""
    fn, inputs = spelling.build()
    return run_edited(graph_pass, fn, *inputs, dynamic=(0, 1) if spelling.dynamic else ()), fn(*inputs)
