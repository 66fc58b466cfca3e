"""The kernel's algorithm without a GPU: see `interpreted.py` for what the interpreter can and cannot prove."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed on this platform")


def test_every_shape_and_layout_in_the_interpreter():
    root = Path(__file__).parents[2]
    run = subprocess.run(
        [sys.executable, "-m", "tests.interpreted"], cwd=root, capture_output=True, text=True, timeout=600
    )
    failed = [line for line in run.stdout.splitlines() if line.startswith("FAILED")]
    assert run.returncode == 0, "\n".join([*failed, run.stderr[-2000:]])
    assert len(re.findall(r"^ok ", run.stdout, re.MULTILINE)) >= 123 + 24 + 4 + 8 + 16
