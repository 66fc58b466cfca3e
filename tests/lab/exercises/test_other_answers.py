"""Correct answers that differ from the worked ones are accepted."""

from __future__ import annotations

import hashlib
import inspect
import itertools

import pytest
import torch
from torch import fx
from torch._inductor.custom_graph_pass import CustomGraphPass

from fusionlab.exercises import capstone, matching, measuring, rewriting
from fusionlab.exercises.worked import kernel_offline
from fusionlab.exercises.worked import silu_and_mul as worked
from fusionlab.exercises.worked.silu_and_mul import Found, Refused, SiluAndMul, check_site, same_layout
from fusionlib import GroupQuant, reference
from fusionlib.match import Stop
from fusionlib.match.activation import read_activation
from fusionlib.match.graph import dtype, peel_exact, shape, value
from fusionlib.match.quant import is_fp8_cast, read_fp8_cast
from fusionlib.match.result import Trail
from fusionlib.rewrite.cache_key import source_hash
from fusionlib.rewrite.journal import Journal
from fusionlib.rewrite.replace import Editor

aten = torch.ops.aten


def by_sigmoid(gate, up, spec):
    z = gate.to(torch.float32)
    activated = z * torch.sigmoid(z)
    if spec.round_activation:
        activated = activated.to(gate.dtype).float()
    product = up.float() * activated
    return product.to(gate.dtype) if spec.round_output else product


def by_exp_in_double(gate, up, spec):
    z = gate.double()
    activated = (z / (1 + torch.exp(-z))).to(gate.dtype if spec.round_activation else torch.float32)
    product = activated.double() * up.double()
    return product.float().to(gate.dtype if spec.round_output else torch.float32)


def bytes_as_floats(tokens, hidden, group_size):
    one = tokens * hidden * (5 + 4 / group_size)
    return [one + 4 * tokens * hidden, one]


def check_each_spec(op):
    torch.manual_seed(1)
    wide = torch.cat([torch.zeros(2, 512), torch.randn(5, 512)]).bfloat16()
    wide[3, 5], wide[4, 300] = torch.nan, torch.inf
    for group, floor in ((64, 1.0), (32, 1e-10)):
        for act, out in ((True, True), (True, False), (False, True), (False, False)):
            gate, up = wide.chunk(2, 1)
            codes, scale = op(gate, up, act, out, group, floor)
            silu = torch.nn.functional.silu(gate.float())
            y = (silu.bfloat16().float() if act else silu) * up.float()
            wanted = reference.group_quant(y.bfloat16() if out else y, GroupQuant(group, floor=floor))
            pairs = ((codes.float(), wanted[0].float()), (scale, wanted[1]))
            if not all(torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)) for a, b in pairs):
                raise ValueError("another result")


def fake_by_empty(gate, up, round_activation, round_output, group_size, floor):
    rows, columns = gate.shape
    codes = torch.empty(rows, columns, dtype=torch.float8_e4m3fn, device=gate.device)
    return [codes, torch.empty(rows, columns // group_size, device=gate.device)]


def read_by_operations(y):
    """Finds the operations by name."""
    node = peel_exact(y)
    if node.target is torch.ops.prims.convert_element_type.default:
        node = peel_exact(node.args[0])
    if node.target is not aten.mul.Tensor or not all(isinstance(arg, fx.Node) for arg in node.args):
        raise Refused("no product of two tensors")
    for one, other in (node.args, tuple(reversed(node.args))):
        try:
            act = read_activation(one)
        except Stop as stop:
            raise Refused(str(stop)) from stop
        if act and act.kind == "silu":
            up, kind = peel_exact(other), dtype(act.gate)
            tensors = value(act.gate), value(up)
            whole = tensors[0].dim() == 2 and tensors[0].shape == tensors[1].shape
            rows = whole and all(tensor.stride(1) == 1 for tensor in tensors)
            kinds = {dtype(up), act.rounded or kind, kind} == {kind} and dtype(y) in (kind, torch.float32)
            if not rows or not kinds:
                raise Refused("another shape or dtype")
            return Found(act.gate, up, SiluAndMul(bool(act.rounded), dtype(y) is kind))
    raise Refused("no silu")


def replace_node_by_node(graph, quant, found, op):
    """Checks before it inserts anything."""
    for old in (quant.codes, quant.scale):
        steps = [step for step, size in zip(value(old).stride(), shape(old), strict=True) if size != 1]
        if any(big < small for big, small in itertools.pairwise(steps)):
            raise Refused("not row by row")
    editor = Editor(Journal(graph), quant.y.next, quant.y, value(quant.y).fake_mode)
    spec, group = found.spec, quant.spec
    both = editor.call(
        op, found.gate, found.up, spec.round_activation, spec.round_output, group.group_size, group.floor
    )
    scale = editor.reshape(editor.item(both, 1), [-1, *shape(quant.scale)[1:]])
    codes = editor.reshape(editor.item(both, 0), [-1, *shape(quant.codes)[1:]])
    quant.scale.replace_all_uses_with(scale)
    quant.codes.replace_all_uses_with(codes)
    assert same_layout(codes, quant.codes)
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)


class PlainPass(CustomGraphPass):
    """Not a subclass of the worked one; its uuid is bytes."""

    def __init__(self, op, read=read_by_operations, swap=replace_node_by_node):
        super().__init__()
        self.op = op
        self.read = read
        self.swap = swap
        self.sites = []

    def _one(self, graph, anchor):
        quant = read_fp8_cast(anchor, Trail())
        found = self.read(quant.y)
        check_site(quant, found)
        self.swap(graph, quant, found, self.op)

    def __call__(self, graph):
        self.sites = []
        trained = any("primals" in node.name for node in graph.nodes)
        for anchor in list(filter(is_fp8_cast, graph.nodes)):
            if trained:
                self.sites.append("refused: gradients")
                continue
            try:
                self._one(graph, anchor)
            except (Refused, Stop) as reason:
                self.sites.append(f"refused: {reason}")
            else:
                self.sites.append("fused")

    def uuid(self):
        digest = hashlib.md5(source_hash().encode())
        digest.update(capstone.op_source(self.op).encode())
        for part in (PlainPass.__call__, PlainPass._one, self.read, self.swap, check_site, worked.inside, same_layout):
            digest.update(inspect.getsource(part).encode())
        return digest.digest()


KERNEL_BY_SIGMOID = kernel_offline.worked_product().replace("gate / (1.0 + tl.exp(-gate))", "gate * tl.sigmoid(gate)")
KERNEL_THAT_PRINTS = f"print('loaded')\n{kernel_offline.worked_product()}\nprint('{{\"cases\": []}}')\n"


def negation_until_nothing_changes(graph):
    changed = True
    while changed:
        changed = False
        for node in graph.nodes:
            if node.target is aten.neg.default and node.args[0].target is aten.neg.default and node.users:
                node.replace_all_uses_with(node.args[0].args[0])
                changed = True
                break
    for node in reversed(list(graph.nodes)):
        if node.target is aten.neg.default and not node.users:
            graph.erase_node(node)


def readers_as_a_set(graph, target):
    return {user.name for node in graph.nodes for user in node.users if node.target == target}


def idle_by_microseconds(spans):
    covered = {step for start, end in spans for step in range(round(start * 10), round(end * 10))}
    return (max(covered) + 1 - min(covered) - len(covered)) / 10


def in_another_order(x, gate, weight):
    value_ = x.float()
    value_ = value_ * torch.rsqrt(torch.square(value_).mean(-1, keepdim=True) + 1e-6)
    z = gate.float()
    y = (z / (1.0 + torch.exp(-z)) * (weight.float() * value_)).to(x.dtype).float()
    scale = y.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 448.0
    return (y / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn).flatten(1), scale.squeeze(-1)


ACCEPTED = [
    (capstone.REFERENCE, by_sigmoid),
    (capstone.REFERENCE, by_exp_in_double),
    (capstone.BYTES, bytes_as_floats),
    (capstone.TEST, check_each_spec),
    (capstone.FAKE, fake_by_empty),
    (capstone.READ, read_by_operations),
    (capstone.REPLACE, replace_node_by_node),
    (capstone.PASS, PlainPass),
    (capstone.KERNEL, KERNEL_BY_SIGMOID),
    (capstone.KERNEL, KERNEL_THAT_PRINTS),
    (rewriting.double_negation, negation_until_nothing_changes),
    (rewriting.readers, readers_as_a_set),
    (rewriting.stable_uuid, lambda source, factor: hashlib.blake2b(f"{factor!r} {source}".encode()).digest()),
    (rewriting.stable_uuid, lambda source, factor: f"{source}{float(factor).hex()}"),
    (measuring.idle_time, idle_by_microseconds),
    (matching.FIX_IT, in_another_order),
]


@pytest.mark.parametrize(
    ("exercise", "answer"), ACCEPTED, ids=[f"{e.name}-{getattr(a, '__name__', 'text')}" for e, a in ACCEPTED]
)
def test_another_right_answer_is_accepted(exercise, answer):
    assert exercise.verdict(answer) is None
