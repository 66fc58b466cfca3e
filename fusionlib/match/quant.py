"""Reads a group quantisation from the cast that ends it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx

from fusionlib.match.graph import (
    aten,
    broadcast_last,
    clamp_bounds,
    describe,
    dtype,
    input_of,
    is_call,
    is_cast,
    is_div,
    is_mul,
    is_scalar,
    literal,
    numel,
    one_over,
    operands,
    peel_exact,
    same,
    shape,
    tensor_of,
)
from fusionlib.match.reasons import Stop
from fusionlib.match.result import QuantRead, Trail
from fusionlib.match.scale import ScaleRead, read_scale
from fusionlib.match.sizes import equal, same_shape
from fusionlib.spec import FP8_MAXIMA, Division, GroupQuant

FP8_DTYPES: set[torch.dtype | None] = {
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
}

#: The low and high bound of a clamp; None for an open side.
Bounds = tuple[float | None, float | None]


def is_fp8_cast(node: fx.Node) -> bool:
    """Whether `node` casts floats to FP8: where a quantisation ends. (Exponent-only scales are not codes.)"""
    return is_cast(node) and dtype(node) in FP8_DTYPES and dtype(input_of(node)) not in FP8_DTYPES


def read_fp8_cast(cast: fx.Node, trail: Trail) -> QuantRead:
    """The quantisation that ends in `cast`. Raises Stop if `GroupQuant` cannot express it."""
    code_dtype = dtype(cast)
    if code_dtype is None or code_dtype not in FP8_MAXIMA:
        raise Stop("fp8_dtype", cast, "one of the FP8 dtypes of fusionlib.GroupQuant", str(code_dtype))
    trail.add("cast", cast)
    quotient, bounds = _below_clamp(cast, trail)
    numerator, scale_operand, repeated, division = _scaled(quotient)
    trail.add("quotient", quotient)
    root, group = _scale_root(quotient, scale_operand, repeated, code_dtype)
    _in_float32(quotient, "the quotient")
    read = _read_own_scale(root, group, code_dtype, numerator, trail)
    if not equal(numel(numerator), numel(cast)):
        raise Stop("amax_source", quotient, "a value with an element for each code", describe(peel_exact(numerator)))
    _check_clamp(cast, bounds, read)
    return QuantRead(cast, numerator, _spec(read, code_dtype, division), cast, root)


def read_scaled(call: fx.Node, numerator: fx.Node, scale: object, trail: Trail) -> QuantRead:
    """The quantisation by an op that divides by a scale from the graph, clamps to the FP8 maximum and casts.

    `scale` has the rank of `numerator`, with one element for each group of the last dimension, as torchao spells it.
    """
    code_dtype = dtype(call)
    if code_dtype is None or code_dtype not in FP8_MAXIMA:
        raise Stop("fp8_dtype", call, "one of the FP8 dtypes of fusionlib.GroupQuant", str(code_dtype))
    if not isinstance(scale, fx.Node) or literal(scale) is not None:
        raise _static(call, scale)
    root, group = peel_exact(scale), _elements_per_scale(scale, numerator)
    if group is None:
        read_scale(root, code_dtype, Trail())  # reading further gives a more precise reason
        code = "per_tensor_dynamic" if is_scalar(scale) else "block_group"
        raise Stop(code, call, "one scale for each run of the last dimension", describe(root))
    read = _read_own_scale(root, group, code_dtype, numerator, trail)
    return QuantRead(call, numerator, _spec(read, code_dtype, "divide"), call, root)


def _elements_per_scale(scale: fx.Node, value: fx.Node) -> int | None:
    """How many elements of the last dimension share a scale; None if other dimensions share it too."""
    narrow, wide = shape(scale), shape(value)
    if len(narrow) != len(wide) or not same_shape(narrow[:-1], wide[:-1]):
        return None
    scales, elements = narrow[-1], wide[-1]
    return elements // scales if isinstance(scales, int) and isinstance(elements, int) else None


def _read_own_scale(root: fx.Node, group: int, code_dtype: torch.dtype, value: fx.Node, trail: Trail) -> ScaleRead:
    """The scale, which must be taken over the groups of `value` itself."""
    trail.add("scale", root)
    read = read_scale(root, code_dtype, trail)
    if not same(read.value, value):
        raise Stop("amax_source", read.value, f"the maximum of {describe(peel_exact(value))}", describe(read.value))
    if read.group_size != group:
        raise Stop(
            "amax_source", root, f"one maximum for each of {group} elements", f"one for {read.group_size} elements"
        )
    return read


def _spec(read: ScaleRead, code_dtype: torch.dtype, division: Division) -> GroupQuant:
    spec = GroupQuant(
        read.group_size,
        code_dtype,
        read.floor,
        read.floor_on,
        division,
        "ue8m0" if read.ue8m0 else "float32",
        round_scale=read.round_scale,
        scale_division=read.division,
        fp8_max=None if read.fp8_max == FP8_MAXIMA[code_dtype][0] else read.fp8_max,
        nan_scale=read.nan_scale,
    )
    return replace(spec, floor=spec.floor_in(tensor_of(read.value).dtype))


def _below_clamp(cast: fx.Node, trail: Trail) -> tuple[fx.Node, Bounds | None]:
    clamped = peel_exact(input_of(cast))
    read = clamp_bounds(clamped)
    if read is None:
        return clamped, None
    trail.add("clamp", clamped)
    return peel_exact(read[0]), read[1:]


def _check_clamp(cast: fx.Node, bounds: Bounds | None, read: ScaleRead) -> None:
    """The clamp must be to ±fp8_max.

    Without one the codes are the same only while |y| / scale cannot exceed fp8_max by more than its own rounding. That
    fails once the scale itself was rounded, or without a floor, where a scale can be denormal and have few digits.
    Rounded up to a power of two it is large enough for all but infinities, which the cast may take as the clamp does.
    """
    limit = read.fp8_max
    if bounds is None:
        if (why := _why_clamped(cast, read)) is not None:
            raise Stop("clamp", cast, f"a clamp to ±{limit:g}, since {why}", "no clamp")
        return
    if None in bounds:
        raise Stop("clamp", cast, f"a clamp to ±{limit:g}", f"bounds {bounds}")
    if bounds != (-limit, limit):
        raise Stop("fp8_max", cast, f"a clamp to ±{limit:g}, the maximum the scale was made with", f"bounds {bounds}")


def _why_clamped(cast: fx.Node, read: ScaleRead) -> str | None:
    if read.round_scale:
        return "the scale is rounded"
    if read.ue8m0:
        return (
            None if _saturates(read.fp8_max, tensor_of(cast).dtype) else f"the cast to {dtype(cast)} does not saturate"
        )
    return "nothing bounds the scale from below" if read.floor is None else None


def _saturates(limit: float, code_dtype: torch.dtype) -> bool:
    """Whether a cast makes ±`limit` of infinities, as to float8_e4m3fn since PyTorch 2.13 (its PR #178817).

    Before, eager made NaN of them, and only the code that Inductor generates saturated.
    """
    return torch.tensor(torch.inf).to(code_dtype).float().item() == limit


def _in_float32(node: fx.Node, what: str) -> None:
    if dtype(node) is not torch.float32:
        raise Stop("rounding", node, f"{what} in float32", describe(node))


def _scaled(quotient: fx.Node) -> tuple[fx.Node, object, object, Division]:
    """(value, scale, the operand repeated along the group, division) of a scaled value."""
    expected = "value / scale or value * (1 / scale)"
    if is_div(quotient) and isinstance(quotient.args[0], fx.Node):
        return quotient.args[0], quotient.args[1], quotient.args[1], "divide"
    if not is_mul(quotient):
        raise Stop("quant_division", quotient, expected, describe(quotient))
    for factor, other in (operands(quotient), operands(quotient)[::-1]):
        if not isinstance(factor, fx.Node) or not isinstance(other, fx.Node):
            continue
        scale = _reciprocal_of(factor)
        if scale is not None:
            _in_float32(peel_exact(factor), "the reciprocal of the scale")
            return other, scale, factor, "reciprocal"
    for factor in operands(quotient):
        if is_scalar(factor):
            raise _static(quotient, factor)
    raise Stop("quant_division", quotient, expected, describe(quotient))


def _reciprocal_of(factor: fx.Node) -> fx.Node | None:
    """The scale that `factor` is the reciprocal of, maybe repeated along the group."""
    node = peel_exact(factor)
    if is_call(node, aten.expand.default):
        node = peel_exact(input_of(node))
    return one_over(node)


def _static(quotient: fx.Node, scale: object) -> Stop:
    node = scale if isinstance(scale, fx.Node) else quotient
    return Stop("per_tensor_static", node, "a scale from the maximum of each group", describe(scale))


def _scale_root(quotient: fx.Node, scale: object, repeated: object, code_dtype: torch.dtype) -> tuple[fx.Node, int]:
    """(the node that has the scale's value, elements per scale)."""
    if not isinstance(scale, fx.Node) or literal(scale) is not None:
        raise _static(quotient, scale)
    target = shape(quotient)
    below = peel_exact(scale)
    while is_call(below, aten.expand.default):
        below = peel_exact(input_of(below))
    for operand in (repeated, scale):
        run = broadcast_last(operand, target) if isinstance(operand, fx.Node) else None
        if run is not None:
            return below, run[1]
    # Not one number per run: reading further gives a more precise reason.
    read = read_scale(below, code_dtype, Trail())
    code = "per_tensor_dynamic" if is_scalar(scale) else "group_crosses_tokens"
    if read.group_size == 1:
        raise Stop("group_of_one", quotient, "groups of several elements", describe(below))
    raise Stop(code, quotient, "one scale for each run of the last dimension", describe(below))
