"""Wrong answers to the capstone: the mistakes that one makes, for the judges to turn down."""
# ruff: noqa: D101, D102, D103  (a wrong answer is said in its name)

from __future__ import annotations

import torch
import torch.nn.functional as F

from fusionlib.exercises.worked import silu_and_mul as worked
from fusionlib.exercises.worked.silu_and_mul import Found, Refused, SiluAndMul, SiluAndMulPass
from fusionlib.match.activation import read_activation
from fusionlib.match.graph import is_mul, operands, peel_exact, shape, value
from fusionlib.match.quant import is_fp8_cast, read_fp8_cast
from fusionlib.match.reasons import Stop
from fusionlib.match.result import Trail
from fusionlib.rewrite.replace import Editor


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


def bytes_forget_the_detour(tokens, hidden, group_size):
    one = tokens * hidden * (4 + 1) + 4 * tokens * hidden // group_size
    return one + 2 * tokens * hidden, one


def bytes_without_scales(tokens, hidden, group_size):
    return 9 * tokens * hidden, 5 * tokens * hidden


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


def replace_codes_only(graph, quant, found, op):
    editor = Editor(quant.anchor, quant.anchor, value(quant.y).fake_mode)
    call = editor.call(op, found.gate, found.up, found.spec.round_activation, found.spec.round_output, 128, 1e-10)
    quant.codes.replace_all_uses_with(editor.reshape(editor.item(call, 0), [-1, *shape(quant.codes)[1:]]))


def replace_at_the_anchor(graph, quant, found, op):
    """Too late: the scale may be used before the codes are made."""
    editor = Editor(quant.anchor, quant.anchor, value(quant.y).fake_mode)
    call = editor.call(op, found.gate, found.up, found.spec.round_activation, found.spec.round_output, 128, 1e-10)
    for index, old in enumerate((quant.codes, quant.scale)):
        old.replace_all_uses_with(editor.reshape(editor.item(call, index), [-1, *shape(old)[1:]]))
    graph.eliminate_dead_code()


def replace_by_the_default_spec(graph, quant, found, op):
    worked.replace(graph, quant, Found(found.gate, found.up, SiluAndMul()), op)


def replace_nothing(graph, quant, found, op):
    pass


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


SIGNATURE = "@triton.jit\ndef product(gate, up, DTYPE: tl.constexpr, ROUND_ACTIVATION: tl.constexpr, "
SIGNATURE += "ROUND_OUTPUT: tl.constexpr):\n"
KERNEL_ROUNDS_ONCE = f"{SIGNATURE}    return _rounded(gate / (1.0 + tl.exp(-gate)) * up, DTYPE, ROUND_OUTPUT)\n"
KERNEL_SIGMOID = f"{SIGNATURE}    return _rounded(up / (1.0 + tl.exp(-gate)), DTYPE, ROUND_OUTPUT)\n"
