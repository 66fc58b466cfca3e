"""Rotation: how many buffers defeat a cache; and on a GPU, that the graph timer tells long from short."""

import types

import pytest
import torch

from fusionlib.observe.bench.timer import MOST_COPIES, ROTATION, GraphTimer, copies_for, last_level_cache

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


@pytest.mark.gpu
def test_longer_work_takes_longer_and_outputs_rotate():
    timer = GraphTimer()
    small, large = (torch.zeros(n, device="cuda") for n in (1 << 10, 1 << 26))
    one = timer.prepare([lambda: small + 1] * 2)
    other = timer.prepare([lambda: large + 1] * 2)
    assert one.outputs[0].data_ptr() != one.outputs[1].data_ptr()
    times = [(timer.sample(one), timer.sample(other)) for _ in range(5)]
    assert all(0 < a < b for a, b in times)
