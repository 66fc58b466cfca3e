"""The smallest example of every reason for which a site is refused: one function per code, named after it.

`docs/reasons.md` shows these sources and the tests run them. A function of x, gate and weight is a computation that
differs in one thing from `site`, which fuses. One without parameters returns a report itself: there the reason lies in
how the computation is compiled.
"""
# ruff: noqa: D103  (each example is documented by the reason it is named after)

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.fx.experimental.proxy_tensor import make_fx

from fusionlib import FusionPass, GroupQuant, Report, RMSNorm, explain, group_quant
from fusionlib.fusions import BUILT_IN, GatedNormQuant, OpaqueProducer, register_producer_op
from fusionlib.fusions.producer_ops import producers_kept
from fusionlib.match import OpaqueQuant, register_quant_op
from fusionlib.match.opaque import readers_kept
from fusionlib.match.reasons import COMMON
from fusionlib.testing.run_edited import run_edited

# Parts shared by all examples.


def tensors():
    """x and gate [tokens, heads, head_dim], weight [head_dim]."""
    x, gate = torch.randn(2, 6, 4, 128, dtype=torch.bfloat16)
    return x, gate, torch.rand(128, dtype=torch.bfloat16)


def rms(v, dim=-1, eps=1e-6):
    """An RMS norm without weight."""
    return v * torch.rsqrt(v.pow(2).mean(dim, keepdim=True) + eps)


def norm(x, gate, weight):
    """The gated norm, one row [hidden] a token."""
    return (rms(x.float()) * weight * F.silu(gate.float())).to(x.dtype).flatten(1)


def groups(y):
    """Rows cut into groups of 128, in float32."""
    return y.unflatten(1, (-1, 128)).float()


def amax(v):
    """The largest magnitude of each group."""
    return v.abs().amax(-1, keepdim=True)


def codes(v, scale, limit=448.0):
    """The FP8 codes, and the scale that they were made with."""
    return (v / scale).clamp(-limit, limit).to(torch.float8_e4m3fn), scale


def quant(v):
    """The quantisation of groups."""
    return codes(v, amax(v) / 448.0)


def site(x, gate, weight):
    """The whole path; it fuses."""
    return quant(groups(norm(x, gate, weight)))


SHARED = (tensors, rms, norm, groups, amax, codes, quant, site)

# What is quantised, and how.


def per_tensor_static(x, gate, weight):
    return codes(groups(norm(x, gate, weight)), 0.02)


def per_tensor_dynamic(x, gate, weight):
    v = groups(norm(x, gate, weight))
    return codes(v, v.abs().amax() / 448.0)


def per_group_static(x, gate, weight):
    scale = torch.full((4, 1), 0.02) * torch.arange(1, 5).view(4, 1)  # one for each group of a token
    return codes(groups(norm(x, gate, weight)), scale)


def block_group(x, gate, weight):
    v = groups(norm(x, gate, weight))
    return codes(v, v.abs().amax((0, 2), keepdim=True) / 448.0)


def group_crosses_tokens(x, gate, weight):
    y = norm(x, gate, weight)  # rows of 512, and 384 does not divide them
    return quant(y.reshape(-1, 384).float())


def group_of_one(x, gate, weight):
    return quant(norm(x, gate, weight).unsqueeze(-1).float())


def symbolic_group():
    x, gate, weight = tensors()
    for tensor in (x, gate):
        torch._dynamo.mark_dynamic(tensor, 1)  # the number of heads
    return explain(lambda *args: quant(norm(*args).float()), x, gate, weight, devices="cpu")  # one scale a row


def amax_source(x, gate, weight):
    return codes(groups(norm(x, gate, weight)), amax(x.float()) / 448.0)


def fp8_max(x, gate, weight):
    v = groups(norm(x, gate, weight))
    return codes(v, amax(v) / 240.0, limit=240.0)


def scale_arithmetic(x, gate, weight):
    v = groups(norm(x, gate, weight))
    return codes(v, torch.where(amax(v) > 0, amax(v) / 448.0, 1.0))


def scale_bound(x, gate, weight):
    v = groups(norm(x, gate, weight))
    return codes(v, amax(v).clamp(max=1200.0) / 448.0)


def floor(x, gate, weight):
    v = groups(norm(x, gate, weight))
    return codes(v, amax(v).clamp(min=1e-40) / 448.0)


def quant_division(x, gate, weight):
    v = groups(norm(x, gate, weight))
    return (v * (448.0 / amax(v))).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)


def ue8m0(x, gate, weight):
    v = groups(norm(x, gate, weight))
    return codes(v, torch.exp2(torch.ceil(torch.log2(amax(v) / 448.0))))


def clamp(x, gate, weight):
    v = groups(norm(x, gate, weight))
    return (v / (amax(v) / 448.0)).clamp(max=448.0).to(torch.float8_e4m3fn)


def fp8_dtype(x, gate, weight):
    v = groups(norm(x, gate, weight))
    return (v / (amax(v) / 57344.0)).to(torch.float8_e5m2fnuz)


def opaque_quant():
    def reader(arguments):  # knows one layout of the scales, and the call below asks for the other
        return OpaqueQuant(arguments["y"], GroupQuant(scale_layout="column_major"))

    register_quant_op(torch.ops.fusionlib.group_quant.default, reader)
    return explain(lambda *args: group_quant(norm(*args), GroupQuant()), *tensors(), devices="cpu")


def unknown_quant_op():
    @torch.library.custom_op("somebody::quant", mutates_args=())
    def opaque(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return quant(groups(y))

    opaque.register_fake(lambda y: quant(groups(y)))
    return explain(lambda *args: opaque(norm(*args)), *tensors(), devices="cpu")


def opaque_producer():
    @torch.library.custom_op("somebody::norm", mutates_args=())
    def opaque(x: torch.Tensor) -> torch.Tensor:
        return rms(x.float()).to(x.dtype)

    def reader(a):  # says that the value is not rounded
        return OpaqueProducer(RMSNorm(128, rounding=frozenset()), {"x": a["x"], "residual": None}, {"weight": None})

    opaque.register_fake(torch.empty_like)
    register_producer_op("somebody::norm", reader)
    return explain(lambda x, gate, weight: quant(groups(opaque(x).flatten(1))), *tensors(), devices="cpu")


def reader_failed():
    def reader(arguments):
        return OpaqueQuant(arguments["values"], GroupQuant())  # KeyError: the op calls it y

    register_quant_op(torch.ops.fusionlib.group_quant.default, reader)
    return explain(lambda *args: group_quant(norm(*args), GroupQuant()), *tensors(), devices="cpu")


# What is normed, and how.


def not_gated_norm(x, gate, weight):
    y = rms(x.float()) * weight * F.silu(gate.float()) * 1.5
    return quant(groups(y.to(x.dtype).flatten(1)))


def not_rms_norm(x, gate, weight):
    y = rms(x.float()) * weight * 1.5
    return quant(groups(y.to(x.dtype).flatten(1)))


def rearranged(x, gate, weight):
    return quant(groups(F.pad(norm(x, gate, weight), (0, 128))))


def mean_of_squares(x, gate, weight):
    v = x.float()
    y = v * torch.rsqrt(v.abs().mean(-1, keepdim=True) + 1e-6) * weight * F.silu(gate.float())
    return quant(groups(y.to(x.dtype).flatten(1)))


def layer_norm(x, gate, weight):
    y = F.layer_norm(x.float(), (128,), weight.float()) * F.silu(gate.float())
    return quant(groups(y.to(x.dtype).flatten(1)))


def mean_axis(x, gate, weight):
    y = rms(x.float(), dim=1) * weight * F.silu(gate.float())
    return quant(groups(y.to(x.dtype).flatten(1)))


def mean_source(x, gate, weight):
    root = torch.rsqrt(gate.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    y = x.float() * root * weight * F.silu(gate.float())
    return quant(groups(y.to(x.dtype).flatten(1)))


def activation(x, gate, weight):
    y = rms(x.float()) * weight * torch.tanh(gate.float())
    return quant(groups(y.to(x.dtype).flatten(1)))


def gate_shape(x, gate, weight):
    return quant(groups(norm(x, gate[..., :1], weight)))


def weight_shape(x, gate, weight):
    y = rms(x.float()).unflatten(2, (2, 64)) * weight[:64]  # one weight for both halves of a head
    y = y.flatten(2) * F.silu(gate.float())
    return quant(groups(y.to(x.dtype).flatten(1)))


def token_factor(x, gate, weight):
    y = (rms(x.float()) * weight).to(x.dtype) * gate[..., :1]  # one number for each head of a token
    return quant(y.flatten(1).float())


def bias(x, gate, weight):
    y = (rms(x.float()) + weight) * weight * F.silu(gate.float())
    return quant(groups(y.to(x.dtype).flatten(1)))


def eps(x, gate, weight):
    y = rms(x.float(), eps=-1e-6) * weight * F.silu(gate.float())
    return quant(groups(y.to(x.dtype).flatten(1)))


def scalar_not_literal(x, gate, weight):
    y = rms(x.float(), eps=weight[0]) * weight * F.silu(gate.float())
    return quant(groups(y.to(x.dtype).flatten(1)))


def symbolic_shape():
    x, gate, weight = tensors()
    gate = gate.reshape(12, 2, 128)  # half a token a row: its rows are another dynamic size than the tokens of x
    for tensor in (x, gate):
        torch._dynamo.mark_dynamic(tensor, 0)
    return explain(lambda x, gate, weight: site(x, gate.view(-1, 4, 128), weight), x, gate, weight, devices="cpu")


def rounding(x, gate, weight):
    y = rms(x.float()) * weight * (gate * torch.sigmoid(gate))  # the sigmoid is rounded to bfloat16
    return quant(groups(y.to(x.dtype).flatten(1)))


def order(x, gate, weight):
    y = (rms(x.float()) * F.silu(gate.float())).to(x.dtype) * weight
    return quant(groups(y.flatten(1)))


# A product with an activation.


def product_shape(x, gate, weight):
    y = x * F.silu(gate[..., :1])  # one gate for a whole head
    return quant(groups(y.flatten(1)))


def further_factor(x, gate, weight):
    y = x.float() * F.silu(gate.float()) * weight
    return quant(groups(y.to(x.dtype).flatten(1)))


def modified_glu(x, gate, weight):
    y = (x + 1) * (gate * torch.sigmoid(1.702 * gate))
    return quant(groups(y.flatten(1)))


# Where and when.


def device():
    return explain(site, *tensors())  # on a CPU, and the pass rewrites on GPUs unless told otherwise


def unsupported():
    x, gate, _ = tensors()
    return explain(site, x, gate, torch.rand(256)[::2], devices="cpu")


def mutation():
    def path(x, gate, weight):
        activated = F.silu(gate.float())
        gate.zero_()
        y = rms(x.float()) * weight * activated
        return quant(groups(y.to(x.dtype).flatten(1)))

    graph = make_fx(path, tracing_mode="fake")(*tensors()).graph  # torch.compile moves the write to the end
    return Report((FusionPass("cpu").rewrite(graph),))


def training():
    x, gate, weight = tensors()
    return explain(site, x, gate, weight.requires_grad_(), devices="cpu")


def intermediate_used(x, gate, weight):
    root = torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    y = x.float() * root * weight * F.silu(gate.float())
    return *quant(groups(y.to(x.dtype).flatten(1))), root


def replacement_differs():
    x, gate = (t.transpose(0, 1) for t in torch.randn(2, 4, 6, 128, dtype=torch.bfloat16))  # one head after the other
    path = lambda x, gate: quant((rms(x.float()) * F.silu(gate.float())).to(x.dtype).float())  # noqa: E731
    return explain(path, x, gate, devices="cpu")


def internal_error():
    class Mistaken(GatedNormQuant):
        def read(self, value, trail):
            return trail[99]  # IndexError

    records, fusion = [], FusionPass("cpu", fusions=(Mistaken(),))
    run_edited(lambda graph: records.append(fusion.rewrite(graph)), site, *tensors())
    return Report(tuple(records))


#: Every example by its code, in the order of the reasons.
EXAMPLES: dict[str, Callable] = {
    reason.code: globals()[reason.code]
    for reason in (*COMMON, *(reason for fusion in BUILT_IN for reason in fusion.reasons))
}


def explained(code: str) -> Report:
    """The report on the example of `code`; readers that it registers are removed afterwards."""
    example = EXAMPLES[code]
    with readers_kept(), producers_kept():
        return explain(example, *tensors(), devices="cpu") if inspect.signature(example).parameters else example()
