"""flash-linear-attention's gated norm, which is a Triton kernel of its own.

Read from fla/modules/fused_norm_gate.py of fla-org/flash-linear-attention (18cc5e82fd22). Whether Dynamo traces a given
version of the library down to the launch was not tried. The kernel multiplies in another order than the fused op and
divides by a root: a float32 value differs in its last bit, which its rounding to 16 bits mostly hides.
"""

from __future__ import annotations

import torch

from fusionlib.engines.shipped import Shipped, need_contiguous, none_of
from fusionlib.fusions import OpaqueProducer
from fusionlib.match import Arguments, Stop
from fusionlib.match.graph import dtype, shape
from fusionlib.spec import GatedNorm


def read_gated_norm(arguments: Arguments) -> OpaqueProducer:
    """norm(x) * weight [+ bias] * silu(g) or sigmoid(g) over rows of D elements: float32 throughout, rounded once."""
    none_of(arguments, "opaque_producer", "residual", "residual_out", "STORE_RESIDUAL_OUT")
    if arguments["HAS_RESIDUAL"]:
        raise Stop("opaque_producer", arguments.call, "no residual", "HAS_RESIDUAL")
    if not arguments["IS_RMS_NORM"]:
        raise Stop("layer_norm", arguments.call, "IS_RMS_NORM", "a norm that subtracts the mean")
    activation = {"swish": "silu", "silu": "silu", "sigmoid": "sigmoid"}.get(arguments["ACTIVATION"])
    if activation is None:
        raise Stop("activation", arguments.call, "swish, silu or sigmoid", repr(arguments["ACTIVATION"]))
    x, size = arguments.node("x"), arguments["D"]
    if shape(x)[-1] != size:
        raise Stop("mean_axis", arguments.call, f"rows of D={size} elements", f"shape {list(shape(x))}")
    need_contiguous("opaque_producer", arguments, "x", "g", "y")
    made, own = arguments.fake("y").dtype, dtype(x)
    out: torch.dtype | None = None if made is own else made
    spec = GatedNorm(size, arguments["eps"], activation, True, 0, frozenset({"output"}), out)  # type: ignore[arg-type]
    vectors = {"weight": arguments.given("w"), "bias": arguments.given("b")}
    return OpaqueProducer(spec, {"x": x, "gate": arguments.node("g")}, vectors, output="y")


_SOURCE = "fla-org/flash-linear-attention fla/modules/fused_norm_gate.py, 18cc5e82fd22"

READERS = tuple(
    Shipped("norm kernel", f"fla.modules.fused_norm_gate.{name}", (), _SOURCE, read_gated_norm, GatedNorm)
    for name in ("layer_norm_gated_fwd_kernel", "layer_norm_gated_fwd_kernel1")
)
