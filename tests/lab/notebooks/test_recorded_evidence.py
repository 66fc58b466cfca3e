"""The trace notebooks with recordings in data/: they work unedited, and without a GPU.

The traces here are synthetic. Each code cell runs in the test's own process, in a checkout with the real references and
the synthetic traces; what the cells would show is collected instead.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

pytest.importorskip("plotly", reason="the notebooks extra is not installed")

from fusionlab.checkout import repository_root
from tests.lab.observe.test_trace_sources import GEMM, H200, mark, record
from tests.lab.observe.traces import GEOMETRY, kernel, launch, op
from tests.lab.show import traces as synthetic

HOSTILE = "k<script>alert(1)</script>"


def eager(count: int = 20) -> list[dict]:
    """Launches 6 µs apart, kernels of 2 µs that start 2 µs after their call has returned."""
    events = []
    for i in range(1, count + 1):
        start = 100.0 + 6 * i
        events += [op(i, start - 1, 5.5, "aten::mul"), launch(i, start, 4.0, i)]
        events.append(kernel(i, start + 6, 2.0, HOSTILE, **GEOMETRY))
    return [mark(0, 90.0, 300.0), *events, launch(90, 230.0, 2.0), kernel(90, 250.0, 9.0, "gemm")]


ONE = [mark(0, 90.0, 60.0), launch(3, 100.0, 6.0), kernel(3, 105.5, 4.25, "fused"), *GEMM]
TWO = [mark(0, 90.0, 60.0), *synthetic.TWO, *GEMM]
REPLAY = [
    mark(0, 5.0, 60.0),
    launch(9, 10.0, 3.0, name="cudaGraphLaunch"),
    *(
        kernel(9, 20.0 + 4 * i, 3.5, name, **{"graph node id": i + 1})
        for i, name in enumerate(("norm", "quant", "gemm"))
    ),
]
EVENTS = {"eager": eager(), "two_kernel": TWO, "inductor": ONE, "fused": ONE}
FUSED_REPLAY = [event for event in REPLAY if event["name"] != "norm"]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    real = repository_root(Path(__file__).parent)
    (tmp_path / "notebooks").mkdir()
    shutil.copy(real / "pyproject.toml", tmp_path)
    shutil.copytree(real / "data" / "reference", tmp_path / "data" / "reference")
    recorded = [(variant, 64, False, events) for variant, events in EVENTS.items()]
    recorded += [(variant, 64, True, FUSED_REPLAY if variant == "fused" else REPLAY) for variant in EVENTS]
    record(tmp_path / "data", H200, recorded)
    monkeypatch.chdir(tmp_path)
    return real


@pytest.fixture
def drawings(monkeypatch):
    found = []
    monkeypatch.setattr("fusionlab.show.figure.Shown.update", lambda self, drawing: found.append(drawing))
    return found


def run(name: str, real: Path, **parameters) -> dict:
    """Execute a notebook's code cells as committed, with `parameters` set after the first."""
    import torch

    notebook = json.loads((real / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))
    scope: dict = {"__name__": name}
    grad = torch.is_grad_enabled()
    try:
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), cell["id"], "exec"), scope)
                if "parameters" in cell["metadata"].get("tags", ()):
                    scope.update(parameters, interactive=False)
    finally:
        torch.set_grad_enabled(grad)
    return scope


def test_the_first_notebook_shows_what_was_recorded(checkout, drawings, capsys):
    scope = run("00_the_nine_microseconds", checkout, trace_source="recorded")
    assert scope["shown"].kind == "recorded GPU" and scope["shown"].shared == ("gemm",)
    first = drawings[0]
    assert (
        first.caption == "GPU timeline of eager, two kernels, one kernel (recorded earlier on NVIDIA H200, 64 tokens)."
    )
    assert "eager: 20 kernels, 40.00 µs in them and 76.00 µs between them" in first.summary
    assert "one kernel: 1 kernel, 4.25 µs in it;" in first.summary and "data/traces/nvidia-h200: eager" in first.summary
    assert "CPU timeline" not in first.summary and "<script" not in first.fig.to_json()
    said = capsys.readouterr().out
    assert "Source: recorded GPU (recorded earlier on NVIDIA H200, 64 tokens)." in said
    assert "operators" not in said and "The compiler made" not in said  # the norm is one kernel here
    assert re.search(r"^two kernels +7\.50 +7\.00 +0\.50 +2 +2\.14$", said, re.M)
    assert re.search(r"^one kernel +3\.50 +3\.50 +0\.00 +1 +1\.00$", said, re.M)
    assert "(CUDA graphs, data still in the cache, recorded earlier on NVIDIA H200, 64 tokens)" in drawings[1].caption


def test_the_trace_notebook_shows_replays_and_links_too(checkout, drawings, capsys):
    own = Path("mine.json")
    own.write_text(json.dumps({"traceEvents": synthetic.TWO}))
    run("06_the_trace", checkout, trace_source="recorded", trace_file=str(own))
    captions = [drawing.caption for drawing in drawings]
    recorded = [caption for caption in captions if "recorded earlier on NVIDIA H200, 64 tokens" in caption]
    assert len(recorded) == 2 and any("CUDA graphs" in caption for caption in recorded)
    # The synthetic eager trace runs other operators, so that this machine's own stand in for them.
    (linked,) = [drawing for drawing in drawings if drawing.caption == "Which operator ran which node."]
    assert len(linked.table.rows) > 10 and {"_to_copy", "copy_"} <= {row[0] for row in linked.table.rows}
    assert "GPU timeline of mine.json (your own, 0 to 1000 µs)." in captions
    said = capsys.readouterr().out
    assert "eager          kernels: 20;   76 µs between them; queue delay 2.00 to 2.00 µs" in said
    assert "On the GPU, eager launched 20 kernels for them." in said
    assert "GB/s in the trace above" in said and "CUDA graphs need a GPU" not in said
