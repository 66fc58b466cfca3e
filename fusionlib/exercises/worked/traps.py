"""Wrong answers to the capstone: the mistakes that one makes, for the judges to turn down."""
# ruff: noqa: D101, D102, D103  (a wrong answer is said in its name)

from __future__ import annotations

import dataclasses
import hashlib
import inspect

import torch
import torch.nn.functional as F
from torch import fx

from fusionlib.exercises.worked import silu_and_mul as worked
from fusionlib.exercises.worked.silu_and_mul import Found, Refused, SiluAndMul, SiluAndMulPass
from fusionlib.match.activation import read_activation
from fusionlib.match.graph import dtype, is_mul, is_narrowing, operands, peel_exact, shape, value
from fusionlib.match.quant import is_fp8_cast, read_fp8_cast
from fusionlib.match.reasons import Stop
from fusionlib.match.result import Trail
from fusionlib.match.sizes import same_shape
from fusionlib.rewrite.journal import Journal
from fusionlib.rewrite.replace import Editor
from fusionlib.rewrite.sources import source_hash


def reference_rounds_always(gate, up, spec):
    return F.silu(gate) * up


def reference_rounds_once(gate, up, spec):
    y = F.silu(gate.float()) * up.float()
    return y.to(gate.dtype) if spec.round_output else y


def reference_exchanged(gate, up, spec):
    return worked.silu_and_mul(up, gate, spec)


def reference_sigmoid(gate, up, spec):
    y = torch.sigmoid(gate.float()) * up.float()
    return y.to(gate.dtype) if spec.round_output else y


def reference_drops_nan(gate, up, spec):
    return torch.nan_to_num(worked.silu_and_mul(gate, up, spec), nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def reference_saturates(gate, up, spec):
    largest = torch.finfo(gate.dtype).max
    return worked.silu_and_mul(gate, up, spec).clamp(-largest, largest)


def reference_loses_the_sign_of_zero(gate, up, spec):
    return worked.silu_and_mul(gate, up, spec) + 0.0


def reference_wrong_at_the_end(gate, up, spec):
    y = worked.silu_and_mul(gate, up, spec).clone()
    y.view(-1)[-8:] = 1.0
    return y


def reference_rounds_otherwise_at_the_end(gate, up, spec):
    y = worked.silu_and_mul(gate, up, spec).clone()
    other = worked.silu_and_mul(gate, up, SiluAndMul(not spec.round_activation, spec.round_output))
    y.view(-1)[-8:] = other.view(-1)[-8:]
    return y


def reference_empties_its_inputs(gate, up, spec):
    y = worked.silu_and_mul(gate, up, spec)
    gate.zero_(), up.zero_()
    return y


def reference_leaves(gate, up, spec):
    raise SystemExit


def reference_never_ends(gate, up, spec):
    while True:
        pass


def bytes_forget_the_detour(tokens, hidden, group_size):
    one = tokens * hidden * (4 + 1) + 4 * tokens * hidden // group_size
    return one + 2 * tokens * hidden, one


def bytes_without_scales(tokens, hidden, group_size):
    return 9 * tokens * hidden, 5 * tokens * hidden


def bytes_of_groups_of_128(tokens, hidden, group_size):
    return worked.moved_bytes(tokens, hidden, 128)


def bytes_of_one_size(tokens, hidden, group_size):
    return worked.moved_bytes(1, 1024, 128)


def checks_shapes(op):
    codes, scale = op(*(torch.randn(4, 256).bfloat16() for _ in range(2)), True, True, 128, 1e-10)
    assert codes.shape == (4, 256) and scale.shape == (4, 2)


def checks_within_a_tolerance(op):
    gate, up = (torch.randn(4, 256).bfloat16() for _ in range(2))
    codes, scale = op(gate, up, True, True, 128, 1e-10)
    value = codes.float() * scale.repeat_interleave(128, 1)
    assert torch.allclose(value, (F.silu(gate) * up).float(), rtol=0.1, atol=0.1)


def checks_without_zeros(op):
    wide = 3 * torch.randn(7, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    gate, up = wide[:, :256], wide[:, 256:]
    for act in (True, False):
        for out in (True, False):
            got = op(gate, up, act, out, 128, 1e-10)
            want = worked.quantise(gate, up, act, out, 128, 1e-10)
            assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(got, want, strict=True))


def _checks_all_roundings(op, group_size, floor):
    wide = 3 * torch.randn(7, 768, generator=torch.Generator().manual_seed(0)).bfloat16()
    gate, up = wide[:, :256], wide[:, 256:512]
    gate[2] = 0.0
    for act in (True, False):
        for out in (True, False):
            got = op(gate, up, act, out, group_size, floor)
            want = worked.quantise(gate, up, act, out, group_size, floor)
            assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(got, want, strict=True))


def checks_one_group_size(op):
    _checks_all_roundings(op, 128, 1e-10)
    _checks_all_roundings(op, 128, 0.25)


def checks_one_floor(op):
    _checks_all_roundings(op, 128, 1e-10)
    _checks_all_roundings(op, 64, 1e-10)


def checks_the_name(op):
    assert op is worked.quantise or getattr(op, "__name__", "") == "quantise"


def checks_the_first_only():
    """Takes the first op that it sees for right, and no other."""
    seen = []

    def check(op):
        seen.append(op)
        assert len(seen) == 1

    return check


def turns_all_down(op):
    raise AssertionError("never right")


def fake_like_the_gate(gate, up, act, out, group_size, floor):
    codes = torch.empty_like(gate, dtype=torch.float8_e4m3fn)
    return codes, gate.new_empty((gate.shape[0], gate.shape[1] // group_size), dtype=torch.float32)


def fake_scale_of_the_inputs_dtype(gate, up, act, out, group_size, floor):
    return gate.new_empty(gate.shape, dtype=torch.float8_e4m3fn), gate.new_empty((gate.shape[0], gate.shape[1] // 128))


def fake_on_the_cpu(gate, up, act, out, group_size, floor):
    tokens, hidden = gate.shape
    return torch.empty(tokens, hidden, dtype=torch.float8_e4m3fn), torch.empty(tokens, hidden // group_size)


def fake_of_groups_of_128(gate, up, act, out, group_size, floor):
    return worked.fake(gate, up, act, out, 128, floor)


def fake_of_seven_tokens(gate, up, act, out, group_size, floor):
    codes = gate.new_empty((7, gate.shape[1]), dtype=torch.float8_e4m3fn)
    return codes, gate.new_empty((7, gate.shape[1] // group_size), dtype=torch.float32)


def fake_of_a_number(gate, up, act, out, group_size, floor):
    """Makes a number of a symbol."""
    tokens, hidden = int(gate.shape[0]), gate.shape[1]
    codes = gate.new_empty((tokens, hidden), dtype=torch.float8_e4m3fn)
    return codes, gate.new_empty((tokens, hidden // group_size), dtype=torch.float32)


def fake_scale_transposed(gate, up, act, out, group_size, floor):
    codes, scale = worked.fake(gate, up, act, out, group_size, floor)
    return codes, scale.new_empty(scale.shape[::-1]).t()


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
    """The worked reader, with some of its questions left out."""
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
    """Takes a rounding of an input for its own, and reads the value below it."""
    found = worked.read_silu_and_mul(y)
    gate, up = (peel_exact(n.args[0]) if is_narrowing(n) else n for n in (found.gate, found.up))
    return Found(gate, up, found.spec)


def read_the_widened_gate(y):
    """The gate as silu gets it, in float32: what is rounded to its dtype would not be rounded."""
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
    """Too late: the scale may be used before the codes are made."""
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
    """Right in every value, and laid out as the op writes it, whatever is replaced."""
    _replace(graph, quant, found, op, lambda editor, new, old: editor.reshape(new, [-1, *shape(old)[1:]]))


def replace_with_numbers(graph, quant, found, op):
    """The number of tokens becomes the one of this graph."""
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
    """Without any guard; what derives from it has one of two."""

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
    return [source_hash(), self.op, *map(inspect.getsource, functions)]


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
    """In the order of a set of texts, which is another in every process."""

    def uuid(self):
        return _uuid_of(*{*_sources(self, type(self).__call__, self.read, self.swap), "a", "b", "c", "d"})


SIGNATURE = "@triton.jit\ndef product(gate, up, DTYPE: tl.constexpr, ROUND_ACTIVATION: tl.constexpr, "
SIGNATURE += "ROUND_OUTPUT: tl.constexpr):\n"
KERNEL_ROUNDS_ONCE = f"{SIGNATURE}    return _rounded(gate / (1.0 + tl.exp(-gate)) * up, DTYPE, ROUND_OUTPUT)\n"
KERNEL_SIGMOID = f"{SIGNATURE}    return _rounded(up / (1.0 + tl.exp(-gate)), DTYPE, ROUND_OUTPUT)\n"
KERNEL_IGNORES_ROUND_OUTPUT = f"""{SIGNATURE}
    activated = _rounded(gate / (1.0 + tl.exp(-gate)), DTYPE, ROUND_ACTIVATION)
    return _rounded(activated * up, DTYPE, True)
"""
KERNEL_IGNORES_ROUND_ACTIVATION = f"""{SIGNATURE}
    activated = _rounded(gate / (1.0 + tl.exp(-gate)), DTYPE, True)
    return _rounded(activated * up, DTYPE, ROUND_OUTPUT)
"""
KERNEL_OVERFLOWS = f"""{SIGNATURE}
    activated = _rounded(gate * (tl.exp(gate) / (1.0 + tl.exp(gate))), DTYPE, ROUND_ACTIVATION)
    return _rounded(activated * up, DTYPE, ROUND_OUTPUT)
"""
KERNEL_WITHOUT_CASES = f"""{KERNEL_SIGMOID}
print('{{"cases": []}}')
raise SystemExit(0)
"""
KERNEL_LEAVES = f"""{KERNEL_SIGMOID}
import os
os._exit(0)
"""
