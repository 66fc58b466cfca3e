"""A running JupyterLab, and a user's actions in it: open a notebook, run it, move a control, save."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TimeoutError = pytest.importorskip("playwright.sync_api", reason="the test extra is not installed").TimeoutError
PATIENCE = 180_000  # milliseconds; a busy machine is slow


@contextmanager
def jupyterlab(folder: Path, home: Path, root: Path) -> Iterator[str]:
    """The address of a JupyterLab that serves `folder` without user settings; its kernels import from `root`."""
    # Cells outside the viewport are not in the page by default, but the tests look for them there.
    settings = home / "config" / "lab" / "user-settings" / "@jupyterlab" / "notebook-extension"
    settings.mkdir(parents=True)
    (settings / "tracker.jupyterlab-settings").write_text('{"windowingMode": "none"}')
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTER_PREFER_ENV_PATH": "1",
        "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0"]
    command += ["--IdentityProvider.token=t", f"--ServerApp.root_dir={folder}", "--LabApp.check_for_updates_class="
                "jupyterlab.handlers.announcements.NeverCheckForUpdate"]  # fmt: skip
    with (home / "log").open("w") as log:
        server = subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
        try:
            yield _address(home / "runtime", server, home / "log")
        finally:
            server.terminate()
            server.wait(30)


def _address(runtime: Path, server: subprocess.Popen, log: Path) -> str:
    deadline = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < deadline and server.poll() is None:
        for path in runtime.glob("jpserver-*.json"):
            try:
                return json.loads(path.read_text())["url"]
            except ValueError:
                pass  # not completely written yet
        time.sleep(0.2)
    pytest.fail(f"JupyterLab did not start:\n{log.read_text()[-2000:]}")


def open_notebook(page, address: str, name: str) -> None:
    """Open a notebook in a new workspace, and wait until its kernel is ready."""
    page.goto(f"{address}lab/workspaces/{Path(name).stem}/tree/{name}?token=t")
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")


def run_all(page) -> None:
    """Run > Run All Cells, repeated until a cell has started: the menu responds before the notebook is ready."""
    started = page.locator(".jp-InputPrompt", has_text=re.compile(r"\[[*1]\]")).first
    for _ in range(5):
        page.click(".lm-MenuBar-itemLabel:text-is('Run')")
        page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
        try:
            return started.wait_for(state="attached", timeout=PATIENCE / 10)
        except TimeoutError:
            page.keyboard.press("Escape")
    pytest.fail("Run All Cells started no cell")


def wait_for_the_end(page) -> None:
    """Wait until no cell is running or queued. An exception also ends the run, and is reported."""
    page.wait_for_function(
        """() => {
            const prompts = [...document.querySelectorAll(".jp-CodeCell .jp-InputPrompt")].map(at => at.textContent);
            return prompts.some(text => /\\d/.test(text)) && !prompts.some(text => text.includes("*"));
        }""",
        timeout=5 * PATIENCE,
    )
    failures = page.locator("[data-mime-type='application/vnd.jupyter.error']")
    assert failures.count() == 0, failures.first.inner_text()[-2000:]
