"""FBGEMM's quantisation per row, which MSLK took over under its own name.

Read from fbgemm_gpu/experimental/gen_ai/src/quantize/quantize.cpp and quantize.cu of pytorch/FBGEMM (the commit was not
recorded); MSLK's csrc registers the same schema.
"""

from __future__ import annotations

import torch

from fusionlib.engines.shipped import Shipped, grouped, none_of, row_of
from fusionlib.match import Arguments, OpaqueQuant
from fusionlib.spec import FP8_MAXIMA


def read_per_row(arguments: Arguments) -> OpaqueQuant:
    """scale = max(amax / fp8_max, 1 / (512 fp8_max)) of a row, code = y / scale; scales of one dimension less."""
    none_of(arguments, "opaque_quant", "bs", "stochastic_rounding")
    none_of(arguments, "scale_bound", "scale_ub")
    fp8_max = FP8_MAXIMA.get(arguments.returned[0].dtype, FP8_MAXIMA[torch.float8_e4m3fn])[0]
    row = row_of(arguments, "input")
    return grouped(arguments, "input", row, floor=1.0 / (fp8_max * 512.0), floor_on="scale")


_SCHEMAS = (
    "(Tensor input, Tensor? bs=None, Tensor? scale_ub=None, ScalarType? output_dtype=None,"
    " bool stochastic_rounding=False) -> Tensor[]",
    "(Tensor input, Tensor? bs=None, Tensor? scale_ub=None, ScalarType? output_dtype=None) -> Tensor[]",
)
_SOURCE = "pytorch/FBGEMM fbgemm_gpu/experimental/gen_ai/src/quantize/quantize.cpp and quantize.cu"

READERS = (
    Shipped("quant op", "fbgemm::quantize_fp8_per_row", _SCHEMAS, _SOURCE, read_per_row),
    Shipped("quant op", "mslk::quantize_fp8_per_row", _SCHEMAS, f"{_SOURCE}; MSLK declares the same", read_per_row),
)
