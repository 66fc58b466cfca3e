"""A step measured now is read as a recorded one: its times, what is saved, and the figure made of it."""

from dataclasses import replace

import pytest

from fusionlab.observe.bench.timer import CAPTURES
from fusionlab.observe.step import live_step, step_run
from fusionlab.observe.step.decode_sizes import SMALL
from fusionlab.show.decode_step import decode_step
from tests.lab.observe.bench.fakes import FakeTimer
from tests.lab.observe.step.small_model import quick, weights


def test_what_is_measured_here_is_read_as_a_recorded_step(monkeypatch):
    monkeypatch.setattr(step_run, "compile_block", quick)
    monkeypatch.setattr(step_run, "make_weights", lambda *arguments: weights())
    settings = replace(live_step.settings_here(3), device="cpu", sizes=SMALL)
    times = {place: 40.0 if place < CAPTURES else 30.0 for place in range(2 * CAPTURES)}
    found = live_step.step_here(settings, FakeTimer(times))
    assert (found.tokens, found.layers, found.sizes) == ((3,), 4, SMALL)
    assert found.find(3, "fused").saved == pytest.approx(0.25, abs=0.02)
    assert "--tokens 3 --layers 4 --rounds 10" in found.provenance
    values = [value for trace in decode_step(found).fig.data for value in trace.y or () if value is not None]
    assert any(value == pytest.approx(25.0, abs=2.0) for value in values)
