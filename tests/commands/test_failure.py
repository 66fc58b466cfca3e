"""Any exception as one line."""

import pytest

from fusionlib.commands.failure import in_a_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("one\ntwo"), "ValueError: one"),
        (RuntimeError(), "RuntimeError: "),
        (RuntimeError("backend='b' raised:\nIndexError: 7\n\nand more"), "RuntimeError: IndexError: 7"),
        (OSError("x" * 200), "OSError: " + "x" * 160),
    ],
)
def test_the_type_and_the_first_line(error, line):
    assert in_a_line(error) == line


def test_a_limit_of_its_own():
    assert in_a_line(ValueError("abcdef"), 3) == "ValueError: abc"
