"""Kernels are counted by block, and what they would save follows from hand-made times."""

import gzip
import json

import pytest

from fusionlab.observe.clean import SIZE_LIMIT
from fusionlab.observe.step.block_traces import (
    Prediction,
    block_kernels,
    kernel_counts,
    trace_blocks,
    without_quantisation,
)
from fusionlab.observe.step.decode_sizes import FULL, KINDS, LINEAR
from fusionlab.observe.step.step_variants import STEP_VARIANTS
from fusionlab.observe.structure import steps
from fusionlab.observe.trace import Kernel, read_trace
from fusionlab.observe.whatif import WhatIfError
from tests.lab.observe.step.small_model import decoder, uncompiled
from tests.lab.observe.traces import kernel, launch


def ran(name, start, duration):
    return Kernel(name, "kernel", start, duration, *[None] * 12)


#: A norm of 2 us, its quantisation 1 us later for 3 us, a GEMM; and the same in the other block, shorter.
KERNELS = {
    LINEAR: (ran("triton_norm", 0, 2), ran("group_quant_kernel", 3, 3), ran("gemm", 7, 10)),
    FULL: (ran("triton_norm", 0, 2), ran("group_quant_kernel", 2.5, 1.5), ran("rms_norm_group_quant_kernel", 4, 3)),
}


def test_kernels_that_only_quantise_are_told_from_fused_ones():
    assert kernel_counts(KERNELS[LINEAR]) == {"kernels": 3, "quantisations": 1, "copies": 0}
    assert kernel_counts(KERNELS[FULL]) == {"kernels": 3, "quantisations": 1, "copies": 0}


def test_a_quantisation_goes_with_the_gap_in_front_of_it():
    found = without_quantisation(KERNELS, {LINEAR: 3, FULL: 1}, 64, 1000.0)
    assert (found.layers, found.batch_size, found.step_us) == (4, 64, 1000.0)
    assert found.saved_us == pytest.approx(3 * (1 + 3) + 1 * (0.5 + 1.5))
    assert (found.before_us, found.after_us) == (pytest.approx((3 * 6 + 4) / 4), 2.0)
    prediction = Prediction(found, 12.5)
    assert prediction.residual_us == pytest.approx(-1.5)
    assert prediction.as_json()["predicted_us"] == pytest.approx(14.0)
    assert prediction.as_json()["parts"] is None


def test_without_a_quantisation_there_is_nothing_to_predict():
    assert without_quantisation({LINEAR: KERNELS[LINEAR][:1], FULL: ()}, {LINEAR: 3, FULL: 1}, 1, 10.0) is None
    with pytest.raises(WhatIfError, match="shorter than"):
        without_quantisation(KERNELS, {LINEAR: 3, FULL: 1}, 64, 10.0)


def test_blocks_are_the_last_replay_of_each_kind(tmp_path):
    events = []
    for number in range(4):
        mark = {"ph": "X", "cat": "user_annotation", "name": f"fusionlib step {number}", "pid": 9, "tid": 9}
        events += [mark | {"ts": 100.0 * number, "dur": 50.0}, launch(number + 1, 100.0 * number + 1, 2.0)]
        events += [kernel(number + 1, 100.0 * number + 10, 5.0, f"{'lf'[number % 2]}{number}")]
    path = tmp_path / "t.json.gz"
    path.write_bytes(gzip.compress(json.dumps({"traceEvents": events}).encode()))
    found = block_kernels(read_trace(path))
    assert {kind: [k.name for k in kernels] for kind, kernels in found.items()} == {LINEAR: ["l2"], FULL: ["f3"]}


def test_on_a_cpu_a_trace_has_a_marked_call_of_each_kind(tmp_path):
    blocks = {kind: uncompiled(STEP_VARIANTS["opaque"], kind) for kind in KINDS}
    trace = trace_blocks(decoder(), blocks, "cpu", tmp_path / "opaque-3-graph.json.gz")
    assert (tmp_path / "opaque-3-graph.json.gz").stat().st_size <= SIZE_LIMIT
    names = [{op.name for op in part.ops} for part in steps(trace)]
    attention = "aten::scaled_dot_product_attention"
    assert [attention in found for found in names] == [False, True, False, True]
    assert all("fusionlib::group_quant" in found for found in names)
    assert block_kernels(trace) == {LINEAR: (), FULL: ()}
