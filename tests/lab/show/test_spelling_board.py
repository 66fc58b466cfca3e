"""The board counts the answers, and marks each by symbol and word."""

import pytest

from fusionlab.show.spelling_board import Answer, scoreboard

ANSWERS = [
    Answer("layout", "as the <b>reference</b>", True, True),
    Answer("layout", "4-D", False, True),
    Answer("dtype", "fp32 weight", False, True),
    Answer("layout", "strided", True, False),
]


def marks(drawing):
    """{(column, spelling): symbol}"""
    found = {}
    for trace in drawing.fig.data:
        if trace.mode == "markers":
            for hover in trace.hovertext:
                spelling, answer = hover.split(": ")
                found[answer.rsplit(" ", 1)[0], spelling] = trace.marker.symbol
    return found


def test_every_answer_is_a_symbol_and_a_word():
    found = marks(scoreboard(ANSWERS))
    assert len(found) == 2 * len(ANSWERS)
    assert found["traced pattern", "4-D"] == "x-thin" and found["semantic matcher", "4-D"] == "circle"
    assert found["traced pattern", "strided"] == "circle" and found["semantic matcher", "strided"] == "x-thin"
    words = [word for t in scoreboard(ANSWERS).fig.data if t.text for word in t.text]
    assert words.count("fuses") == 5 and words.count("missed") == 3


def test_classes_are_counted_and_kept_together():
    drawing = scoreboard(ANSWERS)
    assert "traced pattern finds 2 of 4 (layout 2 of 3, dtype 0 of 1)" in drawing.summary
    assert "semantic matcher 3 of 4. It misses what the pattern finds: strided." in drawing.summary
    counts = [note.text for note in drawing.fig.layout.annotations if " of " in note.text]
    assert counts == ["<b>2 of 3</b>", "<b>2 of 3</b>", "<b>0 of 1</b>", "<b>1 of 1</b>"]
    assert "misses what" not in scoreboard(ANSWERS[:3]).summary


def test_a_spelling_stands_at_the_height_of_its_answers():
    drawing = scoreboard(ANSWERS)
    labels = [trace for trace in drawing.fig.data if trace.mode == "text" and trace.x[0] == 2]
    names = {text: y for label in labels for text, y in zip(label.text, label.y, strict=True)}
    for trace in drawing.fig.data:
        if trace.mode == "markers":
            for hover, y in zip(trace.hovertext, trace.y, strict=True):
                assert names[hover.split(": ")[0]] == y
    assert len(set(names.values())) == len(ANSWERS)


def test_the_table_says_the_same_and_names_are_text():
    drawing = scoreboard(ANSWERS)
    assert drawing.table.rows[1] == ("layout", "4-D", "missed", "fuses")
    assert "as the &lt;b&gt;reference" in "".join(text for t in drawing.fig.data for text in t.text or ())
    assert not any("<b>reference" in text for t in drawing.fig.data for text in (*(t.text or ()), *(t.hovertext or ())))


def test_no_answers_no_board():
    with pytest.raises(ValueError, match="at least one"):
        scoreboard([])
