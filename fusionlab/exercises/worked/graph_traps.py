"""Wrong answers to the capstone's graph work: the mistakes of a reader, a replacement and a pass."""
# ruff: noqa: D101, D102, D103  (the names say what is wrong)

from __future__ import annotations

import dataclasses
import hashlib
import inspect

import torch
from torch import fx

from fusionlab.exercises.worked import silu_and_mul as worked
from fusionlab.exercises.worked.silu_and_mul import Found, Refused, SiluAndMul, SiluAndMulPass
from fusionlib.match.activation import read_activation
from fusionlib.match.graph import dtype, is_mul, is_narrowing, operands, peel_exact, shape, value
from fusionlib.match.quant import is_fp8_cast, read_fp8_cast
from fusionlib.match.reasons import Stop
from fusionlib.match.result import Trail
from fusionlib.match.sizes import same_shape
from fusionlib.rewrite.cache_key import source_hash
from fusionlib.rewrite.journal import Journal
from fusionlib.rewrite.replace import Editor


def read_any_activation(y):
    for left, right in (operands(peel_exact(y)), operands(peel_exact(y))[::-1]):
        if (activation := read_activation(left)) is not None:
            return Found(activation.gate, peel_exact(right), SiluAndMul(activation.rounded is not None, True))
    raise Refused("no activation")


def read_one_order(y):
    product = peel_exact(y)
    if not is_mul(product):
        raise Refused("not a product")
    activation = read_activation(product.args[0])
    if activation is None or activation.kind != "silu":
        raise Refused("no silu on the left")
    return Found(activation.gate, peel_exact(product.args[1]), SiluAndMul())


def read_without_rounding(y):
    found = worked.read_silu_and_mul(y)
    return Found(found.gate, found.up, SiluAndMul())


def read_nothing(y):
    raise Refused("too hard")


def _factors(y):
    """(activation, the other factor, whether y is rounded) of a product."""
    product, rounds = peel_exact(y), dtype(y)
    if is_narrowing(product):
        product = peel_exact(product.args[0])
    if is_mul(product):
        for left, right in (operands(product), operands(product)[::-1]):
            activation = read_activation(left) if isinstance(left, fx.Node) else None
            if activation is not None and activation.kind == "silu" and isinstance(right, fx.Node):
                return activation, peel_exact(right), rounds
    raise Refused("not silu times something")


def _checked(y, *, shapes=True, dtypes=True, strides=True):
    """The worked reader with some of its checks left out."""
    activation, up, rounds = _factors(y)
    gate = activation.gate
    if dtype(up) != dtype(gate) or (dtypes and activation.rounded not in (None, dtype(gate))):
        raise Refused("dtype")
    if dtypes and rounds not in (torch.float32, dtype(gate)):
        raise Refused("dtype of y")
    if shapes and (len(shape(gate)) != 2 or not same_shape(shape(gate), shape(up))):
        raise Refused("shape")
    if strides and (value(gate).stride(-1) != 1 or value(up).stride(-1) != 1):
        raise Refused("strides")
    return Found(gate, up, SiluAndMul(activation.rounded is not None, rounds != torch.float32))


def read_any_gate_shape(y):
    return _checked(y, shapes=False)


def read_any_rounding_dtype(y):
    return _checked(y, dtypes=False)


def read_any_strides(y):
    return _checked(y, strides=False)


def read_below_roundings(y):
    """Mistakes a rounding of an input for its own, and reads the value below it."""
    found = worked.read_silu_and_mul(y)
    gate, up = (peel_exact(n.args[0]) if is_narrowing(n) else n for n in (found.gate, found.up))
    return Found(gate, up, found.spec)


def read_the_widened_gate(y):
    """Takes the gate as silu gets it, in float32: rounding to its dtype would round nothing."""
    found = worked.read_silu_and_mul(y)
    widened = [user for user in found.gate.users if dtype(user) is torch.float32]
    return Found(widened[0] if widened else found.gate, found.up, found.spec)


def read_the_first_placeholder(y):
    found = worked.read_silu_and_mul(y)
    first, second = sorted((found.gate, found.up))
    return Found(first, second, found.spec)


def read_and_change(y):
    found = worked.read_silu_and_mul(y)
    y.graph.call_function(torch.ops.aten.neg.default, (y,))
    return found


def replace_codes_only(graph, quant, found, op):
    editor = Editor(Journal(graph), quant.anchor, quant.anchor, value(quant.y).fake_mode)
    call = editor.call(op, found.gate, found.up, found.spec.round_activation, found.spec.round_output, 128, 1e-10)
    quant.codes.replace_all_uses_with(editor.reshape(editor.item(call, 0), [-1, *shape(quant.codes)[1:]]))


def replace_at_the_anchor(graph, quant, found, op):
    """Too late: the scale may be used before the codes are computed."""
    editor = Editor(Journal(graph), quant.anchor, quant.anchor, value(quant.y).fake_mode)
    call = editor.call(op, found.gate, found.up, found.spec.round_activation, found.spec.round_output, 128, 1e-10)
    for index, old in enumerate((quant.codes, quant.scale)):
        old.replace_all_uses_with(editor.reshape(editor.item(call, index), [-1, *shape(old)[1:]]))
    graph.eliminate_dead_code()


def replace_by_the_default_spec(graph, quant, found, op):
    worked.replace(graph, quant, Found(found.gate, found.up, SiluAndMul()), op)


def replace_nothing(graph, quant, found, op):
    pass


def replace_by_one_group_size(graph, quant, found, op):
    worked.replace(graph, dataclasses.replace(quant, spec=dataclasses.replace(quant.spec, group_size=128)), found, op)


def replace_by_one_floor(graph, quant, found, op):
    worked.replace(graph, dataclasses.replace(quant, spec=dataclasses.replace(quant.spec, floor=1e-10)), found, op)


def _replace(graph, quant, found, op, reshaped):
    editor = Editor(Journal(graph), quant.y.next, quant.anchor, value(quant.y).fake_mode)
    scalars = (found.spec.round_activation, found.spec.round_output, quant.spec.group_size, quant.spec.floor)
    call = editor.call(op, found.gate, found.up, *scalars)
    for index, old in enumerate((quant.codes, quant.scale)):
        old.replace_all_uses_with(reshaped(editor, editor.item(call, index), old))
    graph.eliminate_dead_code()


def replace_in_another_shape(graph, quant, found, op):
    _replace(graph, quant, found, op, lambda editor, new, old: new)


def replace_in_another_layout(graph, quant, found, op):
    """Right in every value, but in the op's layout, whatever is replaced."""
    _replace(graph, quant, found, op, lambda editor, new, old: editor.reshape(new, [-1, *shape(old)[1:]]))


def replace_with_numbers(graph, quant, found, op):
    """Hard-codes this graph's number of tokens."""
    _replace(graph, quant, found, op, lambda editor, new, old: editor.reshape(new, [int(n) for n in shape(old)]))


def replace_twice(graph, quant, found, op):
    """One call for the codes and another for the scale."""
    editor = Editor(Journal(graph), quant.y.next, quant.anchor, value(quant.y).fake_mode)
    scalars = (found.spec.round_activation, found.spec.round_output, quant.spec.group_size, quant.spec.floor)
    for index, old in enumerate((quant.codes, quant.scale)):
        call = editor.call(op, found.gate, found.up, *scalars)
        old.replace_all_uses_with(editor.reshape(editor.item(call, index), [-1, *shape(old)[1:]]))
    graph.eliminate_dead_code()


def replace_and_empty_an_input(graph, quant, found, op):
    end = quant.codes.next
    worked.replace(graph, quant, found, op)
    with graph.inserting_before(end):
        graph.call_function(torch.ops.aten.zero_.default, (found.gate,))


class ConstantUuid(SiluAndMulPass):
    def uuid(self):
        return "silu_and_mul"


class NoUuid(SiluAndMulPass):
    def uuid(self):
        return None


class SilentAboutRefusals(SiluAndMulPass):
    def __call__(self, graph):
        super().__call__(graph)
        self.sites = [site for site in self.sites if site.startswith("fused")]


class BreaksTheCompile(SiluAndMulPass):
    def __call__(self, graph):
        for anchor in [node for node in graph.nodes if is_fp8_cast(node)]:
            quant = read_fp8_cast(anchor, Trail())  # a Stop leaves the pass
            worked.replace(graph, quant, self.read(quant.y), self.op)
            self.sites.append(f"fused %{anchor.name}")


def no_gradients(graph, quant, found):
    if any(str(node.target).startswith("primals_") for node in graph.nodes if node.op == "placeholder"):
        raise Refused("gradients are taken of this graph")


class FusesInTraining(SiluAndMulPass):
    """Without any guard; each subclass has one of two."""

    guards = ()

    def __call__(self, graph):
        for anchor in [node for node in graph.nodes if is_fp8_cast(node)]:
            try:
                quant = read_fp8_cast(anchor, Trail())
                found = self.read(quant.y)
                for guard in self.guards:
                    guard(graph, quant, found)
                self.swap(graph, quant, found, self.op)
                self.sites.append(f"fused %{anchor.name}")
            except (Refused, Stop) as reason:
                self.sites.append(f"refused %{anchor.name}: {reason}")


class ForgetsGradients(FusesInTraining):
    guards = (lambda graph, quant, found: worked.check_site(quant, found),)


class ForgetsOtherReaders(FusesInTraining):
    guards = (no_gradients,)


def _all_but_the_checks(self, graph, check):
    for anchor in [node for node in graph.nodes if is_fp8_cast(node)]:
        try:
            no_gradients(graph, None, None)
            quant = read_fp8_cast(anchor, Trail())
            found = self.read(quant.y)
            check(quant, found)
            self.swap(graph, quant, found, self.op)
            self.sites.append(f"fused %{anchor.name}")
        except (Refused, Stop) as reason:
            self.sites.append(f"refused %{anchor.name}: {reason}")


class ChecksTheFormatOnly(SiluAndMulPass):
    def __call__(self, graph):
        def check(quant, found):
            if quant.spec.dtype is not torch.float8_e4m3fn:
                raise Refused("another format")

        _all_but_the_checks(self, graph, check)


class EmptiesAnInput(SiluAndMulPass):
    def __call__(self, graph):
        super().__call__(graph)
        gate = next(node for node in graph.nodes if node.op == "placeholder")
        with graph.inserting_before(next(node for node in graph.nodes if node.op == "output")):
            graph.call_function(torch.ops.aten.zero_.default, (gate,))


class RaisesWithoutASite(SiluAndMulPass):
    def __call__(self, graph):
        assert any(is_fp8_cast(node) for node in graph.nodes)
        super().__call__(graph)


class OnlySaysThatItFused(SiluAndMulPass):
    def __call__(self, graph):
        swap, self.swap = self.swap, lambda *parts: None
        try:
            super().__call__(graph)
        finally:
            self.swap = swap


class OneSiteOnly(SiluAndMulPass):
    def __call__(self, graph):
        super().__call__(graph)
        self.sites = self.sites[:2]


def _uuid_of(*parts):
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _sources(self, *functions):
    return [source_hash(), worked.op_source(self.op), *map(inspect.getsource, functions)]


class UuidWithoutWhatTheOpIsMadeOf(SiluAndMulPass):
    """With the op's name, which is the same in the next process whatever was edited."""

    def uuid(self):
        return _uuid_of(source_hash(), self.op, *map(inspect.getsource, (type(self).__call__, self.read, self.swap)))


class UuidWithoutTheReader(SiluAndMulPass):
    def uuid(self):
        return _uuid_of(*_sources(self, type(self).__call__, self.swap))


class UuidWithoutTheRewriter(SiluAndMulPass):
    def uuid(self):
        return _uuid_of(*_sources(self, type(self).__call__, self.read))


class UuidWithoutItself(SiluAndMulPass):
    def uuid(self):
        return _uuid_of(*_sources(self, self.read, self.swap))


class UuidBySaltedHash(SiluAndMulPass):
    def uuid(self):
        return str(hash(super().uuid()))


class UuidById(SiluAndMulPass):
    def uuid(self):
        return _uuid_of(id(self.op), super().uuid())


class UuidByRepr(SiluAndMulPass):
    def uuid(self):
        return _uuid_of(self.op, type(self).__call__, self.read, self.swap)


class UuidByASet(SiluAndMulPass):
    """In the order of a set of strings, which differs in every process."""

    def uuid(self):
        return _uuid_of(*{*_sources(self, type(self).__call__, self.read, self.swap), "a", "b", "c", "d"})
