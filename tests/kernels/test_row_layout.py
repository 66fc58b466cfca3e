"""A row layout gives the address of every element, or says that it cannot."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from fusionlib.kernels.row_layout import RowLayout, row_layout
from tests.support import grouped_gate


def address(layout: RowLayout, token: int, element: int) -> int:
    block, rest = divmod(element, layout.outer)
    run, offset = divmod(rest, layout.inner)
    return token * layout.token_stride + block * layout.outer_stride + run * layout.inner_stride + offset


@st.composite
def strided(draw):
    """A [tokens, ...] view of up to four dimensions with a contiguous last one, sliced from a larger tensor."""
    inner = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    sizes = [draw(st.integers(1, 3)), *inner]
    padded = [size + draw(st.integers(0, 2)) for size in sizes]
    base = torch.arange(torch.Size(padded).numel()).view(padded)
    return base[tuple(slice(size) for size in sizes)]


@given(strided())
def test_every_address_is_right(tensor):
    layout = row_layout(tensor)
    assert layout is not None
    rows = tensor.flatten(1)
    for token in range(rows.shape[0]):
        for element in range(rows.shape[1]):
            assert address(layout, token, element) == rows[token, element].item() - tensor.storage_offset()


def test_contiguous_dimensions_merge_into_one_run():
    assert row_layout(torch.empty(5, 32, 128)) == RowLayout(4096, 4096, 0, 4096, 0)


def test_the_gate_of_qwen3_next_is_runs_of_its_heads():
    assert row_layout(grouped_gate(3, 16, 2, 128, torch.bfloat16)) == RowLayout(12288, 4096, 0, 256, 768)


def test_groups_of_strided_heads_take_both_levels():
    gate = torch.empty(6000).as_strided((3, 4, 2, 128), (2000, 480, 160, 1))
    assert row_layout(gate) == RowLayout(2000, 256, 480, 128, 160)


def test_a_broadcast_head_has_stride_zero():
    assert row_layout(torch.empty(3, 1, 128).expand(3, 4, 128)) == RowLayout(128, 512, 0, 128, 0)


def test_three_levels_of_strides_are_too_many():
    assert row_layout(torch.empty(2, 3, 5, 7, 11).as_strided((2, 3, 2, 2, 4), (1155, 385, 77, 11, 1))) is None
