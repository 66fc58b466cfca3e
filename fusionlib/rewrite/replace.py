"""Puts the fused call into the graph, with the metadata that Inductor expects, and removes the old nodes.

All new nodes are made first, then each is compared with what it replaces, and only then do users switch over. If a
rewrite stops half-way, the graph is put back as it was.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from fusionlib import schema
from fusionlib.fusions.fusion import VALUE
from fusionlib.match.graph import aten, computed_by, dtype, prims, tensor_of, value
from fusionlib.match.reasons import Stop
from fusionlib.match.sizes import equal, same_shape
from fusionlib.rewrite.journal import Journal
from fusionlib.rewrite.plan import Input, QuantPlan, SitePlan, Size, Sizes, needs_nothing
from fusionlib.spec import GroupQuant

_INHERITED = ("stack_trace", "nn_module_stack", "source_fn_stack", "seq_nr", "original_aten")


class Editor:
    """Inserts calls before one node, each with the fake value of its result and the history of `origin`."""

    def __init__(self, journal: Journal, before: fx.Node, origin: fx.Node, mode: FakeTensorMode) -> None:
        self._journal, self._before, self._origin, self._mode = journal, before, origin, mode

    def call(self, target: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
        """A call of `target`; its fake implementation decides its shapes and strides."""
        node = self._journal.insert(self._before, target, args, kwargs)
        fakes = fx.map_arg(args, lambda arg: arg.meta["val"])
        with self._mode:
            node.meta["val"] = target(*fakes, **kwargs)
        self._inherit(node)
        if torch.Tag.needs_exact_strides in getattr(target, "tags", ()):
            # Without these, "needs exact strides" is not enforced, and a strided gate may be copied or permuted.
            node.meta["eager_input_vals"] = (fakes, {})
        return node

    def _inherit(self, node: fx.Node) -> None:
        node.meta.update({k: self._origin.meta[k] for k in _INHERITED if k in self._origin.meta})

    def at(self, node: fx.Node) -> Editor:
        """An editor that inserts before `node` instead, where every size that `node` needs is known."""
        return Editor(self._journal, node, self._origin, self._mode)

    def item(self, node: fx.Node, index: int) -> fx.Node:
        """One result of a call that returns several."""
        item = self._journal.insert(self._before, operator.getitem, (node, index), {})
        item.meta["val"] = node.meta["val"][index]
        self._inherit(item)
        return item

    def reshape(self, node: fx.Node, sizes: Sizes) -> fx.Node:
        """`node` in another shape; None leaves it as it is."""
        if sizes is None:
            return node
        return self.call(aten.reshape.default, node, [self._size(size) for size in sizes])

    def _size(self, size: Size) -> int | fx.Node:
        return self.call(aten.sym_size.int, *size) if isinstance(size, tuple) else size

    def cast(self, node: fx.Node, wanted: torch.dtype) -> fx.Node:
        """`node` in another dtype, which its values are known to fit."""
        return node if dtype(node) == wanted else self.call(prims.convert_element_type.default, node, wanted)


def rewrite_site(site: SitePlan, journal: Journal) -> None:
    """Replace one site by one fused call, and a quantisation of the same value by another spec by one more call.

    Raises:
        Stop: if a new value is not laid out like the one it replaces.

    After any exception, `journal.undo()` restores the graph.
    """
    fake = tensor_of(site.end)
    assert isinstance(fake, FakeTensor)
    editor = Editor(journal, site.end, site.match.anchor, fake.fake_mode)
    replacements = _new_values(editor, site)
    for old, new in replacements:
        _check_alike(old, new)
    for old, new in replacements:
        journal.replace(old, new)
    _erase(site, journal)


def _new_values(editor: Editor, site: SitePlan) -> list[tuple[fx.Node, fx.Node]]:
    """Insert the fused calls and the reshapes of their results; every old value with its new one."""
    tensors = {name: _insert_input(editor, given) for name, given in site.inputs.items()}
    results = site.fusion.emit(editor, tensors, site.reading.spec, site.quants[0].spec, site.wanted)
    codes, scale = results["codes"], results["scale"]
    replacements = []
    for quant in site.quants:
        if quant is site.quants[0]:
            quantised = codes, scale
        elif quant.spec != site.quants[0].spec:
            quantised = _quant_call(editor, results[VALUE], quant.spec)
        else:
            read = quant.match.quant
            quantised = _apart(editor, codes, read.codes), _apart(editor, scale, read.scale)
        replacements += _quant_values(editor, quant, quantised, site.outputs)
    for name in sorted(site.wanted):
        replacements.append((site.kept[name], editor.reshape(results[name], site.outputs[site.kept[name]])))
    return replacements


def _insert_input(editor: Editor, given: Input | None) -> fx.Node | None:
    if given is None:
        return None
    node = given.node
    if given.must_copy:
        node = editor.call(aten.clone.default, node, memory_format=torch.contiguous_format)
    return editor.reshape(node, given.sizes)


def _check_alike(old: fx.Node, new: fx.Node) -> None:
    """Users must see the same kind of tensor as before: they were traced with this shape, this dtype, these strides."""
    was, now = tensor_of(old), tensor_of(new)
    if was.dtype == now.dtype and same_shape(was.shape, now.shape) and _same_strides(was, now):
        return
    raise Stop("replacement_differs", old, _layout(was), _layout(now))


def _same_strides(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two tensors of one shape have the same strides; those of dimensions of one element do not matter."""
    if any(equal(size, 0) for size in a.shape):
        return True
    strides = zip(a.shape, a.stride(), b.stride(), strict=True)
    return all(equal(size, 1) or equal(p, q) for size, p, q in strides)


def _layout(val: torch.Tensor) -> str:
    sizes, strides = list(val.shape), list(val.stride())
    return f"a tensor of {str(val.dtype).removeprefix('torch.')}, shape {sizes}, strides {strides}"


def _apart(editor: Editor, shared: fx.Node, replaced: fx.Node | None) -> fx.Node:
    """A shared result, copied if it leaves the graph: two outputs must not become one tensor."""
    stack, seen = [replaced] if replaced is not None else [], set()
    while stack:
        for user in stack.pop().users:
            if user.op == "output":
                return editor.call(aten.clone.default, shared)
            schema = getattr(user.target, "_schema", None)
            if user not in seen and schema is not None and any(r.alias_info is not None for r in schema.returns):
                seen.add(user)
                stack.append(user)
    return shared


def _quant_call(editor: Editor, value: fx.Node, spec: GroupQuant) -> tuple[fx.Node, fx.Node]:
    call = editor.call(torch.ops.fusionlib.group_quant.default, value, *schema.scalars(spec))
    return editor.item(call, 0), editor.item(call, 1)


def _quant_values(
    editor: Editor, quant: QuantPlan, results: tuple[fx.Node, fx.Node], sizes: dict[fx.Node, Sizes]
) -> list[tuple[fx.Node, fx.Node]]:
    """Codes and scale of one quantisation, each with its replacement."""
    read, (codes, scale) = quant.match.quant, results
    values = [(read.codes, editor.at(read.codes).reshape(codes, sizes[read.codes]))]
    if read.scale is None:
        return values
    if read.opaque:
        return [*values, (read.scale, editor.at(read.scale).reshape(scale, sizes.get(read.scale)))]
    if quant.target is not None:
        for node, transposed in quant.target.nodes:
            turned = editor.at(node).call(aten.permute.default, scale, [1, 0]) if transposed else scale
            values.append((node, turned))
        return values
    if (bits := read.scale_bits) is not None:
        there = editor.at(bits)
        values.append((bits, there.call(aten.view.dtype, there.reshape(scale, sizes[bits]), torch.int32)))
    here = editor.at(read.scale)
    return [*values, (read.scale, here.cast(here.reshape(scale, sizes[read.scale]), tensor_of(read.scale).dtype))]


def _erase(site: SitePlan, journal: Journal) -> None:
    """Erase what is no longer needed: the cone, and copies and checks of a scale that the op now writes itself."""
    dead = set(site.cone)
    for quant in site.quants:
        read, target = quant.match.quant, quant.target
        for node in () if target is None else (*(copied for copied, _ in target.nodes), *target.checks):
            # Sizes are left to later clean-up: they may come from anywhere in the graph.
            dead |= {node} | computed_by(
                node.all_input_nodes, [read.scale, read.scale_bits], lambda part: value(part) is not None
            )
    dead.update(user for node in tuple(dead) for user in node.users if needs_nothing(user))
    for node in sorted(dead, reverse=True):
        if not node.users:
            journal.erase(node)
