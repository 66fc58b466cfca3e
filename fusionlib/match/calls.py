"""Calls of third-party code: ops, ops that write into arguments, and Triton kernels, whatever PyTorch wraps them in.

An op that writes into arguments reaches a pass as `auto_functionalized` or `auto_functionalized_v2`, which return what
was written; a Triton kernel that the model launches as `triton_kernel_wrapper_functional`, and so does one inside of a
`triton_op`. Both also have a form that writes in place (the op itself, `triton_kernel_wrapper_mutation`), which no
value of the graph stands for.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._higher_order_ops.triton_kernel_wrap import kernel_side_table

from fusionlib.match.graph import aten, describe, is_call, listed, peel_views, tensor_of, value, written_arguments
from fusionlib.match.reasons import Stop
from fusionlib.match.sizes import Shape, same_shape

_FUNCTIONALISED = (torch.ops.higher_order.auto_functionalized, torch.ops.higher_order.auto_functionalized_v2)
_KERNEL, _KERNEL_IN_PLACE = (
    torch.ops.higher_order.triton_kernel_wrapper_functional, torch.ops.higher_order.triton_kernel_wrapper_mutation,
)  # fmt: skip

#: Ops that slice or transpose an allocation into the tensor that an op writes to.
_STRIDED_VIEWS = (
    aten.permute.default, aten.transpose.int, aten.t.default, aten.slice.Tensor, aten.as_strided.default,
    aten.view.default, aten.alias.default,
)  # fmt: skip
_ALLOCATIONS = (
    aten.empty.memory_format, aten.empty_strided.default, aten.empty_like.default, aten.new_empty.default,
    aten.new_empty_strided.default, aten.empty_permuted.default, aten.full.default, aten.full_like.default,
    aten.new_full.default,
)  # fmt: skip


@dataclass(frozen=True)
class Written:
    """A tensor that a call writes to.

    Args:
        fake: a tensor of its shape, dtype and strides, without data.
        before: the node that is written to; None if that is only part of a node's tensor, such as a transposed
            allocation, and no node stands for it.
    """

    fake: torch.Tensor
    before: fx.Node | None = None


class Arguments(dict[str, Any]):
    """The arguments of a call by their names in the schema, or in the kernel's signature.

    A tensor that is read is a node of the graph, one that is written a `Written`. Defaults are included as the schema
    stores them, where a dtype is a number, or as the kernel's parameters have them; so are the constants on which all
    configurations of `triton.autotune` agree. What a `triton.heuristics` below it sets is not known, and missing.

    Attributes:
        call: the node that makes the call.
        op: the op that is called; None for a Triton kernel.
        kernel: the Triton kernel that is launched, as `triton.jit` made it; None for an op.
    """

    def __init__(self, call: fx.Node, op: torch._ops.OpOverload | None = None, kernel: Any = None) -> None:
        super().__init__()
        self.call, self.op, self.kernel = call, op, kernel

    def fake(self, name: str) -> torch.Tensor:
        """A tensor without data that has the shape, dtype and strides of argument `name`, read or written."""
        argument = self[name]
        return argument.fake if isinstance(argument, Written) else tensor_of(argument)

    def node(self, name: str) -> fx.Node:
        """The node of a tensor argument. Raises Stop if no node stands for it."""
        argument = self[name]
        node = argument.before if isinstance(argument, Written) else argument
        if not isinstance(node, fx.Node):
            raise Stop("opaque_quant", self.call, f"a tensor of the graph for {name}", describe(argument))
        return node

    def given(self, name: str) -> fx.Node | None:
        """The node of an optional tensor argument; None if it is not given."""
        return None if self.get(name) is None else self.node(name)

    @property
    def returned(self) -> tuple[Any, ...]:
        """What the call returns, tensors without data, without those that it writes to."""
        made = self.call.meta.get("val")
        if self.kernel is not None:
            return ()
        results = tuple(made) if isinstance(made, (tuple, list)) else (made,)
        return results[: len(self.op._schema.returns)] if self.op is not None and functionalised(self.call) else results


def functionalised(node: fx.Node) -> torch._ops.OpOverload | None:
    """The op that `node` calls through `auto_functionalized`; None if it calls no such wrapper."""
    op = node.args[0] if node.op == "call_function" and node.target in _FUNCTIONALISED and node.args else None
    return op if isinstance(op, torch._ops.OpOverload) else None


def called_op(node: fx.Node) -> torch._ops.OpOverload | None:
    """The op that `node` calls, directly or through a wrapper."""
    if node.op != "call_function":
        return None
    op = node.target if isinstance(node.target, torch._ops.OpOverload) else functionalised(node)
    return op if isinstance(op, torch._ops.OpOverload) else None


def launched_kernel(node: fx.Node) -> Any:
    """The Triton kernel that `node` launches, as `triton.jit` or `triton.autotune` made it; None if there is none."""
    if not is_call(node, _KERNEL, _KERNEL_IN_PLACE):
        return None
    return kernel_side_table.get_kernel(node.kwargs["kernel_idx"])  # type: ignore[arg-type]  # an int


def kernel_names(kernel: Any) -> tuple[str, str]:
    """(module.name, name) of a Triton kernel, below `triton.autotune` and `triton.heuristics`."""
    function = kernel
    while hasattr(function, "fn"):
        function = function.fn
    return f"{function.__module__}.{function.__qualname__}", function.__name__


def arguments_of(node: fx.Node) -> Arguments:
    """The arguments of a call of an op, or of a launch of a Triton kernel. Raises TypeError for other nodes."""
    if (kernel := launched_kernel(node)) is not None:
        return _kernel_arguments(node, kernel)
    op = called_op(node)
    if op is None:
        raise TypeError(f"{describe(node)} calls no op")
    return _op_arguments(node, op)


def _op_arguments(node: fx.Node, op: torch._ops.OpOverload) -> Arguments:
    arguments, schema = Arguments(node, op), op._schema.arguments
    arguments.update({a.name: a.default_value for a in schema if a.has_default_value()})
    if op is node.target:
        arguments.update(zip((a.name for a in schema), node.args, strict=False))
    names = {a.name for a in schema}
    arguments.update({name: given for name, given in node.kwargs.items() if name in names})
    for name in written_arguments(op):
        arguments[name] = _written(node, name, arguments.get(name))
    return arguments


def _written(node: fx.Node, name: str, given: Any) -> Written | None:
    """An argument that an op writes to; None if it is not given, or a list of tensors."""
    if "_all_bases" not in node.kwargs:
        fake = value(given) if isinstance(given, fx.Node) else None
        return None if fake is None else Written(fake, given)
    index = node.kwargs.get(f"_{name}_base_index")
    if not isinstance(index, int):
        return None
    base = listed(node.kwargs["_all_bases"])[index]
    if is_whole(node, name):
        return Written(tensor_of(base), base)
    return Written(_view_of(tensor_of(base), node, name))


def _view_of(base: torch.Tensor, node: fx.Node, name: str) -> torch.Tensor:
    """A fake like the view of `base` that an op writes to."""
    if (size := node.kwargs.get(f"_{name}_size")) is not None:
        return base.new_empty_strided(_numbers(size), _numbers(node.kwargs[f"_{name}_stride"]))
    dim, start, end = (node.kwargs[f"_{name}_slice_{what}"] for what in ("dim", "start", "end"))
    return torch.ops.aten.slice.Tensor(base, *_numbers((dim, start, end)))


def _numbers(sizes: Any) -> Shape:
    """Sizes as numbers, symbolic ones from their nodes."""
    return tuple(size.meta["val"] if isinstance(size, fx.Node) else size for size in listed(sizes))


def _kernel_arguments(node: fx.Node, kernel: Any) -> Arguments:
    tuned = []
    while not hasattr(kernel, "src") and hasattr(kernel, "fn"):
        tuned += [config.kwargs for config in getattr(kernel, "configs", ())]
        kernel = kernel.fn
    arguments, written = Arguments(node, kernel=kernel), kernel_writes(node)
    arguments.update({p.name: p.default for p in getattr(kernel, "params", ()) if p.has_default})
    for name in {name for config in tuned for name in config}:  # the tuner sets it, whatever the default is
        arguments.pop(name, None)
        if all(name in config and config[name] == tuned[0][name] for config in tuned):
            arguments[name] = tuned[0][name]
    arguments.update(kernel_side_table.get_constant_args(node.kwargs["constant_args_idx"]))  # type: ignore[arg-type]
    passed: Any = node.kwargs["kwargs"]
    for name, given in passed.items():
        is_tensor = isinstance(given, fx.Node) and value(given) is not None
        arguments[name] = Written(tensor_of(given), given) if is_tensor and name in written else given
    return arguments


def kernel_writes(node: fx.Node) -> frozenset[str]:
    """The arguments that a launch may write to.

    PyTorch reads them off the kernel's code. Where it cannot, it names all of them, and where the launch writes in
    place, it names none: there what a freshly allocated tensor is passed for is written.
    """
    passed: Any = node.kwargs["kwargs"]
    tensors = {name: given for name, given in passed.items() if isinstance(given, fx.Node) and value(given) is not None}
    named = set(listed(node.kwargs["tensors_to_clone"])) if is_call(node, _KERNEL) else set(tensors)
    fresh = {name for name, given in tensors.items() if is_fresh(given)}
    return frozenset(named if writes_are_known(node) or not fresh else fresh)


def writes_are_known(node: fx.Node) -> bool:
    """Whether PyTorch read off a kernel's code what a launch writes to; it names every tensor where it cannot."""
    passed: Any = node.kwargs["kwargs"]
    tensors = {name for name, given in passed.items() if isinstance(given, fx.Node) and value(given) is not None}
    return is_call(node, _KERNEL) and not set(listed(node.kwargs["tensors_to_clone"])) >= tensors


def is_fresh(node: fx.Node) -> bool:
    """Whether `node` is an allocation, or a view of one, that nothing of the model was put into yet."""
    node = peel_views(node)
    while is_call(node, *_STRIDED_VIEWS) and isinstance(node.args[0], fx.Node):
        node = peel_views(node.args[0])
    return is_call(node, *_ALLOCATIONS)


# What comes back.


def output_of(node: fx.Node, which: int | str) -> fx.Node | None:
    """The node that holds an output of a call: the index of what it returns, or the name of what it writes to.

    None if nothing reads it. Raises Stop if no node can stand for it.
    """
    if launched_kernel(node) is not None:
        if is_call(node, _KERNEL_IN_PLACE):
            raise _in_place(node)
        return _taken(node, which)
    op = called_op(node)
    if op is None:
        raise TypeError(f"{describe(node)} calls no op")
    if isinstance(which, int):
        alone = isinstance(node.meta.get("val"), torch.Tensor)
        return node if alone and which == 0 else _taken(node, which)
    written = written_arguments(op)
    if which not in written:
        raise Stop("opaque_quant", node, f"a schema that declares {which} as written", str(op._schema))
    if op is node.target:
        raise _in_place(node)
    first = max(len(op._schema.returns), 1)  # a functionalised op without returns yields a leading None
    if "_all_bases" not in node.kwargs:
        return _taken(node, first + written.index(which))
    index = node.kwargs[f"_{which}_base_index"]
    base = _taken(node, first + index) if isinstance(index, int) else None
    return base if base is None or is_whole(node, which) else _written_view(node, which, base)


def _in_place(node: fx.Node) -> Stop:
    return Stop("opaque_quant", node, "a functionalised call of what writes", "a call that writes in place")


def _taken(node: fx.Node, index: int | str) -> fx.Node | None:
    """The getitem that takes a result from the call, or None if there is none."""
    found = [user for user in node.users if user.target is operator.getitem and user.args[1] == index]
    if len(found) > 1:
        raise Stop("opaque_quant", node, "each output taken once", f"output {index} taken {len(found)} times")
    return found[0] if found else None


def is_whole(node: fx.Node, name: str) -> bool:
    """Whether a written argument is the whole tensor that comes back, strides included, and not a view of it."""
    return not any(f"_{name}_{part}" in node.kwargs for part in ("size", "slice_dim"))


def _written_view(node: fx.Node, name: str, base: fx.Node) -> fx.Node | None:
    """The one view of `base` that recreates the written argument, as tracing adds it after the call.

    Scales are allocated transposed, or padded to whole vectors after the last token: what comes back is the allocation.
    If anything reads it other than through this view, the site is not rewritten.
    """
    size, stride, offset = (node.kwargs.get(f"_{name}_{what}") for what in ("size", "stride", "storage_offset"))
    if size is None or offset != 0:
        raise Stop("opaque_quant", node, f"a view for {name} that starts where its tensor does", "a slice of one")
    size, stride = _numbers(size), _numbers(stride)
    found, stack = [], [base]
    while stack:
        view = stack.pop()
        val = tensor_of(view)
        if same_shape(tuple(val.shape), size) and same_shape(val.stride(), stride) and val.storage_offset() == 0:
            found.append(view)
            continue
        stack.extend(user for user in view.users if is_call(user, *_STRIDED_VIEWS))
    if len(found) != 1:
        raise Stop("opaque_quant", node, f"one view of the tensor that {name} is written to", f"{len(found)} of them")
    return found[0]
