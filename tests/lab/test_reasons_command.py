"""`fusionlib reasons` from the command line."""

from pathlib import Path

from fusionlab.reason_examples import EXAMPLES
from fusionlib.cli import main


def test_one_reason_is_explained_by_its_example(capsys):
    assert main(["reasons", "bias"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("bias: A bias is added") and "def bias(x, gate, weight):" in out


def test_a_misspelt_reason_is_named(capsys):
    assert main(["reasons", "biass"]) == 2
    assert "did you mean bias?" in capsys.readouterr().err


def test_the_documentation_is_the_page_of_reasons(capsys):
    page = Path(__file__).resolve().parents[2] / "docs" / "reasons.md"
    assert main(["reasons"]) == 0
    assert capsys.readouterr().out == page.read_text(encoding="utf-8")
    assert all(f"### {code}" in page.read_text(encoding="utf-8") for code in EXAMPLES)
