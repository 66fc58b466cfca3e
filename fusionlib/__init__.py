"""fusionlib: RMSNormGated -> reshape -> FP8 group quantisation as one kernel, explained and proved.

The names below are the public face. Importing this package imports torch and registers `torch.ops.fusionlib`; nothing
of Jupyter or plotly is imported, Triton only at the first launch on a GPU, and Inductor only when the pass is used.
"""

import importlib
from typing import TYPE_CHECKING

from fusionlib.contract import supports
from fusionlib.op import group_quant, rms_norm_gated_group_quant
from fusionlib.reference import dequantise
from fusionlib.spec import GatedNorm, GroupQuant, SpecError

if TYPE_CHECKING:
    from fusionlib.rewrite import FusionError, FusionPass, Report
    from fusionlib.rewrite.explain import explain

__all__ = [
    "FusionError",
    "FusionPass",
    "GatedNorm",
    "GroupQuant",
    "Report",
    "SpecError",
    "dequantise",
    "explain",
    "group_quant",
    "rms_norm_gated_group_quant",
    "supports",
]

_LATER = {
    "FusionError": "fusionlib.rewrite",
    "FusionPass": "fusionlib.rewrite",
    "Report": "fusionlib.rewrite",
    "explain": "fusionlib.rewrite.explain",
}


def __getattr__(name: str) -> object:
    """The names that need Inductor, imported when first used: it takes longer to import than torch itself."""
    if name not in _LATER:
        raise AttributeError(f"module 'fusionlib' has no attribute {name!r}")
    value = getattr(importlib.import_module(_LATER[name]), name)
    globals()[name] = value
    return value
