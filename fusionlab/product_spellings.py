"""Ways that real code writes a product with an activation before FP8 group quantisation, as two tables.

An MLP's halves in all the forms that projections and models give them, and the gated output of an attention layer.
What a row is read as stands beside it; one fused call computes each of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch.nn import functional

from fusionlab.spellings import DEEPGEMM, Kind, Spelling, Tensors, native, opaque
from fusionlib.spec import ActAndMul, GroupQuant

TOKENS, HIDDEN, GROUP = 6, 512, 128
HEADS, HEAD_DIM = 4, 128

SWIGLU, SIGMOID = ActAndMul.swiglu(), ActAndMul.sigmoid_gate()

#: gate -> the activation of it
Act = Callable[[torch.Tensor], torch.Tensor]
#: (gate, up) -> the product
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Quant = Callable[[torch.Tensor], Tensors]
Halves = Callable[[torch.Tensor], Tensors]
Build = Callable[[], tuple[Callable[..., Tensors], Tensors]]


def _once(spec: ActAndMul) -> ActAndMul:
    """The same, rounded once, at the end."""
    return replace(spec, rounding=frozenset({"output"}))


# Activations, spelled out; in float32 like the models that do so.


def gelu_by_erf(gate: torch.Tensor) -> torch.Tensor:
    """As BERT wrote it."""
    return gate * 0.5 * (1.0 + torch.erf(gate / math.sqrt(2.0)))


def gelu_by_tanh(gate: torch.Tensor) -> torch.Tensor:
    """As GPT-2 wrote it (transformers' NewGELUActivation)."""
    return 0.5 * gate * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (gate + 0.044715 * torch.pow(gate, 3.0))))


# Products.


def times(gate: torch.Tensor, up: torch.Tensor, act: Act = functional.silu) -> torch.Tensor:
    """In the dtype of the tensors: the activation and the product are rounded."""
    return act(gate) * up


def commuted(gate: torch.Tensor, up: torch.Tensor, act: Act = functional.silu) -> torch.Tensor:
    """The other way round."""
    return up * act(gate)


def in_float32(gate: torch.Tensor, up: torch.Tensor, act: Act = functional.silu) -> torch.Tensor:
    """Rounded once, at the end."""
    return (act(gate.float()) * up.float()).to(up.dtype)


def unrounded(gate: torch.Tensor, up: torch.Tensor, act: Act = functional.silu) -> torch.Tensor:
    """Quantised as the float32 that it is."""
    return act(gate.float()) * up.float()


def activation_rounded(gate: torch.Tensor, up: torch.Tensor, act: Act = functional.silu) -> torch.Tensor:
    """The activation is written out in float32 and rounded, as where a model calls a function of its own."""
    return act(gate.float()).to(gate.dtype) * up


# Halves of one projection [..., 2 * hidden].


def chunked(wide: torch.Tensor) -> Tensors:
    """Gate and up, one after the other."""
    return wide.chunk(2, -1)


def split(wide: torch.Tensor) -> Tensors:
    """By sizes."""
    return wide.split([HIDDEN, HIDDEN], -1)


def sliced(wide: torch.Tensor) -> Tensors:
    """As vLLM's SiluAndMul has it."""
    half = wide.shape[-1] // 2
    return wide[..., :half], wide[..., half:]


def interleaved(wide: torch.Tensor) -> Tensors:
    """Every other element, as gpt-oss has it."""
    return wide[..., ::2], wide[..., 1::2]


# Sites.


def _pair(shape: tuple[int, ...] = (TOKENS, HIDDEN), dtype: torch.dtype = torch.bfloat16) -> Tensors:
    return tuple((2 * torch.randn(2, *shape)).to(dtype))


def _site(product: Product = times, quant: Quant | None = None, inputs: Callable[[], Tensors] = _pair) -> Build:
    quantise = quant or native()
    return lambda: (lambda gate, up: tuple(quantise(product(gate, up).flatten(0, -2))), inputs())


def _of_one(halves: Halves) -> Build:
    def path(wide: torch.Tensor) -> Tensors:
        gate, up = halves(wide)
        return native()(times(gate, up))

    return lambda: (path, ((2 * torch.randn(TOKENS, 2 * HIDDEN)).bfloat16(),))


def _kept(gate: torch.Tensor, up: torch.Tensor) -> Tensors:
    value = times(gate, up)
    return *native()(value), value


def _two_quants(gate: torch.Tensor, up: torch.Tensor) -> Tensors:
    value = times(gate, up)
    return *native()(value), *native(GroupQuant.aiter(GROUP))(value)


def _act(act: Act, product: Callable[..., torch.Tensor] = times) -> Build:
    return _site(partial(product, act=act))


def _row(name: str, kind: Kind, build: Build, spec: ActAndMul = SWIGLU, dynamic: bool = False) -> Spelling:
    return Spelling(name, kind, build, dynamic, spec)


_FP16, _FP32 = (partial(_pair, dtype=dtype) for dtype in (torch.float16, torch.float32))
_GELU, _GELU_TANH = ActAndMul.geglu(approximate=False), ActAndMul.geglu()
_tanh = partial(functional.gelu, approximate="tanh")


def _exp(gate: torch.Tensor) -> torch.Tensor:
    return gate / (1.0 + torch.exp(-gate))


def _sigmoid_product(gate: torch.Tensor) -> torch.Tensor:
    return gate * torch.sigmoid(gate)


def _gate_then_x(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    wide = gate.float()
    return (wide * torch.sigmoid(wide) * up.float()).to(up.dtype)


def _x_between(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    wide = gate.float()
    return (wide * up.float() * torch.sigmoid(wide)).to(up.dtype)


PRODUCT_SPELLINGS: tuple[Spelling, ...] = (
    _row("as the reference", "layout", _site()),
    _row("chunks of one projection", "layout", _of_one(chunked)),
    _row("split by sizes", "layout", _of_one(split)),
    _row("slices (vLLM)", "layout", _of_one(sliced)),
    _row("every other element", "layout", _of_one(interleaved)),
    _row("batch and sequence", "layout", _site(inputs=partial(_pair, (2, 3, HIDDEN)))),
    _row("one token", "layout", _site(inputs=partial(_pair, (1, HIDDEN)))),
    _row("symbolic token count", "layout", _site(), dynamic=True),
    _row("fp16", "dtype", _site(inputs=_FP16)),
    _row("float32", "dtype", _site(inputs=_FP32), _once(SWIGLU)),
    _row("in float32, rounded at the end", "dtype", _site(in_float32), _once(SWIGLU)),
    _row("in float32, never rounded", "dtype", _site(unrounded), replace(SWIGLU, rounding=frozenset())),
    _row("activation rounded from float32", "dtype", _site(activation_rounded)),
    _row("groups of 64", "scalars", _site(quant=native(GroupQuant.vllm(64)))),
    _row("commuted", "spelling", _site(commuted)),
    _row("z * sigmoid(z)", "spelling", _act(_sigmoid_product, in_float32), _once(SWIGLU)),
    _row("z / (1 + exp(-z))", "spelling", _act(_exp, in_float32), _once(SWIGLU)),
    _row("z * sigmoid(z) * x", "spelling", _site(_gate_then_x), _once(SWIGLU)),
    _row("z * x * sigmoid(z)", "spelling", _site(_x_between), _once(SWIGLU)),
    _row("gelu", "spelling", _act(functional.gelu), _GELU),
    _row("gelu by tanh", "spelling", _act(_tanh), _GELU_TANH),
    _row("gelu by erf, spelled out", "spelling", _act(gelu_by_erf, in_float32), _once(_GELU)),
    _row("gelu by tanh, spelled out", "spelling", _act(gelu_by_tanh, in_float32), _once(_GELU_TANH)),
    _row("value also returned", "users", lambda: (_kept, _pair())),
    _row("two quantisations", "users", lambda: (_two_quants, _pair())),
    _row("opaque quantisation", "quant", _site(quant=opaque())),
    _row("reciprocal of the scale", "quant", _site(quant=native(GroupQuant.aiter(GROUP)))),
    _row("column-major scales", "quant", _site(quant=native(GroupQuant.vllm(GROUP).with_layout("column_major")))),
    _row("ue8m0 scales", "quant", _site(quant=native(GroupQuant(GROUP, scale_format="ue8m0")))),
    _row("ue8m0 scales, of NaN the largest (DeepGEMM)", "quant", _site(quant=native(DEEPGEMM))),
    _row("scale rounded, no floor (torchao)", "quant", _site(quant=native(GroupQuant.torchao(GROUP)))),
    _row("one scale per token", "quant", _site(quant=native(GroupQuant.vllm(HIDDEN)))),
)


# The gate of an attention output [tokens, heads * head_dim].


def _attention(gated: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], inputs: Callable[[], Tensors]) -> Build:
    return lambda: (lambda output, gate: tuple(native()(gated(output, gate))), inputs())


def _of_query(output: torch.Tensor, projected: torch.Tensor) -> torch.Tensor:
    """transformers' Qwen3NextAttention: query and gate are chunks of every head of one projection."""
    tokens = output.shape[0]
    _, gate = torch.chunk(projected.view(tokens, -1, 2 * HEAD_DIM), 2, dim=-1)
    return output.reshape(tokens, -1).contiguous() * torch.sigmoid(gate.reshape(tokens, -1))


def _query_inputs() -> Tensors:
    return torch.randn(TOKENS, HEADS, HEAD_DIM).bfloat16(), torch.randn(TOKENS, 2 * HEADS * HEAD_DIM).bfloat16()


def _gated(output: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    return output * torch.sigmoid(gate)


def _gate_first(output: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(gate) * output


def _gated_in_float32(output: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    return (output.float() * torch.sigmoid(gate.float())).to(output.dtype)


def _by_exp(output: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    return (output.float() * (1.0 / (1.0 + torch.exp(-gate.float())))).to(output.dtype)


def _one_row(output: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    return _gated(output, gate).flatten(0, -2)


GATE_SPELLINGS: tuple[Spelling, ...] = (
    _row("as the reference", "layout", _attention(_gated, _pair), SIGMOID),
    _row("gate per head of a projection (Qwen3-Next)", "layout", _attention(_of_query, _query_inputs), SIGMOID),
    _row("batch and sequence", "layout", _attention(_one_row, partial(_pair, (2, 3, HIDDEN))), SIGMOID),
    _row("one token", "layout", _attention(_gated, partial(_pair, (1, HIDDEN))), SIGMOID),
    _row("symbolic token count", "layout", _attention(_gated, _pair), SIGMOID, dynamic=True),
    _row("fp16", "dtype", _attention(_gated, _FP16), SIGMOID),
    _row("float32", "dtype", _attention(_gated, _FP32), _once(SIGMOID)),
    _row("in float32, rounded at the end", "dtype", _attention(_gated_in_float32, _pair), _once(SIGMOID)),
    _row("commuted", "spelling", _attention(_gate_first, _pair), SIGMOID),
    _row("1 / (1 + exp(-z))", "spelling", _attention(_by_exp, _pair), _once(SIGMOID)),
    _row("opaque quantisation", "quant", lambda: (lambda o, g: tuple(opaque()(_gated(o, g))), _pair()), SIGMOID),
)
