"""Reading a scale: amax of a value, floors, division by the FP8 maximum, roundings, power of two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from fusionlib.match.graph import (
    NARROW,
    aten,
    clamp_bounds,
    describe,
    dtype,
    equal,
    is_call,
    is_cast,
    is_div,
    is_mul,
    is_narrowing,
    literal,
    numel,
    operands,
    peel_exact,
    peel_views,
    shape,
    with_literal,
)
from fusionlib.match.reasons import Stop
from fusionlib.match.result import Trail
from fusionlib.spec import FP8_MAXIMA, LEAST_FLOOR

_MAX_DIM = getattr(aten.max, "dim")  # noqa: B009  (`max.dim` reads like an attribute of the builtin)


@dataclass
class ScaleRead:
    """A scale as it was computed: the value it was taken of, the group, and the arithmetic in between."""

    value: fx.Node
    group_size: int
    fp8_max: float
    floor: float | None = None
    floor_on: str = "amax"
    round_scale: bool = False
    ue8m0: bool = False


def read_scale(scale: fx.Node, code_dtype: torch.dtype, trail: Trail) -> ScaleRead:
    """Read the scale whose value is `scale`, outermost operation first. Raises Stop where it is not one of ours."""
    node, ue8m0 = scale, False
    if is_call(node, aten.where.self) or is_call(node, aten.exp2.default, aten.pow.Scalar, aten.view.dtype):
        node, ue8m0 = _below_power_of_two(node), True
        trail.add("power of two", scale)
    node, scale_floor = _floor(node, trail)
    node, rounded = _below_rounding(node)
    quotient, fp8_max = _below_division(node, code_dtype)
    trail.add("scale = amax / fp8_max", quotient)
    rounded = dtype(quotient) if dtype(quotient) in NARROW else rounded
    if dtype(quotient) in NARROW and not _rounds_alike(scale, quotient):
        raise Stop("rounding", quotient, "one rounding of the scale", describe(quotient))
    amax, amax_floor = _floor(quotient.args[0], trail)
    value, group = _amax(amax, trail)
    if scale_floor is not None and amax_floor is not None:
        raise Stop("scale_arithmetic", quotient, "one floor, of amax or of scale", "floors of both")
    read = ScaleRead(value, group, fp8_max, ue8m0=ue8m0, round_scale=rounded is not None)
    read.floor, read.floor_on = (scale_floor, "scale") if scale_floor is not None else (amax_floor, "amax")
    if read.round_scale and dtype(value) != rounded:
        raise Stop("rounding", quotient, f"the scale rounded to {dtype(value)} or not at all", describe(quotient))
    return read


def _rounds_alike(scale: fx.Node, quotient: fx.Node) -> bool:
    return dtype(scale) in (dtype(quotient), torch.float32)


def _floor(node: fx.Node, trail: Trail) -> tuple[fx.Node, float | None]:
    """(what is bound from below, the floor) where `node` is a clamp from below; a floor of 0 binds nothing."""
    bounds = clamp_bounds(node)
    if bounds is None:
        return peel_exact(node), None
    inner, low, high = bounds
    if high is not None:
        raise Stop("scale_arithmetic", node, "amax and scale bound from below only", f"an upper bound of {high}")
    trail.add("floor", peel_views(node))
    if low is not None and low < 0:
        low = None  # a maximum of magnitudes is never below
    if low and low < LEAST_FLOOR:
        raise Stop("scale_arithmetic", node, f"a floor of at least {LEAST_FLOOR:g}", f"{low:g}")
    return peel_exact(inner), low or None


def _below_rounding(node: fx.Node) -> tuple[fx.Node, torch.dtype | None]:
    if is_narrowing(node) and dtype(node) in NARROW:
        return peel_exact(node.args[0]), dtype(node)
    return node, None


def _below_division(node: fx.Node, code_dtype: torch.dtype) -> tuple[fx.Node, float]:
    """The quotient node amax / fp8_max and fp8_max."""
    maxima = FP8_MAXIMA[code_dtype]
    listed = " or ".join(f"{m:g}" for m in maxima)
    if is_div(node) and isinstance(node.args[0], fx.Node):
        divisor = literal(node.args[1])
        if divisor in maxima:
            return node, divisor
        if divisor is not None:
            raise Stop("fp8_max", node, f"amax divided by {listed}", f"a division by {divisor:g}")
        if isinstance(node.args[1], fx.Node) and numel(node.args[1]) == 1:
            raise Stop("scalar_not_literal", node, "a literal FP8 maximum", describe(node.args[1]))
    if is_mul(node) and (pair := with_literal(node)) is not None:
        raise Stop("scale_arithmetic", node, f"amax divided by {listed}", f"a product with {pair[1]!r}")
    if _find_amax(node) is None:
        code = "per_tensor_static" if equal(numel(node), 1) else "scale_arithmetic"
        raise Stop(code, node, "a scale computed from the maximum of each group", describe(node))
    raise Stop("scale_arithmetic", node, f"amax divided by {listed}", describe(node))


def _find_amax(node: fx.Node, depth: int = 12) -> fx.Node | None:
    """A maximum a few operations above `node`, to tell a dynamic scale from a static one in a refusal."""
    for _ in range(depth):
        if is_call(node, aten.amax.default, aten.max.default, _MAX_DIM):
            return node
        inputs = node.all_input_nodes
        if not inputs:
            return None
        node = inputs[0]
    return None


def _amax(node: fx.Node, trail: Trail) -> tuple[fx.Node, int]:
    """(value, group size) of a maximum of magnitudes over the last dimension."""
    maximum = node
    if is_call(node, aten.amax.default):
        source, dims = node.args[0], node.args[1] if len(node.args) > 1 else []
    elif is_call(node, aten.max.default):
        source, dims = node.args[0], []
    elif node.op == "call_function" and node.target.__name__ == "getitem" and is_call(node.args[0], _MAX_DIM):
        maximum = node.args[0]
        source, dims = maximum.args[0], [maximum.args[1]]
    else:
        raise Stop("scale_arithmetic", node, "the maximum of the magnitudes of a group", describe(node))
    group = _group_of(maximum, source, dims)
    magnitude = peel_exact(source)
    if not is_call(magnitude, aten.abs.default):
        raise Stop("amax_source", maximum, "the maximum of magnitudes: abs before amax", describe(magnitude))
    trail.add("amax", maximum)
    return peel_exact(magnitude.args[0]), group


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
    group = 1
    for d in reduced:
        group = group * sizes[d]
    if not isinstance(group, int):
        raise Stop("symbolic_group", maximum, "a group size known at compile time", f"a group of {group} elements")
    return group


def _below_power_of_two(node: fx.Node) -> fx.Node:
    """The scale that `node` rounds up to a power of two by its exponent bits; any other way is refused."""
    expected = "the exponent by bit operations, NaN kept: fusionlib.reference.power_of_two_at_least"
    if not is_call(node, aten.where.self):
        raise Stop("ue8m0", node, expected, describe(node))
    condition, kept, power = (peel_views(arg) if isinstance(arg, fx.Node) else arg for arg in node.args)
    is_nan = is_call(condition, aten.isnan.default) and peel_exact(condition.args[0]) is peel_exact(kept)
    if not is_nan or not _is_power_by_bits(power, peel_exact(kept)):
        raise Stop("ue8m0", node, expected, describe(power))
    return peel_exact(kept)


def _is_power_by_bits(power: object, scale: fx.Node) -> bool:
    """power == (clamp(exponent + (mantissa != 0), 1, 254) << 23) as float32."""
    shifted = _bitcast(power, torch.float32)
    clamped = _shift(shifted, (aten.__lshift__.Scalar, aten.bitwise_left_shift.Tensor_Scalar), 23)
    bounds = clamp_bounds(clamped) if clamped is not None else None
    if bounds is None or bounds[1:] != (1.0, 254.0) or not is_call(bounds[0], aten.add.Tensor):
        return False
    exponent, carry = (peel_views(arg) if isinstance(arg, fx.Node) else arg for arg in operands(bounds[0]))
    return any(_is_exponent(a, scale) and _is_carry(b, scale) for a, b in ((exponent, carry), (carry, exponent)))


def _is_exponent(node: object, scale: fx.Node) -> bool:
    bits = _shift(_mask(node, 0xFF), (aten.__rshift__.Scalar, aten.bitwise_right_shift.Tensor_Scalar), 23)
    return _bits_of(bits, scale)


def _is_carry(node: object, scale: fx.Node) -> bool:
    if not is_cast(node) or dtype(node) is not torch.int32:
        return False
    unequal = peel_views(node.args[0])
    return (
        is_call(unequal, aten.ne.Scalar) and unequal.args[1] == 0 and _bits_of(_mask(unequal.args[0], 0x7FFFFF), scale)
    )


def _bits_of(node: object, scale: fx.Node) -> bool:
    cast = _bitcast(node, torch.int32)
    return cast is not None and peel_exact(cast) is scale and dtype(cast) is torch.float32


def _bitcast(node: object, target: torch.dtype) -> fx.Node | None:
    node = peel_views(node) if isinstance(node, fx.Node) else node
    return node.args[0] if is_call(node, aten.view.dtype) and dtype(node) is target else None


def _shift(node: object, targets: tuple, amount: int) -> fx.Node | None:
    node = peel_views(node) if isinstance(node, fx.Node) else node
    return node.args[0] if is_call(node, *targets) and literal(node.args[1]) == amount else None


def _mask(node: object, mask: int) -> fx.Node | None:
    node = peel_views(node) if isinstance(node, fx.Node) else node
    targets = (aten.bitwise_and.Scalar, aten.__and__.Scalar)
    return node.args[0] if is_call(node, *targets) and literal(node.args[1]) == mask else None
