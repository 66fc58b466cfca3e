"""The example of tensor parallelism, started as its first line says: two processes, every site fused on both."""

from __future__ import annotations

import gc
import importlib.util
import os
import re
import subprocess
import sys
import types
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "tensor_parallel.py"

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this PyTorch has no torch.distributed")


def torchrun(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(EXAMPLE)]
    return subprocess.run(
        [*command, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
        check=False,
    )


def check_ranks(output: str) -> None:
    ranks = re.findall(r"rank (\d) of 2, (\d) of 4 heads: 6 fused \((.*?)\), 0 refused in 1 graph", output)
    assert {rank for rank, *_ in ranks} == {"0", "1"} and {heads for _, heads, _ in ranks} == {"2"}, output
    assert {fused for *_, fused in ranks} == {"4 rms_norm, 1 gated_norm, 1 act_and_mul"}
    assert len(re.findall(r"from the compile without the pass: \S+\n", output)) == 2
    apart = [float(each) for each in re.findall(r"on one rank, relative: (\S+)", output)]
    assert len(apart) == 2 and all(0 < each < 0.02 for each in apart)  # a sum of two halves is rounded twice


def test_every_rank_fuses_and_computes_what_it_does_without_the_pass():
    done = torchrun(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-3000:]
    check_ranks(done.stdout)
    assert done.stdout.count("without the pass: 0.0e+00") == 2


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_two_gpus_over_nccl():
    done = torchrun()
    assert done.returncode == 0, done.stderr[-3000:]
    check_ranks(done.stdout)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_times_on_two_gpus():
    done = torchrun("--measure", "--tokens", "16", "--hidden", "1024", "--heads", "4")
    assert done.returncode == 0, done.stderr[-3000:]
    check_ranks(done.stdout)
    check_times(done.stdout, ranks=2)


def check_times(output: str, ranks: int) -> None:
    for variant in ("without", "with"):
        found = re.findall(rf"    {variant} the pass: ([\d.]+) \(([\d.]+) to ([\d.]+)\)\n", output)
        assert len(found) == ranks
        assert all(0 < float(low) <= float(median) <= float(high) for median, low, high in found)
    assert len(re.findall(r"    the pass saves -?[\d.]+, -?[\d.]+%", output)) == ranks


def test_heads_that_cannot_be_split_are_an_error_that_names_them(refused):
    assert "--heads 3 cannot be split between 2 ranks" in refused("--heads", "3")


def test_no_times_on_cpus(refused):
    assert "--measure needs a GPU for each of the 2 ranks, and 0 are found" in refused("--measure")


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("tensor_parallel_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where a dataclass looks for its annotations
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def refused(example, monkeypatch, capsys):
    def told(*arguments):
        monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *arguments])
        with pytest.raises(SystemExit, match="2"):
            example.main()
        return capsys.readouterr().err

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return told


@pytest.fixture
def clock(monkeypatch):
    """The part of torch.cuda that the example uses: a replay takes as many microseconds as its block says."""
    state = types.SimpleNamespace(replayed=[], capturing=None, on=[])

    class Graph:
        def replay(self):
            assert state.on, "replayed on another stream than it was captured on"
            state.replayed.append(self.microseconds)

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = sum(state.replayed)

        def synchronize(self):
            pass

        def elapsed_time(self, other):
            return (other.at - self.at) / 1e3

    @contextmanager
    def stream(which):
        state.on.append(which)
        yield
        state.on.pop()

    @contextmanager
    def graph(captured, *, stream, capture_error_mode):
        assert capture_error_mode == "thread_local" and not gc.isenabled()
        state.capturing = captured
        yield
        state.capturing = None

    names = {"CUDAGraph": Graph, "Event": Event, "stream": stream, "graph": graph, "get_device_name": lambda: "a clock"}
    names |= {"current_stream": nullcontext, "synchronize": lambda: None}
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return state


def test_both_graphs_are_timed_in_turns_that_every_rank_takes_alike(example, clock):
    def block(microseconds):
        def call(x):
            calls.append((microseconds, clock.capturing is not None, bool(clock.on)))
            if clock.capturing is not None:
                clock.capturing.microseconds = microseconds
            return x

        return call

    stream, x, calls = types.SimpleNamespace(wait_stream=lambda other: None), torch.ones(2), []
    pair = {"without the pass": 80, "with the pass": 60}
    variants = {name: example.capture(block(time), x, stream) for name, time in pair.items()}
    assert calls == [(t, *each) for t in pair.values() for each in [*[(False, True)] * 3, (True, False)]]
    assert gc.isenabled()
    results = dict.fromkeys(pair, x)
    told = example.measured(variants, results, stream)
    check_times(told, ranks=1)
    assert "without the pass: 80.00 (80.00 to 80.00)" in told and "the pass saves 20.00, 25.0%" in told
    first, clock.replayed[:] = list(clock.replayed), []
    turns = first[:: example.REPLAYS + 1]
    assert len(first) == 2 * example.ROUNDS * (example.REPLAYS + 1)
    assert all(set(turns[at : at + 2]) == {60, 80} for at in range(0, len(turns), 2))
    assert len({tuple(turns[at : at + 2]) for at in range(0, len(turns), 2)}) == 2
    example.measured(variants, results, stream)  # another rank
    assert clock.replayed == first
    with pytest.raises(AssertionError, match="the graph with the pass computes something else"):
        example.measured(variants, results | {"with the pass": x + 1}, stream)
