"""An opaque gated norm like those of serving engines: the norm alone, its arithmetic hidden from the compiler."""

from __future__ import annotations

import torch

from fusionlib import gradient, reference, schema
from fusionlib.quant_op import TAGS
from fusionlib.spec import GatedNorm

_NAME = "fusionlib::rms_norm_gated"


def _compute(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, *scalars: object) -> torch.Tensor:
    return reference.rms_norm_gated(x, gate, weight, schema.from_scalars(GatedNorm, scalars))


def _fake(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, *scalars: object) -> torch.Tensor:
    return x.flatten(1).new_empty(
        x.flatten(1).shape, dtype=schema.from_scalars(GatedNorm, scalars).output_dtype(x.dtype)
    )


def define_norm_op() -> None:
    """Define `torch.ops.fusionlib.rms_norm_gated` unless it exists; importing this module registers nothing."""
    if hasattr(torch.ops.fusionlib, "rms_norm_gated"):
        return
    inputs = f"Tensor x, Tensor gate, Tensor weight, {schema.declared(GatedNorm)}"
    torch.library.define(_NAME, f"({inputs}) -> Tensor", tags=TAGS)
    # The reference, on every device: all that matters here is that the compiler cannot see inside.
    for device in ("cpu", "cuda"):
        torch.library.impl(_NAME, device, _compute)
    torch.library.register_fake(_NAME, _fake)
    gradient.register(_NAME, _compute)


def rms_norm_gated(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, norm: GatedNorm) -> torch.Tensor:
    """`reference.rms_norm_gated` as one opaque op: x, gate [tokens, ...] -> [tokens, hidden].

    Call `define_norm_op()` first; it is not called here because this function is traced.
    """
    return torch.ops.fusionlib.rms_norm_gated(x, gate, weight, *schema.scalars(norm))
