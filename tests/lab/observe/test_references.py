"""Every reference file is valid, and says that its numbers are not this project's."""

import json
from pathlib import Path

import pytest

from fusionlab.observe.references import ReferenceFileError, read_reference

FOLDER = Path(__file__).parents[3] / "data" / "reference"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*")), ids=lambda path: path.name)
def test_every_reference_has_the_form(path):
    assert path.suffix == ".json"
    found = read_reference(path)
    assert found.measured_by_this_project is False
    assert "not measured by this project" in found.note
    assert found.values


@pytest.mark.parametrize(
    "change",
    [
        {"measured_by_this_project": True},
        {"measured_by_this_project": "no"},
        {"url": "vllm"},
        {"title": " "},
        {"extra": 1},
        {"values": {"before": 9.0}},
        {"values": {"before_us": "9"}},
        {"values": {"before_us": True}},
        {"values": []},
    ],
)
def test_a_reference_of_another_form_is_refused(tmp_path, change):
    data = json.loads((FOLDER / "pr40710.json").read_text()) | change
    (tmp_path / "r.json").write_text(json.dumps(data))
    with pytest.raises(ReferenceFileError, match=r"r\.json"):
        read_reference(tmp_path / "r.json")


def test_an_unreadable_reference_is_named(tmp_path):
    (tmp_path / "r.json").write_text("{")
    for path in (tmp_path / "r.json", tmp_path / "absent", tmp_path):
        with pytest.raises(ReferenceFileError, match="cannot be read"):
            read_reference(path)
