"""Views of FX nodes: what a value is below reshapes, no-op casts and copies.

The computation is elementwise except for two reductions over trailing elements, so a value is identified by its
elements in row-major order, whatever its shape: every reshape, squeeze, flatten or clone is transparent. A cast that
widens (bf16 -> fp32) is exact and transparent too; one that narrows is a rounding and is never looked through.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterable, Sequence
from math import prod
from typing import Any, TypeGuard

import torch
from torch import fx

from fusionlib.match.sizes import Shape, Size, equal, plain, same_shape
from fusionlib.match.source_lines import source_line as source_line

aten, prims = torch.ops.aten, torch.ops.prims

NARROW = (torch.bfloat16, torch.float16)
FLOATS = (*NARROW, torch.float32)
FLOAT32_MAX = torch.finfo(torch.float32).max

# Same elements in the same row-major order, whatever the strides of the result.
_VIEWS = {
    aten.view.default,
    aten._unsafe_view.default,
    aten.reshape.default,
    aten._reshape_alias.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.unsqueeze.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.alias.default,
    aten.detach.default,
    aten.clone.default,
    aten.contiguous.default,
    aten.lift_fresh_copy.default,
}
# Views only if they drop, repeat and move nothing.
_VIEWS_IF_SAME_SHAPE = {aten.expand.default, aten.slice.Tensor, aten.copy.default}
_CASTS = {prims.convert_element_type.default, aten._to_copy.default, aten.to.dtype}

#: Tensors filled with one number, and which argument it is.
_FILLS: dict[object, int] = {
    aten.full.default: 1,
    aten.full_like.default: 1,
    aten.new_full.default: 2,
    aten.scalar_tensor.default: 0,
}

_MUL = {aten.mul.Tensor, aten.mul.Scalar}
_ADD = {aten.add.Tensor, aten.add.Scalar}
_DIV = {aten.div.Tensor, aten.div.Scalar}

#: Under this key a placeholder of a number has its value, where a guard holds it (`rewrite.module_floats`).
CONSTANT = "fusionlib_constant"

#: (value, low, high) of a clamp; None for an open side.
Clamp = tuple[fx.Node, float | None, float | None]


def is_call(node: object, *targets: object) -> TypeGuard[fx.Node]:
    """Whether `node` is an FX node that calls one of `targets`."""
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target in targets


def is_mul(node: object) -> TypeGuard[fx.Node]:
    """Whether `node` multiplies."""
    return is_call(node, *_MUL)


def is_div(node: object) -> TypeGuard[fx.Node]:
    """Whether `node` divides without rounding to integers (`rounding_mode` is another overload)."""
    return is_call(node, *_DIV)


def is_add(node: object) -> TypeGuard[fx.Node]:
    """Whether `node` adds two operands unscaled."""
    return is_call(node, *_ADD) and bool(node.kwargs.get("alpha", 1) == 1) and len(node.args) == 2


def input_of(node: fx.Node, index: int = 0) -> fx.Node:
    """The node that is an argument of `node` which the op's schema calls a tensor. Raises TypeError for others."""
    argument = node.args[index]
    if not isinstance(argument, fx.Node):
        raise TypeError(f"argument {index} of {describe(node)} is {argument!r} and no node")
    return argument


def listed(argument: object) -> list[Any]:
    """The elements of an argument that is a list, such as dimensions of a reduction. Raises TypeError for others."""
    if not isinstance(argument, Sequence):
        raise TypeError(f"{argument!r} is no list")
    return list(argument)


def written_arguments(op: torch._ops.OpOverload) -> list[str]:
    """The names of the arguments that `op` writes to."""
    return [a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write]


def computed_by(
    ends: Iterable[fx.Node], stop: Container[fx.Node | None], is_part: Callable[[fx.Node], bool] = lambda node: True
) -> set[fx.Node]:
    """The calls that make up `ends`: these and what they are computed from, up to `stop` and what is no part."""
    stack, found = list(ends), set[fx.Node]()
    while stack:
        node = stack.pop()
        if node not in found and node not in stop and node.op == "call_function" and is_part(node):
            found.add(node)
            stack.extend(node.all_input_nodes)
    return found


def value(node: fx.Node) -> torch.Tensor | None:
    """The fake tensor a node stands for, or None if it is not a tensor or has no metadata."""
    val = node.meta.get("val")
    return val if isinstance(val, torch.Tensor) else None


def tensor_of(node: fx.Node) -> torch.Tensor:
    """The fake tensor of a node that is known to stand for one. Raises TypeError for others."""
    val = value(node)
    if val is None:
        raise TypeError(f"{describe(node)} is no tensor")
    return val


def dtype(node: fx.Node) -> torch.dtype | None:
    """The dtype of a tensor node, None for others."""
    val = value(node)
    return None if val is None else val.dtype


def shape(node: fx.Node) -> Shape:
    """The shape of a tensor node, with sizes as numbers where they are static; `()` if it is not a tensor."""
    val = value(node)
    return () if val is None else tuple(plain(size) for size in val.shape)


def numel(node: fx.Node) -> Size:
    """The number of elements of a tensor node, maybe symbolic."""
    return prod(shape(node))


def is_cast(node: object) -> TypeGuard[fx.Node]:
    """Whether `node` does nothing but change the dtype."""
    return is_call(node, *_CASTS)


def is_narrowing(node: object) -> TypeGuard[fx.Node]:
    """Whether `node` is a cast that rounds."""
    return is_cast(node) and not _widens(node)


def _widens(node: fx.Node) -> bool:
    source, target = dtype(input_of(node)), dtype(node)
    return source is not None and (source == target or (source in FLOATS and target is torch.float32))


def _copy_source(node: fx.Node) -> fx.Node | None:
    """What `node` is a reshape or copy of, in the same dtype, or None."""
    if is_call(node, *_VIEWS):
        return node.args[0] if isinstance(node.args[0], fx.Node) else None
    if is_call(node, *_VIEWS_IF_SAME_SHAPE):
        source = input_of(node, 1 if node.target is aten.copy.default else 0)
        if same_shape(shape(source), shape(node)) and dtype(source) == dtype(node):
            return source
    if is_cast(node) and dtype(input_of(node)) == dtype(node):
        return input_of(node)
    return None


def _view_source(node: fx.Node) -> fx.Node | None:
    """What `node` is a reshape, a copy or one times of, in the same dtype, or None."""
    if (source := _copy_source(node)) is not None:
        return source
    if is_mul(node) and (pair := with_literal(node)) is not None and pair[1] == 1.0:
        return pair[0] if dtype(pair[0]) == dtype(node) else None  # 1.0 / v is traced as reciprocal(v) * 1.0
    return None


def peel_views(node: fx.Node) -> fx.Node:
    """The node whose elements these are, below reshapes and copies of the same dtype."""
    while (source := _view_source(node)) is not None:
        node = source
    return node


def below(node: fx.Node) -> fx.Node | None:
    """The node that `node` is a reshape, a copy or a lossless cast of; None if it is its own value."""
    source = _view_source(node)
    return input_of(node) if source is None and is_cast(node) and _widens(node) else source


def peel_exact(node: fx.Node) -> fx.Node:
    """The node whose values these are, below reshapes, copies and lossless casts."""
    while (source := below(node)) is not None:
        node = source
    return node


def same(a: object, b: object) -> bool:
    """Whether two nodes carry the same values in the same order."""
    return isinstance(a, fx.Node) and isinstance(b, fx.Node) and peel_exact(a) is peel_exact(b)


def literal(arg: object) -> float | None:
    """The number that `arg` is: a Python number, or a tensor filled with one; None if only known at run time."""
    dtypes: list[torch.dtype | None] = []  # what the number is cast to along the way, outermost first
    while isinstance(arg, fx.Node):
        node = arg
        while (source := _copy_source(node)) is not None:
            node = source
        if not is_cast(node) and not is_call(node, *_FILLS):
            number = _constant(node)
            break
        dtypes.append(dtype(node))
        arg = node.args[_FILLS.get(node.target, 0)]
    else:
        number = float(arg) if isinstance(arg, (int, float)) and not isinstance(arg, bool) else None
    for kind in reversed(dtypes if number is not None else []):
        number = float(torch.tensor(number, dtype=kind))
    return number


def shortest(number: float) -> float:
    """The shortest decimal for the same float32: 1e-6 is sometimes traced as 9.99999997e-07."""
    short = float(f"{number:.6g}")
    return short if torch.tensor(short) == torch.tensor(number) else number


def _constant(node: fx.Node) -> float | None:
    """The number in a one-element tensor that tracing stored on the module (`torch.tensor(1e-10)` in the model).

    Also that of a placeholder whose value is guarded.
    """
    if node.op == "placeholder":
        return node.meta.get(CONSTANT)
    module = node.graph.owning_module
    if node.op != "get_attr" or module is None or not str(node.target).startswith("_tensor_constant"):
        return None
    tensor = getattr(module, str(node.target), None)
    if not isinstance(tensor, torch.Tensor) or type(tensor) is not torch.Tensor or tensor.numel() != 1:
        return None
    return float(tensor) if tensor.dtype.is_floating_point else None


def is_scalar(arg: object) -> bool:
    """Whether `arg` is a number, literal or not: not a tensor, or a tensor of one element."""
    if not isinstance(arg, fx.Node) or value(arg) is None:
        return True
    return isinstance(numel(arg), int) and numel(arg) == 1


def operands(node: fx.Node) -> tuple[object, object]:
    """Both operands of a binary node."""
    return node.args[0], node.args[1]


def with_literal(node: fx.Node) -> tuple[fx.Node, float] | None:
    """(other operand, number) of a commutative binary node that has a literal operand, else None."""
    a, b = operands(node)
    for tensor, number in ((a, b), (b, a)):
        read = literal_beside(node, tensor, number)
        if read is not None and isinstance(tensor, fx.Node):
            return tensor, read
    return None


def literal_beside(node: fx.Node, tensor: object, number: object) -> float | None:
    """The number that an operand of `node` is, if the other one, `tensor`, gives the result its shape.

    A one-element tensor counts only if it is used like a number: if it widens the result, the values of `tensor` are
    repeated and change places.
    """
    if not isinstance(tensor, fx.Node) or not same_shape(shape(tensor), shape(node)):
        return None
    return literal(number)


def divided_by_literal(node: object) -> tuple[fx.Node, float] | None:
    """(numerator, number) of a division by a literal, else None."""
    if not is_div(node):
        return None
    read = literal_beside(node, *operands(node))
    return None if read is None else (input_of(node), read)


def one_over(node: object) -> fx.Node | None:
    """What `node` is the reciprocal of: `reciprocal(v)`, or `1 / v`."""
    if is_call(node, aten.reciprocal.default):
        return input_of(node)
    if is_div(node) and literal_beside(node, node.args[1], node.args[0]) == 1.0:
        return input_of(node, 1)
    return None


def result_of(node: object, *targets: object) -> tuple[fx.Node, int] | None:
    """(call, index) if `node` takes one of the several results of a call of `targets`; else None."""
    if not is_call(node, operator.getitem):
        return None
    call, index = operands(node)
    return (call, index) if is_call(call, *targets) and isinstance(index, int) else None


def broadcast_last(operand: fx.Node, target: Shape) -> tuple[fx.Node, int] | None:
    """(root, n) if `operand`, used with an operand of shape `target`, repeats every element of root n times in a row.

    Either the operation broadcasts a last dimension of 1, or an `expand` before it did (what `repeat_interleave` and
    `expand_as` become). None if it does neither, or repeats along another dimension.
    """
    node, wide = operand, target
    if same_shape(shape(operand), target):
        node = peel_exact(operand)
        if not is_call(node, aten.expand.default):
            return None
        wide, node = shape(node), input_of(node)
    if not _only_last_dimension_is_one(shape(node), wide):
        return None
    times = wide[-1]
    return (peel_exact(node), times) if isinstance(times, int) else None


def _only_last_dimension_is_one(narrow: Shape, wide: Shape) -> bool:
    if len(narrow) > len(wide) or not narrow:
        return False
    narrow = (1,) * (len(wide) - len(narrow)) + narrow
    return equal(narrow[-1], 1) and same_shape(narrow[:-1], wide[:-1])


def is_vector_of(operand: fx.Node, target: Shape) -> bool:
    """Whether `operand` is broadcast over leading dimensions only: the same vector for every row of `target`."""
    own = shape(operand)
    stripped = own
    while stripped and equal(stripped[0], 1):
        stripped = stripped[1:]
    if not stripped or len(stripped) > len(target):
        return False
    if not same_shape(stripped, target[len(target) - len(stripped) :]):
        return False
    return len(own) < len(target) or not same_shape(own, target)


def clamp_bounds(node: fx.Node) -> Clamp | None:
    """(value, low, high) if `node` clamps by literals, through any run of clamps; None if it does not clamp.

    Bounds of 16-bit values are rounded to their dtype, as PyTorch does.
    """
    low: float | None = None
    high: float | None = None
    current, found = peel_views(node), False
    while (step := _clamp_step(current)) is not None:
        current, step_low, step_high = step
        # Outer bounds win over inner ones: clamp(clamp(x, a), b).
        low = step_low if low is None else low if step_low is None else max(low, step_low)
        high = step_high if high is None else high if step_high is None else min(high, step_high)
        found = True
        current = peel_views(current)
    return (current, low, high) if found else None


def _clamp_step(node: fx.Node) -> Clamp | None:
    if is_narrowing(node) and dtype(node) in NARROW:
        # Inductor spells a 16-bit clamp as widen, clamp, narrow: that rounds only the bounds.
        step = clamp_bounds(peel_exact(input_of(node)))
        if step is None or dtype(peel_exact(step[0])) != dtype(node):
            return None
        inner, low, high = step
        return peel_exact(inner), _bound_as_stored(node, low), _bound_as_stored(node, high)
    if is_call(node, aten.clamp.default):
        given = [node.args[1] if len(node.args) > 1 else node.kwargs.get("min")]
        given += [node.args[2] if len(node.args) > 2 else node.kwargs.get("max")]
        low, high = map(literal, given)
        if any(b is not None and literal(b) is None for b in given):
            return None
        return input_of(node), _bound_as_stored(node, low), _bound_as_stored(node, high)
    if is_call(node, aten.hardtanh.default) and len(node.args) == 3:
        low, high = map(literal, node.args[1:])
        if low is None or high is None:
            return None
        return input_of(node), _as_stored(node, low), _as_stored(node, high)
    for targets, is_low in (
        ((aten.clamp_min.default, aten.clamp_min.Tensor, aten.maximum.default), True),
        ((aten.clamp_max.default, aten.clamp_max.Tensor, aten.minimum.default), False),
    ):
        if is_call(node, *targets):
            pair = with_literal(node)
            if pair is None:
                return None
            bound = _as_stored(node, pair[1])
            return (pair[0], bound, None) if is_low else (pair[0], None, bound)
    return _chosen_bound(node) if is_call(node, aten.where.self) else None


def _chosen_bound(node: fx.Node) -> Clamp | None:
    """(v, low, high) of `where(v < low, low, v)` or `where(v > high, high, v)`, which keep NaN as a clamp does."""
    condition, chosen, kept = input_of(node, 0), node.args[1], input_of(node, 2)
    low = is_call(condition, aten.lt.Scalar, aten.lt.Tensor, aten.le.Scalar, aten.le.Tensor)
    high = is_call(condition, aten.gt.Scalar, aten.gt.Tensor, aten.ge.Scalar, aten.ge.Tensor)
    if not (low or high) or not isinstance(condition.args[0], fx.Node):
        return None
    bound, threshold = literal_beside(node, kept, chosen), literal_beside(condition, *operands(condition))
    if bound is None or threshold is None:
        return None
    compared, against = peel_exact(condition.args[0]), _as_stored(kept, threshold)
    if compared is not peel_exact(kept) or dtype(kept) != dtype(node) or torch.tensor(against) != torch.tensor(bound):
        return None
    return (kept, bound, None) if low else (kept, None, bound)


def _as_stored(node: fx.Node, number: float) -> float:
    """`number` as an operation on 16-bit values sees it; float32 keeps the number as written."""
    return float(torch.tensor(number, dtype=dtype(node))) if dtype(node) in NARROW else number


def _bound_as_stored(node: fx.Node, bound: float | None) -> float | None:
    return None if bound is None else _as_stored(node, bound)


def describe(node: object) -> str:
    """A node in words: its operation, dtype and shape."""
    if not isinstance(node, fx.Node):
        return repr(node)
    name = node.target if isinstance(node.target, str) else str(node.target)
    tensor = tensor_text(node)
    return f"%{node.name} = {name} ({tensor})" if tensor else f"%{node.name} = {name}"


def tensor_text(node: fx.Node) -> str:
    """Dtype and shape of a tensor node, empty for others."""
    val = value(node)
    return "" if val is None else f"{str(val.dtype).removeprefix('torch.')} {list(val.shape)}"
