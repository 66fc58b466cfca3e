from __future__ import annotations

import pytest

import fusionlib
from fusionlab.checkout import repository_root
from fusionlab.notebooks.catalogue import describe, find_notebooks, select_notebooks
from fusionlib.commands.errors import UsageError


def test_title_and_summary_are_plain_text(checkout):
    text = "# The `norm` of *one* <b>row</b> #\n\n> [!note]\n\n## Not this\n\nWhat **it** is: see [the paper](x.html)."
    about = describe(checkout.add("01_one", text=text.replace("> [!note]\n\n", "<b>html</b>\n\n")))
    assert about.name == "01_one"
    assert about.title == "The norm of one row"
    assert about.summary == "What it is: see the paper."


def test_identifiers_keep_their_underscores(checkout):
    assert describe(checkout.add("a", text="# About norm_size and head_dim")).title == "About norm_size and head_dim"


def test_a_notebook_without_a_heading_is_called_by_its_file(checkout):
    about = describe(checkout.add("plain", text="just text"))
    assert (about.title, about.summary) == ("plain", "")


def test_selection_keeps_the_order_of_the_files_and_names_the_known_ones(checkout):
    for name in ("02_b", "01_a", "03_c"):
        checkout.add(name)
    notebooks = find_notebooks(checkout.root)
    assert [nb.name for nb in select_notebooks(notebooks, [])] == ["01_a", "02_b", "03_c"]
    assert [nb.name for nb in select_notebooks(notebooks, ["notebooks/03_c.ipynb", "01_a"])] == ["01_a", "03_c"]
    with pytest.raises(UsageError, match=r"no notebook called 04_d; known: 01_a, 02_b, 03_c"):
        select_notebooks(notebooks, ["04_d"])
    with pytest.raises(UsageError, match=r"holds no \.ipynb"):
        select_notebooks([], [])


def test_a_number_is_a_name(checkout):
    for name in ("00_a", "05_b", "5b", "12_c", "notes"):
        checkout.add(name)
    notebooks = find_notebooks(checkout.root)
    assert [nb.name for nb in select_notebooks(notebooks, ["12", "0"])] == ["00_a", "12_c"]
    with pytest.raises(UsageError, match="several notebooks have the number 05: 05_b, 5b"):
        select_notebooks(notebooks, ["05"])
    with pytest.raises(UsageError, match="no notebook called 1;"):
        select_notebooks(notebooks, ["1"])


def test_a_notebook_in_another_language_is_refused_only_when_it_is_chosen(checkout):
    checkout.add("python")
    path = checkout.add("other")
    path.write_text(path.read_text().replace('"name": "python",', '"name": "R",'))
    notebooks = find_notebooks(checkout.root)
    assert [nb.name for nb in select_notebooks(notebooks, ["python"])] == ["python"]
    with pytest.raises(UsageError, match="other is written in r; only Python notebooks"):
        select_notebooks(notebooks, [])


def test_the_checkout_is_found_from_inside_it_and_else_the_packages_own(checkout, tmp_path_factory, monkeypatch):
    inside, elsewhere = checkout.root / "notebooks", tmp_path_factory.mktemp("elsewhere")
    assert repository_root(inside) == checkout.root.resolve()
    monkeypatch.setattr(fusionlib, "__file__", str(checkout.root / "fusionlib" / "__init__.py"))
    assert repository_root(elsewhere) == checkout.root.resolve()
    monkeypatch.setattr(fusionlib, "__file__", str(elsewhere / "fusionlib" / "__init__.py"))
    with pytest.raises(UsageError, match="clone the repository"):
        repository_root(elsewhere)


@pytest.mark.parametrize("damage", ["{}", "[]", "null", "", '{"cells": 5}', '{"cells": [], "metadata": []}'])
def test_a_damaged_notebook_is_named(checkout, damage):
    path = checkout.root / "notebooks" / "bad.ipynb"
    path.write_text(damage)
    with pytest.raises(UsageError, match=r"bad\.ipynb is not a notebook"):
        describe(path)
