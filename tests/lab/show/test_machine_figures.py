"""Machine instructions are compared per element, and the sentence follows the data."""

import pytest

from fusionlab.observe.machine_code import KINDS, REST
from fusionlab.show.machine_figures import machine_bars

ORDER = (*KINDS, REST)


def kinds(*counts):
    return dict(zip(ORDER, counts, strict=True))


def test_kernels_with_unlike_shares_are_compared_by_the_element():
    drawing = machine_bars({"old <one>": (kinds(1, 1, 4, 0, 2, 0), 2), "new": (kinds(4, 0, 4, 4, 8, 0), 8)}, "for it")
    slow = drawing.fig.data[2]
    assert slow.name.startswith("slow unit") and list(slow.x) == [2, 0.5]
    assert list(slow.y) == ["old &lt;one&gt;<br>(2 per thread)", "new<br>(8 per thread)"]
    assert list(drawing.fig.data[-1].text) == [" 4.0", " 2.5"]
    assert "From 4.0 instructions per element in “old <one>” to 2.5 in “new”, 62%." in drawing.summary
    assert "“slow unit: exp, reciprocals, single conversions”: 2.00 to 0.50" in drawing.summary
    assert drawing.table.rows[1] == ("new", "8", "0.50", "0.00", "0.50", "0.50", "1.00", "0.00", "2.50")


def test_nothing_to_compare_is_refused():
    with pytest.raises(ValueError, match="at least one kernel"):
        machine_bars({}, "for it")
    with pytest.raises(ValueError, match="at least one element"):
        machine_bars({"a": (kinds(1, 1, 1, 1, 1, 1), 0)}, "for it")
