"""Every reason code has an example, which is refused with that code and no other; the documentation shows them."""

import inspect

import pytest

from fusionlab.reason_examples import EXAMPLES, explained, site, tensors
from fusionlib import explain
from fusionlib.match.opaque import registered


def test_what_the_examples_change_fuses():
    report = explain(site, *tensors(), devices="cpu")
    assert len(report.fused) == 1 and not report.refused, str(report)


@pytest.mark.parametrize("code", EXAMPLES)
def test_the_example_is_refused_with_its_code(code):
    readers = registered()
    report = explained(code)
    assert [(site.outcome, site.code) for site in report] == [("refused", code)], str(report)
    (refused,) = report
    assert refused.expected and refused.found and refused.sentence and refused.fix
    if code != "mutation":  # a graph by make_fx has no lines
        assert refused.line.rpartition(":")[0].endswith(("reason_examples.py", "fusionlib/op.py")), refused.line
    assert registered() == readers


@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_is_small(code):
    assert len(inspect.getsource(EXAMPLES[code]).splitlines()) <= 11
