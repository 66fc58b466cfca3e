"""Ways that real code writes an RMS norm before FP8 group quantisation, with a residual or without, as a table.

Every row but those without one gets x, the residual and the weight, and returns codes, scale and, where the model goes
on with it, the sum. What a row is read as stands beside it; one fused call computes each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch.nn import functional

from fusionlab.spellings import DEEPGEMM, Kind, Spelling, Tensors, native, opaque
from fusionlib.spec import GroupQuant, RMSNorm

TOKENS, HIDDEN, GROUP = 6, 512, 128

ONCE, LLAMA, VLLM = RMSNorm.native(HIDDEN), RMSNorm.llama(HIDDEN), RMSNorm.vllm(HIDDEN)
_OFFSET, _FLOAT32 = RMSNorm.qwen3_next(HIDDEN), RMSNorm(HIDDEN, rounding=frozenset({"output"}))

#: (x, residual) -> (what is normed, the sum as the next layer reads it)
Add = Callable[[torch.Tensor, torch.Tensor], Tensors]
#: (what is normed, weight) -> the normed value
Norm = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Quant = Callable[[torch.Tensor], Tensors]
Build = Callable[[], tuple[Callable[..., Tensors], Tensors]]


# Ways to add.


def add(x: torch.Tensor, residual: torch.Tensor) -> Tensors:
    """In the dtype of the tensors, as transformers does."""
    total = residual + x
    return total, total


def add_in_float32(x: torch.Tensor, residual: torch.Tensor) -> Tensors:
    """As vLLM does: the norm goes on with the float32 sum, the next layer with a rounded one."""
    total = x.float() + residual.float()
    return total, total.to(residual.dtype)


def add_and_round(x: torch.Tensor, residual: torch.Tensor) -> Tensors:
    """In float32 and rounded, for the norm and the next layer alike."""
    total = (x.float() + residual.float()).to(residual.dtype)
    return total, total


# Ways to norm.


def written_norm(
    value: torch.Tensor,
    weight: torch.Tensor | None,
    *,
    dtype: torch.dtype = torch.bfloat16,
    eps: float = 1e-6,
    offset: bool = False,
    square: Callable[[torch.Tensor], torch.Tensor] = torch.square,
    mean: Callable[[torch.Tensor], torch.Tensor] = lambda squares: squares.mean(-1, keepdim=True),
    scale: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = lambda value, mean: value * torch.rsqrt(mean),
    round_norm: bool = False,
    commuted: bool = False,
    round_output: bool = True,
) -> torch.Tensor:
    """The norm step by step, every parameter one thing that models do differently; the value is of `dtype`."""
    value = value.float()
    value = scale(value, mean(square(value)) + eps)
    if weight is not None:
        factor = weight if round_norm else weight.float()
        factor = 1.0 + factor if offset else factor
        value = value.to(dtype) if round_norm else value
        value = factor * value if commuted else value * factor
    return value.to(dtype) if round_output else value


def llama_norm(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """transformers' LlamaRMSNorm, which most models share."""
    dtype = value.dtype
    value = value.to(torch.float32)
    variance = value.pow(2).mean(-1, keepdim=True)
    value = value * torch.rsqrt(variance + 1e-6)
    return weight * value.to(dtype)


def library_norm(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """PyTorch's own function."""
    return functional.rms_norm(value, (value.shape[-1],), weight, 1e-6)


# Inputs and sites.


def make_inputs(
    shape: tuple[int, ...] = (TOKENS, HIDDEN),
    dtype: torch.dtype = torch.bfloat16,
    residual_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
) -> Tensors:
    """x and residual of `shape` and a weight [hidden] around one; dtypes default to x's."""
    x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(residual_dtype or dtype)
    return x, residual, (torch.rand(shape[-1]) + 0.5).to(weight_dtype or dtype)


def _sliced() -> Tensors:
    _, residual, weight = make_inputs()
    return torch.randn(TOKENS, 3 * HIDDEN).bfloat16()[:, HIDDEN : 2 * HIDDEN], residual, weight


def _interleaved() -> Tensors:
    _, residual, weight = make_inputs()
    return torch.randn(TOKENS, 2 * HIDDEN).bfloat16()[:, ::2], residual, weight


def _site(
    norm: Norm = written_norm,
    adding: Add = add,
    quant: Quant | None = None,
    inputs: Callable[[], Tensors] = make_inputs,
) -> Build:
    quantise = quant or native()

    def path(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Tensors:
        normed, total = adding(x, residual)
        return *quantise(norm(normed, weight).flatten(0, -2)), total

    return lambda: (path, inputs())


def _same(fn: Callable[..., Tensors], inputs: Callable[[], Tensors] = make_inputs) -> Build:
    return lambda: (fn, inputs())


def _norm(**changes: object) -> Norm:
    return partial(written_norm, **changes)  # type: ignore[arg-type]


def _inputs(*args: object, **changes: object) -> Callable[[], Tensors]:
    return partial(make_inputs, *args, **changes)  # type: ignore[arg-type]


def _module(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Tensors:
    module = torch.nn.RMSNorm(HIDDEN, eps=1e-6, dtype=weight.dtype)
    total = x + residual
    normed = torch.func.functional_call(module, {"weight": weight}, (total,))
    return *native()(normed), total


def _alone(x: torch.Tensor, weight: torch.Tensor) -> Tensors:
    return native()(written_norm(x, weight))


def _heads(x: torch.Tensor, weight: torch.Tensor) -> Tensors:
    return native()(written_norm(x, weight).flatten(1))


def _head_inputs() -> Tensors:
    return torch.randn(TOKENS, 4, GROUP).bfloat16(), torch.rand(GROUP).bfloat16() + 0.5


def _no_more_sum(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Tensors:
    return native()(written_norm(x + residual, weight))


def _routed(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Tensors:
    total = x + residual
    normed = llama_norm(total, weight)
    return *native()(normed), normed @ normed.t(), total


def _masked(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, mask: torch.Tensor) -> Tensors:
    """With transformers' `apply_mask_to_padding_states` behind the norm, as in front of a layer of linear attention."""
    total = x + residual
    normed = llama_norm(total, weight)
    normed = (normed * mask[:, :, None]).to(normed.dtype)
    return *native()(normed.flatten(0, 1)), total


def _padded_inputs(dtype: torch.dtype) -> Tensors:
    return *make_inputs((2, 3, HIDDEN)), torch.tensor([[0, 0, 1], [0, 1, 1]]).to(dtype)


def _two_quants(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Tensors:
    total = x + residual
    normed = written_norm(total, weight)
    return *native()(normed), *native(GroupQuant.aiter(GROUP))(normed), total


def _layers(adding: Add) -> Callable[..., Tensors]:
    """Three norms in a row: what the first adds up is the residual of the second, and so on."""

    def path(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Tensors:
        found: list[torch.Tensor] = []
        for _ in range(3):
            normed, residual = adding(x, residual)
            codes, scale = native()(written_norm(normed, weight))
            found += [codes, scale]
            x = (codes.float() / 512).to(x.dtype)
        return *found, residual

    return path


def _sum_over_n(squares: torch.Tensor) -> torch.Tensor:
    return squares.sum(-1, keepdim=True) / squares.shape[-1]


def _row(name: str, kind: Kind, build: Build, spec: RMSNorm = ONCE, dynamic: bool = False) -> Spelling:
    return Spelling(name, kind, build, dynamic, spec)


NORM_SPELLINGS: tuple[Spelling, ...] = (
    _row("as the reference", "layout", _site()),
    _row("batch and sequence", "layout", _site(inputs=_inputs((2, 3, HIDDEN)))),
    _row("one token", "layout", _site(inputs=_inputs((1, HIDDEN)))),
    _row("one token of one sequence", "layout", _site(inputs=_inputs((1, 1, HIDDEN)))),
    _row("symbolic token count", "layout", _site(), dynamic=True),
    _row("x is a slice of a projection", "layout", _site(inputs=_sliced)),
    _row("x is every other element", "layout", _site(inputs=_interleaved)),
    _row("without a residual", "layout", _same(_alone, lambda: make_inputs()[::2]), _FLOAT32),
    _row("norms of heads", "layout", _same(_heads, _head_inputs), replace(_FLOAT32, norm_size=GROUP)),
    _row("float32 weight", "dtype", _site(inputs=_inputs(weight_dtype=torch.float32))),
    _row("fp16", "dtype", _site(_norm(dtype=torch.float16), inputs=_inputs(dtype=torch.float16))),
    _row("float32", "dtype", _site(_norm(dtype=torch.float32), inputs=_inputs(dtype=torch.float32)), _FLOAT32),
    _row("residual in float32", "dtype", _site(inputs=_inputs(residual_dtype=torch.float32)), _FLOAT32),
    _row("value in float32", "dtype", _site(_norm(round_output=False)), replace(ONCE, rounding=frozenset({"sum"}))),
    _row("added in float32 (vLLM)", "dtype", _site(_norm(round_norm=True), add_in_float32), VLLM),
    _row("added in float32 and rounded", "dtype", _site(adding=add_and_round)),
    _row("eps 1e-5", "scalars", _site(_norm(eps=1e-5)), replace(ONCE, eps=1e-5)),
    _row("no eps", "scalars", _site(_norm(eps=0.0)), replace(ONCE, eps=0.0)),
    _row("groups of 64", "scalars", _site(quant=native(GroupQuant.vllm(64)))),
    _row("F.rms_norm", "spelling", _site(library_norm)),
    _row("nn.RMSNorm", "spelling", _same(_module)),
    _row("norm rounded before the weight (Llama)", "spelling", _site(llama_norm), LLAMA),
    _row("1 + weight (Gemma, Qwen3-Next)", "spelling", _site(_norm(offset=True)), _OFFSET),
    _row("no weight", "spelling", _site(lambda value, weight: written_norm(value, None))),
    _row("times a padding mask", "spelling", _same(_masked, partial(_padded_inputs, torch.int64)), LLAMA),
    _row("times a float32 padding mask", "spelling", _same(_masked, partial(_padded_inputs, torch.float32)), LLAMA),
    _row("commuted products", "spelling", _site(_norm(commuted=True))),
    _row("x * x", "spelling", _site(_norm(square=lambda value: value * value))),
    _row("pow(2)", "spelling", _site(_norm(square=lambda value: value.pow(2)))),
    _row("sum / n", "spelling", _site(_norm(mean=_sum_over_n))),
    _row("pow(-0.5)", "spelling", _site(_norm(scale=lambda value, mean: value * mean.pow(-0.5)))),
    _row("sum not read again", "users", _same(_no_more_sum)),
    _row("value also read by a router", "users", _same(_routed), LLAMA),
    _row("two quantisations of one norm", "users", _same(_two_quants)),
    _row("three layers", "users", _same(_layers(add))),
    _row(
        "three layers, added in float32",
        "users",
        _same(_layers(add_in_float32)),
        replace(ONCE, rounding=frozenset({"output"})),
    ),
    _row("opaque quantisation", "quant", _site(quant=opaque())),
    _row("reciprocal of the scale", "quant", _site(quant=native(GroupQuant.aiter(GROUP)))),
    _row("column-major scales", "quant", _site(quant=native(GroupQuant.vllm(GROUP).with_layout("column_major")))),
    _row("ue8m0 scales", "quant", _site(quant=native(GroupQuant(GROUP, scale_format="ue8m0")))),
    _row("ue8m0 scales, of NaN the largest (DeepGEMM)", "quant", _site(quant=native(DEEPGEMM))),
    _row("scale rounded, no floor (torchao)", "quant", _site(quant=native(GroupQuant.torchao(GROUP)))),
    _row("one scale per token", "quant", _site(quant=native(GroupQuant.vllm(HIDDEN)))),
)
