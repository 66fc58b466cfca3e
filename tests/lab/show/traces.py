"""Synthetic Kineto traces with known times, for the figures' tests; nothing in them was measured."""

from __future__ import annotations

from pathlib import Path

from fusionlab.observe.trace import Trace, read_trace
from tests.lab.observe.traces import GEOMETRY, kernel, launch, op, write


def trace_of(path: Path, events: list[dict]) -> Trace:
    return read_trace(write(path, events))


#: Two kernels: 4 and 3 µs, 1.5 µs apart, the first 2 µs after its launch call, the second launched by the driver.
TWO = [
    op(1, 99.0, 9.0, "aten::mul"),
    launch(1, 100.0, 5.0, 1),
    op(2, 106.0, 4.0, "quant::group"),
    launch(2, 107.0, 2.0, 2, cat="cuda_driver", name="cuLaunchKernel"),
    kernel(1, 107.0, 4.0, "norm", **GEOMETRY),
    kernel(2, 112.5, 3.0, "void at::native::vectorized_elementwise_kernel<4, at::native::FillFunctor<float> >(int)"),
]
#: One kernel of 4.25 µs that starts 0.5 µs before its launch call returns, long after the trace's zero.
ONE = [
    op(5, 899.5, 8.0, "fused::op"),
    launch(3, 900.0, 6.0, 5, name="cuLaunchKernelEx"),
    kernel(3, 905.5, 4.25, "fused"),
]
#: A CUDA graph: one launch, four kernels of 1.5 µs half a µs apart, two of them on a second stream at the same time.
GRAPH = [
    launch(9, 10.0, 3.0, name="cudaGraphLaunch"),
    *(kernel(9, 20.0 + 2 * i, 1.5, f"k{i}", **{"graph node id": i + 1}) for i in range(4)),
    *(kernel(9, 21.0 + 2 * i, 1.5, f"s{i}", stream=8) for i in range(2)),
]
#: No GPU: a composite operator with two inside, a gap of 2 µs, and one more.
CPU = [
    op(1, 50.0, 10.0, "aten::to"),
    op(2, 51.0, 8.0, "aten::_to_copy"),
    op(3, 52.0, 1.0, "aten::empty"),
    op(4, 62.0, 5.0, "aten::mul"),
]
