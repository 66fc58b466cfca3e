"""How many of the ways to write the computation the traced pattern finds: exactly these, no more and no fewer."""

from pathlib import Path

import pytest
import torch

from fusionlab.scoreboard import FOUND, TABLES, other_fusion, scoreboard
from fusionlab.spellings import OPAQUE_NORM, SPELLINGS
from fusionlib import GatedNorm, GroupQuant
from fusionlib.pattern import HeadShape, TracedPass
from tests.pattern.support import run_spelling
from tests.support import same


def stock_pass() -> TracedPass:
    return TracedPass([HeadShape(4, GatedNorm.vllm(128))], [GroupQuant.vllm(128)], devices=("cpu",))


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling.name)
def test_every_spelling_runs_and_the_traced_way_finds_what_the_scoreboard_says(spelling):
    traced = stock_pass()
    torch.manual_seed(11)
    got, want = run_spelling(traced, spelling)
    assert traced.fired == (spelling.name in FOUND)
    if not traced.fired:  # then the values are those of Inductor's decompositions, which need not be eager's
        torch.manual_seed(11)
        want, _ = run_spelling(lambda graph: None, spelling)
    assert len(got) == len(want) and all(map(same, got, want))


def test_an_opaque_norm_is_found_by_the_pattern_that_knows_the_op():
    traced = stock_pass()
    got, want = run_spelling(traced, OPAQUE_NORM)
    assert traced.fired == 1
    assert all(map(same, got, want))


def test_the_table_has_every_class_and_no_name_twice():
    assert len({spelling.name for spelling in SPELLINGS}) == len(SPELLINGS) >= 30
    assert {spelling.kind for spelling in SPELLINGS} == {"layout", "dtype", "scalars", "spelling", "users", "quant"}
    assert {spelling.name for spelling in SPELLINGS} >= FOUND


def test_the_same_seed_gives_the_same_values():
    spelling = SPELLINGS[0]
    outputs = []
    for _ in range(2):
        torch.manual_seed(7)
        fn, inputs = spelling.build()
        outputs.append(fn(*inputs))
    assert all(map(same, *outputs))


def test_the_documentation_has_the_table():
    page = Path(__file__).resolve().parents[2] / "docs" / "scoreboard.md"
    assert scoreboard() in page.read_text()
    for name in TABLES:
        assert name == "gated_norm" or other_fusion(name) in page.read_text()
