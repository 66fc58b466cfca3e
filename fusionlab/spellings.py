"""Ways that real code writes one computation, as a table: gated RMS norm, one row per token, FP8 group quantisation.

Every row differs in one thing from the first, which is written step by step like `fusionlib.reference`. One fused call
can compute each of them. The table is data for tests, for the scoreboard and for the docs; nothing in the library
depends on it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch.nn import functional

from fusionlib import op, reference
from fusionlib.pattern.norm_op import define_norm_op, rms_norm_gated
from fusionlib.spec import ActAndMul, GatedNorm, GroupQuant, RMSNorm

Kind = Literal["layout", "dtype", "scalars", "spelling", "users", "quant"]
Tensors = tuple[torch.Tensor, ...]

TOKENS, HEADS, HEAD_DIM = 6, 4, 128
HIDDEN = HEADS * HEAD_DIM
NORM, QUANT = GatedNorm.vllm(HEAD_DIM), GroupQuant.vllm(HEAD_DIM)
DEEPGEMM = GroupQuant.deepgemm(128, blackwell=True)


@dataclass(frozen=True)
class Spelling:
    """One way to write it.

    Args:
        name: what differs from the first row.
        kind: the class of difference, as in the table of misses: layout, dtype, scalars, spelling, users, quant.
        build: makes the function and its inputs; seed torch first for reproducible values.
        dynamic: compile the first dimension of x and gate, inputs 0 and 1, as a symbol.
        spec: what its producer is read as; None where the table leaves it open.
    """

    name: str
    kind: Kind
    build: Callable[[], tuple[Callable[..., Tensors], Tensors]]
    dynamic: bool = False
    spec: RMSNorm | ActAndMul | None = None


# Spellings of the norm. `rows` are [rows, head_dim]; every parameter is one thing that real code does differently.


def _sigmoid_product(z: torch.Tensor) -> torch.Tensor:
    return z * torch.sigmoid(z)


def _scale_by_root(value: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    return value * torch.rsqrt(mean)


def _scale_by_power(value: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    return value * mean.pow(-0.5)


def _square(value: torch.Tensor) -> torch.Tensor:
    return value.pow(2)


def _square_by_product(value: torch.Tensor) -> torch.Tensor:
    return value * value


def written_norm(
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    *,
    eps: float = 1e-6,
    activation: Callable[[torch.Tensor], torch.Tensor] = functional.silu,
    square: Callable[[torch.Tensor], torch.Tensor] = _square,
    scale: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = _scale_by_root,
    weight_offset: int = 0,
    weight_view: bool = True,
    commuted: bool = False,
) -> torch.Tensor:
    """vLLM's norm of x [..., head_dim], step by step as in `reference.rms_norm_gated`.

    Returns x's shape and dtype.
    """
    flat = (t.reshape(-1, t.shape[-1]) for t in (x, gate))
    rows, gates = (t.unflatten(1, (-1, x.shape[-1])).float() for t in flat)
    activated = activation(gates)
    value = scale(rows, square(rows).mean(-1, keepdim=True) + eps)
    factor = weight.float() + weight_offset if weight_offset else weight.float()
    factor = factor.view(-1, x.shape[-1]) if weight_view else factor
    value = activated * (factor * value) if commuted else value * factor * activated
    return value.to(x.dtype).flatten(1).view(x.shape)


def qwen3_next_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """With the intermediate roundings of transformers' Qwen3-Next."""
    value = x.float()
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6)
    value = weight * value.to(x.dtype)
    return (value * functional.silu(gate.float())).to(x.dtype)


def library_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """With PyTorch's own function, in float32."""
    normed = functional.rms_norm(x.float(), (x.shape[-1],), weight.float(), 1e-6)
    return (normed * functional.silu(gate.float())).to(x.dtype)


def gate_first_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Gated, then normed, with one rounding at the end."""
    value = x.float() * functional.silu(gate.float())
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (value * weight.float()).to(x.dtype)


def _opaque_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """With an op that hides its arithmetic."""
    return rms_norm_gated(x.reshape(-1, x.shape[-1]), gate.reshape(-1, x.shape[-1]), weight, NORM).view(x.shape)


# Spellings of the quantisation.


def repeated_scale_quant(y: torch.Tensor) -> Tensors:
    """The scale is repeated to the row's length instead of broadcast over groups."""
    amax = y.float().unflatten(1, (-1, HEAD_DIM)).abs().amax(-1).clamp(min=1e-10)
    scale = amax / 448.0
    wide = scale.repeat_interleave(HEAD_DIM, dim=1)
    return (y.float() / wide).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale


def native(quant: GroupQuant = QUANT) -> Callable[[torch.Tensor], Tensors]:
    """The quantisation in plain PyTorch."""
    return partial(reference.group_quant, quant=quant)


def opaque(quant: GroupQuant = QUANT) -> Callable[[torch.Tensor], Tensors]:
    """The quantisation as an opaque op."""
    return partial(op.group_quant, quant=quant)


# Inputs, and combinations of norm and quantisation.


def make_inputs(
    shape: tuple[int, ...] = (TOKENS, HEADS, HEAD_DIM),
    dtype: torch.dtype = torch.bfloat16,
    gate_dtype: torch.dtype | None = None,
    weight_dtype: torch.dtype | None = None,
) -> Tensors:
    """x and gate of `shape` and a weight [head_dim] around one; dtypes default to x's."""
    x, gate = torch.randn(shape).to(dtype), torch.randn(shape).to(gate_dtype or dtype)
    return x, gate, (torch.rand(HEAD_DIM) + 0.5).to(weight_dtype or dtype)


def strided_inputs() -> Tensors:
    """The gate is a slice of a wider projection."""
    x, _, weight = make_inputs()
    return x, torch.randn(TOKENS, 3 * HEADS, HEAD_DIM).bfloat16()[:, HEADS : 2 * HEADS], weight


def _row(y: torch.Tensor) -> torch.Tensor:
    return y.flatten(1)


def _site(
    norm: Callable[..., torch.Tensor] = written_norm,
    quant: Callable[[torch.Tensor], Tensors] | None = None,
    row: Callable[[torch.Tensor], torch.Tensor] = _row,
    inputs: Callable[[], Tensors] = make_inputs,
) -> Callable[[], tuple[Callable[..., Tensors], Tensors]]:
    quant = quant or native()

    def path(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> Tensors:
        return tuple(quant(row(norm(x, gate, weight))))

    return lambda: (path, inputs())


def _two_rows(y: torch.Tensor) -> torch.Tensor:
    return y.view(-1, HIDDEN)


def _chain(y: torch.Tensor) -> torch.Tensor:
    return y.reshape(1, -1, HIDDEN).reshape(-1, HEAD_DIM).reshape(y.shape[0], HIDDEN)


def _flat_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    heads = [t.view(-1, HEADS, HEAD_DIM) for t in (x, gate)]
    return written_norm(*heads, weight)


def _whole_row_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return reference.rms_norm_gated(x, gate, weight, NORM)


def _grouped_norm(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return reference.rms_norm_gated(x, gate, weight.repeat(HEADS), GatedNorm.mamba2(HEAD_DIM))


def _kept_normed(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> Tensors:
    y = written_norm(x, gate, weight).flatten(1)
    return *native()(y), y


def _two_quants(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> Tensors:
    y = written_norm(x, gate, weight).flatten(1)
    return *native()(y), *native(GroupQuant.aiter(HEAD_DIM))(y)


def _same(fn: Callable[..., Tensors]) -> Callable[[], tuple[Callable[..., Tensors], Tensors]]:
    return lambda: (fn, make_inputs())


def _norm(**changes) -> Callable[..., torch.Tensor]:
    return partial(written_norm, **changes)


def _inputs(*args, **changes) -> Callable[[], Tensors]:
    return partial(make_inputs, *args, **changes)


SPELLINGS: tuple[Spelling, ...] = (
    Spelling("as the reference", "layout", _site()),
    Spelling("rows of heads, [tokens*heads, head_dim]", "layout", _site(row=_two_rows, inputs=_inputs((24, HEAD_DIM)))),
    Spelling("a chain of reshapes", "layout", _site(row=_chain)),
    Spelling("batch and sequence", "layout", _site(row=_two_rows, inputs=_inputs((2, 3, HEADS, HEAD_DIM)))),
    Spelling("flat rows cut into heads", "layout", _site(_flat_norm, inputs=_inputs((TOKENS, HIDDEN)))),
    Spelling("normed a row at a time, no reshape left", "layout", _site(_whole_row_norm)),
    Spelling("symbolic token count", "layout", _site(), dynamic=True),
    Spelling("twice the heads", "layout", _site(inputs=_inputs((TOKENS, 2 * HEADS, HEAD_DIM)))),
    Spelling("strided gate", "layout", _site(inputs=strided_inputs)),
    Spelling("float32 weight", "dtype", _site(inputs=_inputs(weight_dtype=torch.float32))),
    Spelling("float32 gate", "dtype", _site(inputs=_inputs(gate_dtype=torch.float32))),
    Spelling("fp16 activations", "dtype", _site(inputs=_inputs(dtype=torch.float16))),
    Spelling("float32 activations", "dtype", _site(inputs=_inputs(dtype=torch.float32))),
    Spelling("eps 1e-5", "scalars", _site(_norm(eps=1e-5))),
    Spelling("floor 1e-4 on amax", "scalars", _site(quant=native(GroupQuant(HEAD_DIM, floor=1e-4)))),
    Spelling("floor on the scale", "scalars", _site(quant=native(GroupQuant.vllm_native(HEAD_DIM)))),
    Spelling("groups of 64", "scalars", _site(quant=native(GroupQuant.vllm(64)))),
    Spelling("weight not viewed", "spelling", _site(_norm(weight_view=False))),
    Spelling("z * sigmoid(z)", "spelling", _site(_norm(activation=_sigmoid_product))),
    Spelling("sigmoid gate", "spelling", _site(_norm(activation=torch.sigmoid))),
    Spelling("commuted products", "spelling", _site(_norm(commuted=True))),
    Spelling("x * x", "spelling", _site(_norm(square=_square_by_product))),
    Spelling("pow(-0.5)", "spelling", _site(_norm(scale=_scale_by_power))),
    Spelling("1 + weight", "spelling", _site(_norm(weight_offset=1))),
    Spelling("F.rms_norm", "spelling", _site(library_norm)),
    Spelling("roundings on the way (Qwen3-Next)", "spelling", _site(qwen3_next_norm)),
    Spelling("gate before norm", "spelling", _site(gate_first_norm)),
    Spelling("gated and normed by groups (Mamba2)", "spelling", _site(_grouped_norm)),
    Spelling("normed value also returned", "users", _same(_kept_normed)),
    Spelling("two quantisations of one norm", "users", _same(_two_quants)),
    Spelling("opaque quantisation", "quant", _site(quant=opaque())),
    Spelling("reciprocal of the scale", "quant", _site(quant=native(GroupQuant.aiter(HEAD_DIM)))),
    Spelling("scale repeated", "quant", _site(quant=repeated_scale_quant)),
    Spelling("column-major scales", "quant", _site(quant=native(QUANT.with_layout("column_major")))),
    Spelling("ue8m0 scales", "quant", _site(quant=native(GroupQuant(HEAD_DIM, scale_format="ue8m0")))),
    Spelling("ue8m0 scales, of NaN the largest (DeepGEMM)", "quant", _site(quant=native(DEEPGEMM))),
    Spelling("scale rounded, no floor (torchao)", "quant", _site(quant=native(GroupQuant.torchao(HEAD_DIM)))),
    Spelling("one scale per token", "quant", _site(quant=native(GroupQuant.vllm(HIDDEN)))),
)


def _opaque_site() -> tuple[Callable[..., Tensors], Tensors]:
    define_norm_op()
    return _site(_opaque_norm, quant=opaque())()


#: The norm hidden in an op as well: not in the table, because only code that knows the op can tell what it computes.
OPAQUE_NORM = Spelling("opaque norm and quantisation", "quant", _opaque_site)
