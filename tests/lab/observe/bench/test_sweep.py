"""The sweep: a grid of configurations that Triton accepts, and the best of those timed."""

from dataclasses import fields

import pytest

pytest.importorskip("triton", reason="Triton is not installed on this platform")

from fusionlab.observe.bench import sweep
from fusionlab.observe.bench.cases import SHAPES, Case
from fusionlab.observe.bench.results import Results, SweepRow
from fusionlab.observe.bench.run import Settings, heuristic
from fusionlab.observe.bench.variants import VARIANTS
from fusionlib.kernels.config import LaunchConfig
from tests.lab.observe.bench.fakes import FakeTimer

SETTINGS = Settings(rounds=3, seed=0, device="cpu")


@pytest.fixture
def on_cpu(monkeypatch):
    """Both kernels through our op, so that the sweep runs here; a configuration of 32 rows fails to launch."""

    def call(case, config):
        if config.rows == 32:
            raise_later = RuntimeError("out of registers\nat all")

            def broken(x, gate, weight):
                raise raise_later

            return broken
        return VARIANTS["fused"].make(case)

    monkeypatch.setattr(sweep, "KERNELS", {"fused": call, "light": call})


def test_every_field_of_the_launch_is_swept():
    assert list(sweep.GRID) == [field.name for field in fields(LaunchConfig)]


@pytest.mark.parametrize("lanes", [32, 64])
@pytest.mark.parametrize("name", list(SHAPES))
@pytest.mark.parametrize("tokens", [1, 64, 8192])
def test_the_grid_is_what_triton_takes_and_holds_the_heuristic(name, tokens, lanes):
    case = Case(SHAPES[name], tokens)
    found = sweep.configurations(case, lanes)
    assert heuristic(case) in found and len(found) == len(set(found)) >= 4
    for config in found:
        threads = config.num_warps * lanes
        assert threads <= 1024 and 2 <= config.rows * case.unit / threads <= 64
    assert len({config.rows for config in found}) >= 3 and len({config.num_warps for config in found}) >= 3


def test_every_configuration_is_timed_and_the_heuristics_is_marked(on_cpu):
    case, results, timer = Case(SHAPES["32x128"], 1), Results({}), FakeTimer()
    rows = sweep.sweep_case(case, timer, SETTINGS, results=results)
    timed = [config for config in sweep.configurations(case) if config.rows != 32]
    assert [LaunchConfig(**row.launch) for row in rows if row.kernel == "fused"] == timed
    assert len(rows) == 2 * len(timed) and all(row.units == 32 and row.unit == 128 for row in rows)
    assert [LaunchConfig(**row.launch) for row in rows if row.heuristic] == [heuristic(case)] * 2
    assert results.skipped and all("out of registers" in entry.why for entry in results.skipped)
    assert all(entry.why.count("\n") == 0 for entry in results.skipped)
    assert sweep.best_of(rows, "fused") is min(rows[: len(timed)], key=lambda row: row.median_us)
    assert sweep.best_of(rows, "other") is None


def test_only_what_stands_alone_is_swept(on_cpu):
    results, said = Results({}), []
    chain = [Case(SHAPES["32x128"], 1, context="chain"), Case(SHAPES["32x128"], 1)]
    sweep.sweep_all(chain, FakeTimer(), SETTINGS, results, said.append)
    assert {row.case for row in results.sweep} == {"32x128/1/contiguous/alone"}
    assert [line.split(":")[0] for line in said] == [
        "swept    32x128/1/contiguous/alone fused",
        "swept    32x128/1/contiguous/alone light",
    ]


def test_the_light_is_tuned_once_for_each_size(on_cpu):
    timer = FakeTimer({2: 1.0})
    tuned = sweep.TunedLight(timer, SETTINGS)
    case = Case(SHAPES["32x128"], 1)
    best = tuned(case)
    assert best == [c for c in sweep.configurations(case) if c.rows != 32][2]
    prepared = len(timer.prepared)
    assert tuned(Case(SHAPES["32x128"], 1, context="producer")) == best and len(timer.prepared) == prepared
    tuned(Case(SHAPES["32x128"], 4))
    assert len(timer.prepared) > prepared


def test_words():
    assert sweep.words({"rows": 8, "num_warps": 4}) == "8 rows, 4 warps"
    assert sweep.words({"rows": 8, "num_warps": 4, "num_stages": 2}) == "8 rows, 4 warps, num_stages=2"
    row = SweepRow("c", 128, 32, "fused", {}, 2.0, 1.9, 2.1, True)
    assert sweep.best_of([row, SweepRow("c", 128, 32, "fused", {}, 1.0, 0.9, 1.1, False)], "fused").median_us == 1.0
