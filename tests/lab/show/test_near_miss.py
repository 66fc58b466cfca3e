"""The picture of a site says what the site says: pairs, the failing pair, words, all without markup."""

from dataclasses import replace

import pytest

from fusionlab.show.near_miss import LEFT, RIGHT, near_miss
from fusionlab.show.theme import PALETTE
from fusionlib.match import REASONS
from fusionlib.rewrite.report import CompileRecord, Site

NODES = (
    ("cast", "prims.convert_element_type.default", "float8_e4m3fn [6, 4, 128]", "codes = y.to(fp8)"),
    ("clamp_max", "aten.clamp_max.default", "float32 [6, 4, 128]", ""),
    ("div_2", "aten.div.Tensor", "float32 [6, 4, 128]", ""),
    ("div_1", "aten.div.Tensor", "float32 [6, 4, 1]", ""),
    ("amax", "aten.amax.default", "float32 [6, 4, 1]", "amax = y.abs().amax()"),
    ("arg0_1", "arg0_1", "bfloat16 [6, 4, 128]", ""),
)
QUANT = (
    ("cast", "cast"),
    ("clamp", "clamp_max"),
    ("quotient", "div_2"),
    ("scale", "div_1"),
    ("scale = amax / fp8_max", "div_1"),
)
MISS = Site(
    "refused", "cast", "amax", "model.py:7", QUANT, code="amax_source", expected="the maximum of %y",
    found="another's maximum", nodes=NODES, fusion="gated_norm",
)  # fmt: skip
MATCH = Site(
    "fused", "cast", "cast", "model.py:9",
    (*QUANT, ("normed", "div_2"), ("product of x, rsqrt", "div_2"), ("x", "arg0_1")),
    what="norm, gate -> float8", nodes=NODES, fusion="gated_norm",
)  # fmt: skip
UNCLAIMED = Site(
    "unclaimed", "cast", "mul", "model.py:8", QUANT, what="a fusion would save 6,144 bytes, one write and one read",
    found="%mul = aten.mul.Tensor (bfloat16 [6, 4, 128])",
    nodes=(*NODES, ("mul", "aten.mul.Tensor", "bfloat16 [6, 4, 128]", "y = up * F.silu(gate)")),
)  # fmt: skip


def lines(drawing, dash=None):
    return [t for t in drawing.fig.data if t.mode == "lines" and t.line.dash == dash]


def texts(drawing) -> str:
    found = [text for trace in drawing.fig.data for text in (trace.text or ())]
    return "\n".join([*found, *(note.text for note in drawing.fig.layout.annotations)])


def test_every_pair_is_a_numbered_line_between_the_columns():
    drawing = near_miss(MATCH)
    ends = [(tuple(line.x)[1], tuple(line.y)) for line in lines(drawing)]
    # scale and its arithmetic share a row, as do normed and the product: one node matches both
    assert ends == [
        (RIGHT, (0, 0)),
        (RIGHT, (1, 1)),
        (RIGHT, (2, 2)),
        (RIGHT, (3, 3)),
        (RIGHT, (4, 2)),
        (RIGHT, (5, 5)),
    ]
    numbers = next(trace for trace in drawing.fig.data if trace.mode == "markers+text")
    assert list(numbers.text) == ["1", "2", "3", "4", "5", "6"] and set(numbers.x) == {LEFT}
    assert "scale = amax / fp8_max" in texts(drawing) and "float8_e4m3fn [6, 4, 128]" in texts(drawing)
    assert "clamp_max · float32" in texts(drawing) and "input · bfloat16" in texts(drawing)


def test_a_match_has_no_failing_pair():
    drawing = near_miss(MATCH)
    assert not lines(drawing, "dash") and PALETTE["vermillion"] not in drawing.fig.to_json()
    assert "6 parts were found in 5 nodes" in drawing.summary and MATCH.what in drawing.summary
    assert "not found" not in texts(drawing) and "stop" not in [row[0] for row in drawing.table.rows]


def test_the_failing_pair_is_marked_by_dash_and_symbol_and_said_in_words():
    drawing = near_miss(MISS)
    (failing,) = lines(drawing, "dash")
    assert failing.y[0] == failing.y[1] > 3
    crosses = [t for t in drawing.fig.data if t.mode == "markers" and t.marker.symbol == "x"]
    assert [tuple(t.y) for t in crosses] == [(failing.y[0],)]
    for words in (drawing.summary, texts(drawing)):
        assert MISS.expected in words and MISS.found in words and "model.py:7" in words
        assert REASONS["amax_source"].fix.split(",")[0] in words.replace("<br>", " ")
    assert "amax = y.abs().amax()" in texts(drawing)
    assert MISS.code in drawing.caption and "%amax" in drawing.alt


def test_an_unclaimed_site_names_its_producer_and_looks_like_no_failure():
    drawing = near_miss(UNCLAIMED)
    assert not lines(drawing, "dash") and PALETTE["vermillion"] not in drawing.fig.to_json()
    (dotted,) = lines(drawing, "dot")
    assert dotted.y[0] == dotted.y[1] > 3
    assert drawing.caption == "%cast, unclaimed." and "%mul" in drawing.alt
    for words in (texts(drawing), drawing.summary):
        assert "mul" in words and "model.py:8" in words and "6,144 bytes" in words
    assert "not found" not in texts(drawing) and "expected" not in texts(drawing)
    rows = drawing.table.rows
    assert rows[4] == ("", "what is quantised", *UNCLAIMED.nodes[-1])
    assert rows[5:] == [("", "worth", "", "", "", UNCLAIMED.what)]
    also_unread = near_miss(replace(UNCLAIMED, code="per_tensor_static"))
    assert REASONS["per_tensor_static"].sentence in also_unread.summary and "also unread" in texts(also_unread)


def test_a_node_is_not_described_twice_but_what_is_said_of_it_is_shown():
    itself = "%amax = aten.amax.default (float32 [6, 4, 1])"
    assert "found: " not in texts(near_miss(replace(MISS, found=itself)))
    assert "found: also used by %output" in texts(near_miss(replace(MISS, found=f"{itself} also used by %output")))


def test_what_was_not_found_is_listed():
    drawing = near_miss(MISS)
    unfound = [row[1] for row in drawing.table.rows if row[2] == "not found"]
    assert unfound == ["amax", "normed", "rsqrt", "mean", "square", "x", "gate"]
    opaque = replace(MISS, pairs=(("opaque quantisation", "cast"),))
    unfound = [row[1] for row in near_miss(opaque).table.rows if row[2] == "not found"]
    assert unfound == ["normed", "rsqrt", "mean", "square", "x", "gate"]


def test_the_table_says_the_same():
    rows = near_miss(MISS).table.rows
    assert [row[:3] for row in rows[:4]] == [
        ("1", "cast", "cast"), ("2", "clamp", "clamp_max"), ("3", "quotient", "div_2"),
        ("4", "scale = amax / fp8_max", "div_1"),
    ]  # fmt: skip
    assert rows[4] == ("stop", "", "amax", "aten.amax.default", "float32 [6, 4, 1]", "amax = y.abs().amax()")
    assert {row[1]: row[5] for row in rows[5:8]} == {
        "expected": MISS.expected, "found": MISS.found, "fix": REASONS["amax_source"].fix,
    }  # fmt: skip


def test_a_miss_at_the_first_node_and_a_node_matched_before():
    nothing = near_miss(replace(MISS, pairs=(), node="cast"))
    assert nothing.summary.startswith("Nothing was found; it stopped at %cast")
    again = near_miss(replace(MISS, node="div_2"))
    assert "the same node as in 3" in texts(again)


def test_operations_are_named_alike_everywhere_in_the_picture():
    words = "the maximum of %y = prims.convert_element_type.default (bfloat16 [6, 4])"
    drawing = near_miss(replace(MISS, expected=words))
    assert "prims." not in texts(drawing) and "convert_element_type" in texts(drawing)
    assert words in drawing.summary


def test_a_report_out_of_a_cache_is_drawn_alike():
    (cached,) = CompileRecord.decode(CompileRecord((MISS,)).encode()).sites
    assert near_miss(cached).fig.to_json() == near_miss(MISS).fig.to_json()


def test_a_site_that_tells_only_names_is_drawn():
    drawing = near_miss(replace(MISS, nodes=()))
    assert "clamp_max" in texts(drawing) and drawing.summary == near_miss(MISS).summary


@pytest.mark.parametrize("field", ["expected", "found", "line", "nodes"])
def test_foreign_text_holds_no_markup(field):
    evil = "<img src=x onerror=alert(1)>"
    value = tuple((name, op, tensor, evil) for name, op, tensor, _ in NODES) if field == "nodes" else evil
    drawing = near_miss(replace(MISS, **{field: value}))
    assert "<img" not in drawing.fig.to_json()
    assert "<img" not in drawing.table.html()


def test_rows_do_not_overlap_and_fit():
    for site in (MISS, MATCH, UNCLAIMED, replace(MISS, expected="word " * 60, found="word " * 60)):
        fig = near_miss(site).fig
        low, high = fig.layout.yaxis.range[1], fig.layout.yaxis.range[0]
        ys = [y for trace in fig.data for y in trace.y]
        assert low < min(ys) and max(ys) < high
        assert fig.layout.height == pytest.approx(38 * (high - low), abs=1)
