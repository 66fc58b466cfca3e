"""Tiny checkouts of fusionlib with notebooks made for single tests, and a browser to read them in."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nbformat
import pytest

from fusionlab.checkout import repository_root
from fusionlab.notebooks import png
from fusionlib.commands.errors import UsageError
from tests.lab.notebooks.jupyterlab import PATIENCE, jupyterlab

v4 = nbformat.v4
ROOT = repository_root(Path(__file__))


class Checkout:
    """A folder that the tools accept as a checkout: a pyproject.toml and notebooks/."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "notebooks").mkdir()
        (root / "pyproject.toml").write_text('[project]\nname = "fusionlib"\n')

    def add(self, name: str, *code: str, parameters: str = "", text: str = "# A title\n\nA summary.") -> Path:
        cells = [v4.new_markdown_cell(text, id="about")]
        if parameters:
            cells.append(v4.new_code_cell(parameters, id="parameters", metadata={"tags": ["parameters"]}))
        cells += [v4.new_code_cell(source, id=f"code-{index}") for index, source in enumerate(code)]
        return self.write(name, cells)

    def write(self, name: str, cells: list) -> Path:
        metadata = {
            "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"},
            "language_info": {"name": "python", "pygments_lexer": "ipython3"},
        }
        path = self.root / "notebooks" / f"{name}.ipynb"
        nbformat.write(v4.new_notebook(cells=cells, metadata=metadata), path)
        return path


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


@pytest.fixture(scope="session")
def has_browser() -> None:
    """Skips if there is no browser, and fails if one is required, as in CI."""
    try:
        with png.browser():
            pass
    except UsageError as error:
        (pytest.fail if os.environ.get("FUSIONLIB_TESTS_NEED_BROWSER") else pytest.skip)(str(error))


@pytest.fixture(scope="module")
def browser(has_browser):
    with png.browser() as chromium:
        yield chromium


@pytest.fixture(scope="session")
def lab_folder(tmp_path_factory) -> Path:
    """What JupyterLab serves: a copy of this checkout's notebooks beside its data."""
    folder = tmp_path_factory.mktemp("lab")
    shutil.copytree(ROOT / "notebooks", folder / "notebooks")
    (folder / "data").symlink_to(ROOT / "data")
    return folder


@pytest.fixture(scope="session")
def lab(has_browser, lab_folder, tmp_path_factory) -> str:
    """The address of a running JupyterLab."""
    pytest.importorskip("jupyterlab", reason="the notebooks extra is not installed")
    with jupyterlab(lab_folder, tmp_path_factory.mktemp("home"), ROOT) as address:
        yield address


@pytest.fixture
def lab_page(browser):
    """A laptop's window for JupyterLab."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(PATIENCE)
    # A slow start may ask, even twice, which kernel to use; the offered one is fine.
    page.add_locator_handler(
        page.locator(".jp-Dialog").first,
        lambda dialog: dialog.locator(".jp-mod-accept").click(),
        no_wait_after=True,
    )
    yield page
    page.close()
