"""fusionlib: a layer's value and its FP8 group quantisation as one kernel, explained and proved.

The names below are the public API; each is imported on first use, so that a command that needs no tensors does not
wait for torch. `torch.ops.fusionlib` is registered with the first of them, and at once if torch is already
imported; `import fusionlib.op` registers it alone, for a process that only loads what another one compiled. Nothing of
Jupyter or plotly is imported, Triton only at the first launch on a GPU, and Inductor only when the pass is used.
"""

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fusionlib.explanation import explain
    from fusionlib.op import (
        act_and_mul_group_quant,
        group_quant,
        rms_norm_gated_group_quant,
        rms_norm_group_quant,
        unsupported,
    )
    from fusionlib.reference import dequantise
    from fusionlib.rewrite import FusionError, FusionPass, Report
    from fusionlib.spec import ActAndMul, GatedNorm, GroupQuant, RMSNorm, SpecError

__all__ = [
    "ActAndMul",
    "FusionError",
    "FusionPass",
    "GatedNorm",
    "GroupQuant",
    "RMSNorm",
    "Report",
    "SpecError",
    "act_and_mul_group_quant",
    "dequantise",
    "explain",
    "group_quant",
    "rms_norm_gated_group_quant",
    "rms_norm_group_quant",
    "unsupported",
]

_HOMES = {
    "ActAndMul": "fusionlib.spec",
    "FusionError": "fusionlib.rewrite",
    "FusionPass": "fusionlib.rewrite",
    "GatedNorm": "fusionlib.spec",
    "GroupQuant": "fusionlib.spec",
    "RMSNorm": "fusionlib.spec",
    "Report": "fusionlib.rewrite",
    "SpecError": "fusionlib.spec",
    "act_and_mul_group_quant": "fusionlib.op",
    "dequantise": "fusionlib.reference",
    "explain": "fusionlib.explanation",
    "group_quant": "fusionlib.op",
    "rms_norm_gated_group_quant": "fusionlib.op",
    "rms_norm_group_quant": "fusionlib.op",
    "unsupported": "fusionlib.op",
}


def __getattr__(name: str) -> object:
    """A public name, imported from its module together with the ops."""
    if name == "models":
        return importlib.import_module("fusionlib.models")
    if name not in _HOMES:
        raise AttributeError(f"module 'fusionlib' has no attribute {name!r}")
    importlib.import_module("fusionlib.op")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if sys.modules.get("torch") is not None:
    importlib.import_module("fusionlib.op")
