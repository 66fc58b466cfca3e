"""Whole models: their linear layers in block-FP8, from a model in 16 bits or from a block-FP8 checkpoint.

    report = fusionlib.models.quantize_linears(model)
    compiled = torch.compile(model, options={"post_grad_custom_pre_pass": fusionlib.FusionPass()})

Nothing here imports transformers: what a checkpoint's layers are is read from their tensors.
"""

from fusionlib.models.quantize import quantize_linears
from fusionlib.models.quantize_report import Left, QuantizeReport, Replaced
from fusionlib.models.selection import KEPT

__all__ = ["KEPT", "Left", "QuantizeReport", "Replaced", "quantize_linears"]
