"""A model measured now is read as a recorded one: its times, what is saved, and the figure made of it."""

from dataclasses import replace

import pytest

from fusionlab.observe.bench.timer import CAPTURES
from fusionlab.observe.model import live_model, model_run
from fusionlab.observe.model.workload import DECODE, Workload
from fusionlab.show.model_savings import model_savings
from tests.lab.observe.bench.fakes import FakeTimer
from tests.lab.observe.model.small_qwen import CONTEXT, embedded, small, uncompiled


def test_what_is_measured_here_is_read_as_a_recorded_run(monkeypatch):
    monkeypatch.setattr(model_run, "make_model", lambda *arguments: small())
    monkeypatch.setattr(model_run, "forward", embedded)
    monkeypatch.setattr(model_run, "compiled", uncompiled)
    monkeypatch.setattr(model_run.CompiledModel, "problem", lambda self, model: None)
    settings = replace(live_model.settings_here(3), device="cpu", context=CONTEXT)
    assert settings.layers == 4 and settings.variants == ("opaque", "fused")
    times = {place: 40.0 if place < CAPTURES else 30.0 for place in range(2 * CAPTURES)}
    found = live_model.model_here(settings, FakeTimer(times))
    assert found.find(Workload(DECODE, 3), "fused").saved == pytest.approx(0.25, abs=0.02)
    assert "--tokens 3 --layers 4 --rounds 10" in found.provenance
    (marks,) = [trace for trace in model_savings(found).fig.data if trace.name == "all fused"]
    assert list(marks.x) == pytest.approx([25.0], abs=2.0)
