"""Why a site is refused: stable codes, each with what it means and what a person can do about it.

The codes are an interface: tests, reports and documentation name them, so a code is never reused with a new meaning.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx


@dataclass(frozen=True)
class Reason:
    """One way to be refused: a stable code, what it means, and the way out."""

    code: str
    sentence: str
    fix: str


_TABLE = (
    # What is quantised, and how.
    ("per_tensor_static", "The scale is a number known before the row is read, not the maximum of a group.",
     "Quantise dynamically by group, or keep this layer unfused: a static scale needs no fusion of this kind."),
    ("per_tensor_dynamic", "One scale is computed for the whole tensor.",
     "Take the maximum over the last dimension only: one scale per group or per token."),
    ("per_group_static", "The scales are read from a tensor, not computed from the maximum of each group.",
     "Quantise dynamically by group, or keep this layer unfused: static scales need no fusion of this kind."),
    ("block_group", "The maximum is taken over a block of several rows.",
     "Use one group per row (1x128) for activations; blocks of 128x128 are for weights."),
    ("group_crosses_tokens", "A group reaches from one token into the next, or runs across tokens.",
     "Choose a group size that divides the elements of a token and group the last dimension."),
    ("group_of_one", "Every element has a scale of its own.",
     "Choose a group of several elements: with one for each, the scales take four times the room of the codes."),
    ("symbolic_group", "The group or norm size is not known when the graph is compiled.",
     "Make the size a Python int: only the number of tokens may be dynamic."),
    ("amax_source", "The maximum is taken of another value than the one that is quantised.",
     "Take the maximum of exactly the value that is divided by the scale, after the same rounding."),
    ("fp8_max", "Scale or clamp use another maximum than the FP8 dtype has.",
     "Use the dtype's own maximum in both (448 for float8_e4m3fn, 240 or 224 for float8_e4m3fnuz)."),
    ("scale_arithmetic", "The scale is not computed as the maximum divided by the FP8 maximum.",
     "Write scale = amax / fp8_max, or amax * (1 / fp8_max)."),
    ("scale_bound", "The scale, or the maximum that it is made of, is bound from above.",
     "Leave the upper bound out: the clamp before the cast bounds the codes."),
    ("floor", "The floor of the scale is not a number, or too large or too small for the reciprocal of a scale.",
     "Use a floor from 1e-30 to 1e30, or none."),
    ("quant_division", "The value is not scaled by a division by the scale nor by one reciprocal of it.",
     "Write y / scale or y * (1 / scale); y * (fp8_max / amax) rounds differently."),
    ("ue8m0", "The scale is rounded to a power of two in a way that is not equal to the one by exponent bits.",
     "Use fusionlib.reference.power_of_two_at_least: exp2(ceil(log2(s))) is off by two near powers of two."),
    ("clamp", "The clamp before the cast is missing a side, or is missing where it matters.",
     "Clamp the quotient to [-fp8_max, fp8_max] before the cast."),
    ("fp8_dtype", "The FP8 dtype has no quantisation here.",
     "Use float8_e4m3fn, float8_e4m3fnuz or float8_e5m2."),
    ("opaque_quant", "A known opaque quantisation op is called in a way that its reader cannot express.",
     "See what was found; register a reader for this op with fusionlib.match.register_quant_op."),
    ("unknown_quant_op", "An op or a Triton kernel that fusionlib does not know makes FP8 codes of a float tensor.",
     "Say what it computes: fusionlib.match.register_quant_op, or register_quant_kernel for a Triton kernel."),
    ("opaque_producer", "A known opaque norm is called in a way that its reader cannot express.",
     "See what was found; register a reader for this op with fusionlib.fusions.register_producer_op."),
    ("reader_failed", "The reader that is registered for an opaque op or a Triton kernel failed.",
     "Mend the reader that is named, or register another one; the log has the traceback."),
    # What is normalised, and how.
    ("mean_of_squares", "What is below the root is not the mean of the squares of a value.",
     "Write rsqrt((x * x).mean(-1, keepdim=True) + eps), with the squares taken element by element."),
    ("layer_norm", "The mean is subtracted: this is LayerNorm, not RMSNorm.",
     "Nothing, if the model needs LayerNorm."),
    ("mean_axis", "The mean of squares is not taken over the last dimension.",
     "Take the mean over the last dimension, with the groups as a dimension of their own."),
    ("mean_source", "The mean of squares is taken of another value than the one that is normed.",
     "Take the mean of exactly the value that is multiplied by its reciprocal root, after the same rounding."),
    ("weight_shape", "The weight is no vector over the norm or the row.",
     "Use one weight per element of the norm, or one per element of the token."),
    ("token_factor", "The normed value is multiplied by a tensor that is no number per token.",
     "Multiply by one number per token, such as a mask [batch, sequence, 1], or by a weight inside of the norm."),
    ("eps", "Epsilon is negative, denormal, infinite or not a number.",
     "Use 0 or an ordinary positive number; models use 1e-5 or 1e-6."),
    ("scalar_not_literal", "A number that decides the result is only known at run time.",
     "Make it a Python number. dynamic=True takes an attribute like self.eps for an input: mark the tokens alone with "
     "torch._dynamo.mark_dynamic(x, 0) instead, or set torch._dynamo.config.specialize_float = True."),
    ("symbolic_shape", "Dynamic sizes are not known to be equal, or not known where they are needed.",
     "Take x and gate of one token dimension, or tell the compiler with torch._check(gate.numel() == x.numel())."),
    ("rounding", "The graph rounds where the fused computation cannot.",
     "Compute in float32 between the rounding points of fusionlib.GatedNorm and GroupQuant."),
    # Where and when.
    ("device", "The pass does not rewrite for this device.",
     'Name this device too: devices=("cpu", "cuda"), or --devices cpu,cuda on the command line.'),
    ("unsupported", "The fused op cannot run these tensors.",
     "See what was found: it names the value, the limit and the way out."),
    ("mutation", "A tensor that the fused op would read is written in between.",
     "Clone it before the write, or move the write behind the quantisation."),
    ("training", "The graph saves intermediate values for a backward pass.",
     "Compile under torch.no_grad() or torch.inference_mode()."),
    ("intermediate_used", "A value inside the computation is used elsewhere too.",
     "Only the normed value, the codes and the scale may be used outside."),
    ("replacement_differs", "What the fused op returns has another shape, dtype or strides than what it would replace.",
     "Quantise a contiguous value: the fused op writes rows of tokens, and the scale in the layouts of GroupQuant."),
    ("internal_error", "fusionlib failed on this site; the graph is left as it was.",
     "Please report it with the traceback in the log."),
)  # fmt: skip

#: The reasons for which any site may be refused, in the order of the documentation.
COMMON: tuple[Reason, ...] = tuple(Reason(*row) for row in _TABLE)

#: Every reason by its code; fusions add their own.
REASONS: dict[str, Reason] = {reason.code: reason for reason in COMMON}


def register_reasons(reasons: Iterable[Reason]) -> None:
    """Register a fusion's reasons by their codes. Raises ValueError if a code already means something else."""
    for reason in reasons:
        known = REASONS.setdefault(reason.code, reason)
        if known != reason:
            raise ValueError(
                f"reason code {reason.code!r} already means {known.sentence!r}; choose another code for "
                f"{reason.sentence!r}"
            )


class NotMine(Exception):
    """A fusion does not start from what produced the value. The site is left to others: neither fused nor refused."""


class Stop(Exception):
    """Stops reading a site: which reason, at which node, what was expected there and what was found."""

    def __init__(self, code: str, node: fx.Node, expected: str, found: str) -> None:
        super().__init__(f"{code}: expected {expected}, found {found}")
        self.reason = REASONS[code]
        self.node = node
        self.expected = expected
        self.found = found
