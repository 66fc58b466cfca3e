"""What a step saved adds up from hand-made blocks, each part by itself."""

import pytest

from fusionlab.observe.step.decode_sizes import FULL, LINEAR
from fusionlab.observe.step.saved_parts import only_moves, quantises_only, saved_parts
from fusionlab.observe.trace import Kernel


def kernels(*events, category="kernel"):
    """(name, gap in front, duration) each, one after another."""
    made, now = [], 100.0
    for name, gap, duration in events:
        made.append(Kernel(name, category, now + gap, duration, *[None] * 12))
        now += gap + duration
    return tuple(made)


LAYERS = {LINEAR: 3, FULL: 1}
#: Two kernels of a norm, its quantisation, a GEMM.
OPAQUE = kernels(
    ("triton_mean_0", 0, 2),
    ("triton_norm_7", 1, 3),
    ("group_quant_kernel", 0.5, 1.5),
    ("gemm", 1, 10),
    ("copy_2", 1, 2),
)
FUSED = kernels(("rms_norm_group_quant_kernel", 0, 4), ("gemm", 1, 9), ("copy_1", 0.75, 2))


def test_each_part_is_found():
    parts = saved_parts({LINEAR: OPAQUE, FULL: FUSED}, {LINEAR: FUSED, FULL: FUSED}, LAYERS, 30.0)
    assert (parts.quantised_us, parts.gaps_us) == (3 * 1.5, 3 * 0.5)
    assert (parts.replaced_us, parts.replaced) == (3 * 5, 3 * 2)
    assert (parts.fused_us, parts.fused) == (3 * 4, 3 * 1)
    assert parts.shared_us == 3 * 1  # the GEMM; numbers that the compiler appends to a name do not matter
    assert parts.other_gaps_us == pytest.approx(3 * (1 + 1 + 1 - 1 - 0.75))
    spans = 3 * (22 - 16.75)
    assert parts.unseen_us == pytest.approx(30.0 - spans)


def test_the_parts_add_up_to_what_was_measured():
    found = saved_parts({LINEAR: OPAQUE, FULL: OPAQUE}, {LINEAR: FUSED, FULL: FUSED}, LAYERS, 12.5).as_json()
    counts = {found.pop("replaced"), found.pop("fused")}
    assert counts == {4 * 2, 4 * 1}
    assert sum(found.values()) - 2 * found["fused_us"] == pytest.approx(12.5)


def test_without_kernels_there_are_no_parts():
    assert saved_parts({LINEAR: OPAQUE, FULL: ()}, {LINEAR: FUSED, FULL: FUSED}, LAYERS, 1.0) is None
    assert saved_parts({LINEAR: OPAQUE, FULL: OPAQUE}, {}, LAYERS, 1.0) is None


def test_kernels_that_only_move_and_those_that_only_quantise():
    fill = "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float>, std::array<char*, 1ul> >"
    copy = "void at::native::elementwise_kernel<128, 2, at::native::direct_copy_kernel_cuda(at::TensorIteratorBase&)>"
    moving, others = kernels((fill, 0, 1), (copy, 0, 1)), kernels(("group_quant_kernel", 0, 1), ("triton_copy_3", 0, 1))
    assert [only_moves(k) for k in (*moving, *others)] == [True, True, False, False]
    assert all(map(only_moves, kernels(("Memcpy DtoD (Device -> Device)", 0, 1), category="gpu_memcpy")))
    assert [quantises_only(k) for k in (*others, *FUSED)] == [True, False, False, False, False]
