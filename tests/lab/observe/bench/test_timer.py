"""Rotation: how many buffers defeat a cache; and on a GPU, that the graph timer distinguishes long from short."""

import gc
import types
from contextlib import nullcontext

import pytest
import torch

from fusionlab.observe.bench import timer as timer_module
from fusionlab.observe.bench.timer import MOST_COPIES, ROTATION, GraphTimer, copies_for, last_level_cache

H200_L2 = 60 << 20


@pytest.mark.parametrize("tokens", [1, 4, 64, 1024, 32768])
def test_the_other_buffers_outweigh_the_cache(tokens):
    size = int(tokens * 4096 * 5.03125)
    copies = copies_for(size, H200_L2)
    assert (copies - 1) * size >= ROTATION * H200_L2 and copies >= 2
    assert copies == 2 or (copies - 2) * size < ROTATION * H200_L2  # and no more than needed


def test_bounds():
    assert copies_for(1, H200_L2) == MOST_COPIES
    with pytest.raises(ValueError, match="bytes_per_call=0"):
        copies_for(0, H200_L2)


def test_the_last_level_cache_of_cdna_is_not_its_l2():
    def properties(**values):
        return types.SimpleNamespace(**({"L2_cache_size": 4 << 20} | values))

    assert last_level_cache(properties()) == 4 << 20
    assert last_level_cache(properties(gcnArchName="gfx942:sramecc+")) == 256 << 20
    assert last_level_cache(properties(gcnArchName="gfx1100")) == 4 << 20


@pytest.fixture
def stubs(monkeypatch):
    """The part of torch.cuda that the timer uses: graphs that remember what was captured, a clock counting replays."""
    log = []

    class Graph:
        capturing = None

        def capture_begin(self):
            assert Graph.capturing is None
            Graph.capturing, self.calls = self, 0

        def capture_end(self):
            Graph.capturing = None

        def replay(self):
            log.append(self)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = sum(graph.calls for graph in log)

        def elapsed_time(self, other):
            return (other.at - self.at) * 2e-3  # 2 us a call, in ms

    stream = types.SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    properties = types.SimpleNamespace(L2_cache_size=1000)
    names = {
        "CUDAGraph": Graph,
        "Event": Event,
        "Stream": lambda: stream,
        "stream": lambda s: nullcontext(),
        "current_stream": lambda: stream,
        "current_device": lambda: 0,
        "get_device_properties": lambda device: properties,
    }
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return Graph, log


def test_a_cycle_captures_every_buffer_once_and_divides_by_their_number(stubs, monkeypatch):
    graph, log = stubs
    monkeypatch.setattr(timer_module, "CALLS_PER_GRAPH", 4)
    captured, warm = [], []

    def make(number):
        def call():
            if graph.capturing is None:
                warm.append(number)
            else:
                graph.capturing.calls += 1
                captured.append(number)
            return number

        return call

    timer = GraphTimer()
    cycle = timer.prepare([make(number) for number in range(10)])
    assert captured == cycle.outputs == list(range(10)) and warm == [0, 1, 2]
    assert [g.calls for g in cycle.graphs] == [4, 4, 2]
    # A cycle of 10 calls takes 20 us, a sample at least 500.
    assert cycle.repeats == 25
    log.clear()
    assert timer.sample(cycle) == pytest.approx(2.0)
    assert log[:4] == [cycle.graphs[2], *cycle.graphs] and len(log) == 1 + 3 * 25


def test_a_call_that_cannot_be_captured_ends_the_capture(stubs):
    graph, _ = stubs

    def call():
        if graph.capturing is not None:
            raise RuntimeError("not permitted when stream is capturing")

    with pytest.raises(RuntimeError, match="not permitted"):
        GraphTimer().prepare([call])
    assert graph.capturing is None and gc.isenabled()


@pytest.mark.gpu
def test_longer_work_takes_longer_and_outputs_rotate():
    timer = GraphTimer()
    small, large = (torch.zeros(n, device="cuda") for n in (1 << 10, 1 << 26))
    one = timer.prepare([lambda: small + 1] * 2)
    other = timer.prepare([lambda: large + 1] * 2)
    assert one.outputs[0].data_ptr() != one.outputs[1].data_ptr()
    times = [(timer.sample(one), timer.sample(other)) for _ in range(5)]
    assert all(0 < a < b for a, b in times)
