"""fusionlib: RMSNormGated -> reshape -> FP8 group quantisation as one kernel, explained and proved.

The names below are the public face. Importing this package imports torch and registers `torch.ops.fusionlib`; nothing
of Jupyter or plotly is imported, and Triton only at the first launch on a GPU.
"""

from fusionlib.contract import supports
from fusionlib.op import group_quant, rms_norm_gated_group_quant
from fusionlib.reference import dequantise
from fusionlib.spec import GatedNorm, GroupQuant, SpecError

__all__ = [
    "GatedNorm",
    "GroupQuant",
    "SpecError",
    "dequantise",
    "group_quant",
    "rms_norm_gated_group_quant",
    "supports",
]
