"""Reads a scale: amax of a value, floors, division by the FP8 maximum, roundings, power of two."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import torch
from torch import fx

from fusionlib.match.graph import (
    NARROW,
    aten,
    clamp_bounds,
    describe,
    divided_by_literal,
    dtype,
    input_of,
    is_add,
    is_call,
    is_cast,
    is_div,
    is_mul,
    is_narrowing,
    listed,
    literal,
    numel,
    operands,
    peel_exact,
    peel_views,
    result_of,
    shape,
    shortest,
    tensor_of,
    with_literal,
)
from fusionlib.match.reasons import Stop
from fusionlib.match.result import Trail
from fusionlib.match.sizes import Size, equal
from fusionlib.spec import FP8_MAXIMA, GREATEST_FLOOR, LEAST_FLOOR, Division, FloorOn, NanScale

_MAX_DIM = getattr(aten.max, "dim")  # noqa: B009  (`max.dim` reads like an attribute of the builtin)
_MAXIMA = (aten.amax.default, aten.max.default, _MAX_DIM)


@dataclass
class ScaleRead:
    """A scale as it was computed: the value it was taken from, the group, and the arithmetic in between."""

    value: fx.Node
    group_size: int
    fp8_max: float
    floor: float | None = None
    floor_on: FloorOn = "amax"
    round_scale: bool = False
    ue8m0: bool = False
    division: Division = "divide"
    nan_scale: NanScale = "nan"


def read_scale(scale: fx.Node, code_dtype: torch.dtype, trail: Trail) -> ScaleRead:
    """Read the scale whose value is `scale`, outermost operation first. Raises Stop if it is not one of ours."""
    node, ue8m0 = scale, _is_power_of_two(scale)
    nan_scale: NanScale = "nan"
    if ue8m0:
        node, nan_scale = _below_power_of_two(node)
        trail.add("power of two", scale)
    node, scale_floor = _floor(node, trail)
    node, rounded = _below_rounding(node)
    quotient, dividend, fp8_max, division = _below_division(node, code_dtype)
    trail.add("scale = amax / fp8_max", quotient)
    rounded = dtype(quotient) if dtype(quotient) in NARROW else rounded
    if dtype(quotient) in NARROW and not _rounds_alike(scale, quotient):
        raise Stop("rounding", quotient, "one rounding of the scale", describe(quotient))
    amax, amax_floor = _floor(dividend, trail)
    value, group = _amax(amax, trail)
    if scale_floor is not None and amax_floor is not None:
        raise Stop("scale_arithmetic", quotient, "one floor, of amax or of scale", "floors of both")
    read = ScaleRead(value, group, fp8_max, ue8m0=ue8m0, round_scale=rounded is not None, division=division)
    read.nan_scale = nan_scale
    read.floor, read.floor_on = (scale_floor, "scale") if scale_floor is not None else (amax_floor, "amax")
    if read.round_scale and dtype(value) != rounded:
        raise Stop("rounding", quotient, f"the scale rounded to {dtype(value)} or not at all", describe(quotient))
    return read


def _rounds_alike(scale: fx.Node, quotient: fx.Node) -> bool:
    return dtype(scale) in (dtype(quotient), torch.float32)


def _floor(node: fx.Node, trail: Trail) -> tuple[fx.Node, float | None]:
    """(what is bounded, the floor) if `node` is a clamp from below; a floor of 0 bounds nothing."""
    node = peel_exact(node)
    bounds = clamp_bounds(node)
    if bounds is None:
        return node, None
    inner, low, high = bounds
    if high is not None:
        raise Stop("scale_bound", node, "amax and scale bound from below only", f"an upper bound of {high:g}")
    trail.add("floor", node)
    if low is not None and low <= 0:
        low = None  # a maximum of magnitudes is never lower
    if low is not None and not LEAST_FLOOR <= low <= GREATEST_FLOOR:
        raise Stop("floor", node, f"a floor from {LEAST_FLOOR:g} to {GREATEST_FLOOR:g}", f"{low:g}")
    return peel_exact(inner), None if low is None else shortest(low)


def _below_rounding(node: fx.Node) -> tuple[fx.Node, torch.dtype | None]:
    if is_narrowing(node) and dtype(node) in NARROW:
        return peel_exact(input_of(node)), dtype(node)
    return node, None


def _below_division(node: fx.Node, code_dtype: torch.dtype) -> tuple[fx.Node, fx.Node, float, Division]:
    """(the node that is amax over fp8_max, amax, fp8_max, `GroupQuant.scale_division`)."""
    maxima = FP8_MAXIMA[code_dtype]
    listed = " or ".join(f"{m:g}" for m in maxima)
    if not _has_maximum(node):
        code = "per_tensor_static" if equal(numel(node), 1) else "per_group_static"
        raise Stop(code, node, "a scale computed from the maximum of each group", describe(node))
    if (pair := divided_by_literal(node)) is not None:
        if pair[1] not in maxima:
            raise Stop("fp8_max", node, f"amax divided by {listed}", f"a division by {pair[1]:g}")
        return node, *pair, "reciprocal" if _multiplies(node) else "divide"
    if is_div(node) and isinstance(divisor := node.args[1], fx.Node) and numel(divisor) == 1:
        raise Stop("scalar_not_literal", node, "a literal FP8 maximum", describe(divisor))
    if is_mul(node) and (pair := with_literal(node)) is not None:
        for fp8_max in maxima:
            if torch.tensor(pair[1]) == torch.tensor(1.0 / fp8_max):
                return node, pair[0], fp8_max, "reciprocal"
        raise Stop("scale_arithmetic", node, f"amax divided by {listed}", f"a product with {pair[1]!r}")
    raise Stop("scale_arithmetic", node, f"amax divided by {listed}", describe(node))


def _multiplies(division: fx.Node) -> bool:
    """Whether PyTorch turns a division by a literal into a product: on a GPU, by a number or a scalar on the CPU."""
    divisor = division.args[1]
    on_cpu = not isinstance(divisor, fx.Node) or (shape(divisor) == () and tensor_of(divisor).device.type == "cpu")
    return on_cpu and tensor_of(division).device.type != "cpu"


def _has_maximum(scale: fx.Node) -> bool:
    """Whether there is a maximum a few operations above a scale: this tells a dynamic scale from a static one."""
    queue, seen = deque([scale]), 0
    while queue and seen < 24:
        node, seen = queue.popleft(), seen + 1
        if is_call(node, *_MAXIMA):
            return True
        queue.extend(node.all_input_nodes)
    return False


def _amax(node: fx.Node, trail: Trail) -> tuple[fx.Node, int]:
    """(value, group size) of a maximum of magnitudes over the last dimension."""
    maximum = node
    if is_call(node, aten.amax.default):
        source, dims = input_of(node), listed(node.args[1]) if len(node.args) > 1 else []
    elif is_call(node, aten.max.default):
        source, dims = input_of(node), []
    elif (taken := result_of(node, _MAX_DIM)) is not None:
        maximum, result = taken
        if result != 0:
            raise Stop("scale_arithmetic", node, "the maximum of the magnitudes of a group", "where it stands in it")
        source, dims = input_of(maximum), [maximum.args[1]]
    else:
        if is_call(node, aten.expand.default):
            _amax(peel_exact(input_of(node)), Trail())  # reading past the repeat may give a more precise reason
        raise Stop("scale_arithmetic", node, "the maximum of the magnitudes of a group", describe(node))
    magnitude = peel_exact(source)
    if is_call(magnitude, *_MAXIMA) or result_of(magnitude, _MAX_DIM) is not None:
        raise Stop("block_group", maximum, "a maximum over the last dimension", "a maximum of maxima")
    group = _group_of(maximum, source, dims)
    if not is_call(magnitude, aten.abs.default):
        raise Stop("amax_source", maximum, "the maximum of magnitudes: abs before amax", describe(magnitude))
    trail.add("amax", maximum)
    return peel_exact(input_of(magnitude)), group


def _group_of(maximum: fx.Node, source: fx.Node, dims: list[int]) -> int:
    """The elements that one maximum covers: those of the reduced trailing dimensions."""
    sizes = shape(source)
    rank = len(sizes)
    if not dims or len(dims) == rank:
        raise Stop("per_tensor_dynamic", maximum, "one maximum per group of the last dimension", "one for all elements")
    reduced = sorted(d % rank for d in dims)
    if reduced != list(range(rank - len(reduced), rank)):
        code = "block_group" if rank - 1 in reduced else "group_crosses_tokens"
        raise Stop(code, maximum, "a maximum over the last dimension", f"over dimensions {reduced} of {rank}")
    group: Size = 1
    for d in reduced:
        group = group * sizes[d]
    if not isinstance(group, int):
        raise Stop("symbolic_group", maximum, "a group size known at compile time", f"a group of {group} elements")
    return group


def _is_power_of_two(node: fx.Node) -> bool:
    """Whether `node` looks like a scale rounded to a power of two, whichever way."""
    if is_call(node, aten.where.self):
        return is_call(peel_views(input_of(node)), aten.isnan.default)
    return is_call(node, aten.exp2.default, aten.pow.Scalar, aten.view.dtype)


def _below_power_of_two(node: fx.Node) -> tuple[fx.Node, NanScale]:
    """(the scale that `node` rounds up to a power of two by its exponent bits, what it makes of NaN).

    Any other way is refused.
    """
    expected = "the exponent by bit operations: fusionlib.reference.power_of_two_at_least"
    if not is_call(node, aten.where.self):
        if (below := _power_by_bits(node)) is not None:
            return below, "largest"
        found = "a carry into the exponent, which makes -0 of NaN" if _is_power_by_carry(node) else describe(node)
        raise Stop("ue8m0", node, expected, found)
    condition, kept, power = (peel_views(arg) if isinstance(arg, fx.Node) else arg for arg in node.args)
    scale = peel_exact(kept) if isinstance(kept, fx.Node) else None
    same_scale = isinstance(condition, fx.Node) and peel_exact(input_of(condition)) is scale
    if scale is None or not same_scale or _power_by_bits(power) is not scale:
        raise Stop("ue8m0", node, expected, describe(power))
    return scale, "nan"


def _power_by_bits(power: object) -> fx.Node | None:
    """The scale for which `power` is (clamp(exponent + (mantissa != 0), 1, 254) << 23) as float32, or None."""
    shifted = _bitcast(power, torch.float32)
    clamped = _shift(shifted, (aten.__lshift__.Scalar, aten.bitwise_left_shift.Tensor_Scalar), 23)
    bounds = clamp_bounds(clamped) if clamped is not None else None
    if bounds is None or bounds[1:] != (1.0, 254.0) or not is_call(bounds[0], aten.add.Tensor) or not is_add(bounds[0]):
        return None
    parts = [peel_views(arg) if isinstance(arg, fx.Node) else arg for arg in operands(bounds[0])]
    for exponent, carry in (parts, parts[::-1]):
        scale = _exponent_of(exponent)
        if scale is not None and _carry_of(carry) is scale:
            return scale
    return None


def _is_power_by_carry(power: object) -> bool:
    """Whether `power` is (bits + 0x7FFFFF) & ~0x7FFFFF as float32: it makes -0 of NaN, and 0 of 0."""
    masked = _mask(_bitcast(power, torch.float32), ~0x7FFFFF)
    added = peel_views(masked) if masked is not None else None
    pair = with_literal(added) if is_add(added) else None
    return pair is not None and pair[1] == 0x7FFFFF and _scale_of(pair[0]) is not None


def _exponent_of(node: object) -> fx.Node | None:
    """The scale that `node` is the exponent of."""
    return _scale_of(_shift(_mask(node, 0xFF), (aten.__rshift__.Scalar, aten.bitwise_right_shift.Tensor_Scalar), 23))


def _carry_of(node: object) -> fx.Node | None:
    """The scale for which `node` says, as 0 or 1, whether any mantissa bit is set."""
    if not is_cast(node) or dtype(node) is not torch.int32:
        return None
    unequal = peel_views(input_of(node))
    if is_cast(unequal) and dtype(unequal) is torch.bool:
        return _scale_of(_mask(unequal.args[0], 0x7FFFFF))
    if not is_call(unequal, aten.ne.Scalar) or unequal.args[1] != 0:
        return None
    return _scale_of(_mask(unequal.args[0], 0x7FFFFF))


def _scale_of(bits: object) -> fx.Node | None:
    """The float32 scale whose exponent and mantissa these bits have; a magnitude has those of its value."""
    cast = _bitcast(bits, torch.int32)
    if cast is None or dtype(cast) is not torch.float32:
        return None
    scale = peel_exact(cast)
    return peel_exact(input_of(scale)) if is_call(scale, aten.abs.default) else scale


def _bitcast(node: object, target: torch.dtype) -> fx.Node | None:
    node = peel_views(node) if isinstance(node, fx.Node) else node
    return input_of(node) if is_call(node, aten.view.dtype) and dtype(node) is target else None


def _shift(node: object, targets: tuple[object, ...], amount: int) -> fx.Node | None:
    node = peel_views(node) if isinstance(node, fx.Node) else node
    return input_of(node) if is_call(node, *targets) and literal(node.args[1]) == amount else None


def _mask(node: object, mask: int) -> fx.Node | None:
    node = peel_views(node) if isinstance(node, fx.Node) else node
    targets = (aten.bitwise_and.Scalar, aten.__and__.Scalar)
    return input_of(node) if is_call(node, *targets) and literal(node.args[1]) == mask else None
