"""The producers of a value that is then quantised: what each computes and where it rounds.

All arithmetic is float32; a point in `rounding` is where the value is rounded to the activation's dtype. A fused result
must round where the unfused one does.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import ClassVar, Literal, get_args

import torch

from fusionlib.spec.checks import SpecError, elements, epsilon, flag, one_of, output_dtype, rounding_points

GateActivation = Literal["silu", "sigmoid"]
Activation = Literal["silu", "sigmoid", "gelu", "gelu_tanh"]

NormedGatePoint = Literal["activation", "gate", "norm", "weight", "output"]
NormPoint = Literal["sum", "norm", "output"]
ProductPoint = Literal["activation", "output"]


class _Rounded:
    """What all producers share: `rounding`, a set of `POINTS`, and `out_dtype`."""

    POINTS: ClassVar[tuple[str, ...]]
    rounding: frozenset[str]
    out_dtype: torch.dtype | None

    def __repr__(self) -> str:
        # A frozenset prints in a different order in every process; a spec must read the same everywhere.
        points = ", ".join(repr(point) for point in self.POINTS if point in self.rounding)
        plain = (f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.name != "rounding")  # type: ignore[arg-type]
        return f"{type(self).__name__}({', '.join(plain)}, rounding={{{points}}})"

    def output_dtype(self, activation_dtype: torch.dtype) -> torch.dtype:
        """The dtype of the value for an x of `activation_dtype`; float32 if the output is not rounded."""
        return (self.out_dtype or activation_dtype) if "output" in self.rounding else torch.float32

    @property
    def rounding_text(self) -> str:
        """The rounding points in the order they happen, comma separated: a form that an op's schema can carry."""
        return ",".join(point for point in self.POINTS if point in self.rounding)

    @property
    def rounding_words(self) -> str:
        """Where the value is rounded and to what, for a line of a report."""
        to = "" if self.out_dtype is None else f" to {str(self.out_dtype).removeprefix('torch.')}"
        return f"rounds at {self.rounding_text or 'no point'}{to}"


@dataclass(frozen=True, repr=False)
class GatedNorm(_Rounded):
    """A gated RMS norm over runs of `norm_size` elements of the last dimension.

    All arithmetic is float32. `act` is the activation, `w` the weight, and each `round` happens only if its point is
    in `rounding`::

        norm_before_gate:  n = round_norm(x * rsqrt(mean(x*x) + eps))
                           y = round_weight(n * (weight_offset + w) [+ bias])
                           y = round_output(y * round_activation(act(gate)))
        gate first:        g = round_gate(x * round_activation(act(gate)))
                           n = round_norm(g * rsqrt(mean(g*g) + eps))
                           y = round_output(n * (weight_offset + w) [+ bias])

    Args:
        norm_size: elements that one mean is taken over (head_dim for Gated DeltaNet, the group for Mamba2).
        eps: added to the mean of squares; 0, or at least `LEAST_EPS` and finite in float32.
        activation: `silu` (gate * sigmoid(gate)) or `sigmoid`.
        norm_before_gate: True for Gated DeltaNet, False for the Mamba2 family.
        weight_offset: 0, or 1 for models that store the weight as its difference from one.
        rounding: the points at which the value is rounded to x's dtype. Points that do not occur in the chosen order
            are refused: `gate` belongs to gate-first, `weight` to norm-first. Without `output` the result is float32.
        out_dtype: what the point `output` rounds to if that is not x's dtype, as when a float32 x (a residual kept in
            float32, vLLM's `orig_dtype`) gives a bfloat16 result; None for x's own. Needs the point `output`.
    """

    POINTS: ClassVar[tuple[str, ...]] = get_args(NormedGatePoint)

    norm_size: int
    eps: float = 1e-6
    activation: GateActivation = "silu"
    norm_before_gate: bool = True
    weight_offset: int = 0
    rounding: frozenset[NormedGatePoint] = frozenset({"output"})
    out_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        elements("norm_size", self.norm_size)
        object.__setattr__(self, "eps", epsilon(self.eps))
        one_of("activation", self.activation, get_args(GateActivation))
        flag("norm_before_gate", self.norm_before_gate)
        one_of("weight_offset", self.weight_offset, (0, 1))
        object.__setattr__(self, "rounding", rounding_points(self.rounding, self.POINTS))
        absent, use = ("gate", "output") if self.norm_before_gate else ("weight", "output")
        if absent in self.rounding:
            order = "norm_before_gate" if self.norm_before_gate else "gate-first"
            raise SpecError(f"rounding point {absent!r} does not occur in {order} order; its last product is {use!r}")
        output_dtype(self.out_dtype, self.rounding)

    @classmethod
    def vllm(cls, norm_size: int = 128, eps: float = 1e-6, activation: GateActivation = "silu") -> GatedNorm:
        """vLLM's `RMSNormGated.forward_native`: float32 throughout, one rounding at the end (vLLM PR #40710)."""
        return cls(norm_size, eps, activation, rounding=frozenset({"output"}))

    @classmethod
    def qwen3_next(cls, norm_size: int = 128, eps: float = 1e-6) -> GatedNorm:
        """transformers' `Qwen3NextRMSNormGated` with a weight of x's dtype: rounds after the norm and after the weight.

        A float32 weight promotes that product to float32; drop `weight` from the rounding points then.
        Source: transformers 5.23, models/qwen3_next/modeling_qwen3_next.py; Qwen3.5 and Olmo-Hybrid share it.
        """
        return cls(norm_size, eps, rounding=frozenset({"norm", "weight", "output"}))

    @classmethod
    def kimi_linear(cls, norm_size: int = 128, eps: float = 1e-5) -> GatedNorm:
        """transformers' `KimiLinearRMSNormGated`: sigmoid gate, float32 throughout, one rounding at the end.

        Source: transformers 5.23, models/kimi_linear/modeling_kimi_linear.py; Bailing-Hybrid and GLM-5-Next share it.
        """
        return cls(norm_size, eps, "sigmoid", rounding=frozenset({"output"}))

    @classmethod
    def mamba2(cls, norm_size: int, eps: float = 1e-5) -> GatedNorm:
        """transformers' `MambaRMSNormGated` with a weight of x's dtype: gates first, rounds the norm, then the product.

        A float32 weight leaves the result in float32; drop `output` from the rounding points then.
        Source: transformers 5.23, models/mamba2/modeling_mamba2.py; Bamba, Zamba2, Nemotron-H and GraniteMoeHybrid
        share it.
        """
        return cls(norm_size, eps, norm_before_gate=False, rounding=frozenset({"norm", "output"}))


@dataclass(frozen=True, repr=False)
class RMSNorm(_Rounded):
    """An RMS norm over runs of `norm_size` elements of the last dimension, maybe of a sum with a residual::

        s = round_sum(x + residual)      [x alone if there is no residual]
        n = round_norm(s * rsqrt(mean(s*s) + eps))
        y = round_output(n * (weight_offset + w))

    All arithmetic is float32 and `w` the weight, one if there is none. `sum` rounds to the residual's dtype, which is
    also that of the sum for the next layer; `norm` and `output` round to x's.

    Where the op gets a `token_factor`, one number t per token such as a padding mask, the value is
    `(y * t).to(y.dtype)`, multiplied in the dtype that PyTorch promotes y and t to.

    Args:
        norm_size: elements that one mean is taken over: the hidden size of most models.
        eps: added to the mean of squares; 0, or at least `LEAST_EPS` and finite in float32.
        weight_offset: 0, or 1 for models that store the weight as its difference from one.
        rounding: the points at which the value is rounded. Without `sum` the norm goes on with the float32 sum,
            although the next layer gets a rounded one. Without `output` the result is float32.
        out_dtype: what the point `output` rounds to if that is not x's dtype. Needs the point `output`.
    """

    POINTS: ClassVar[tuple[str, ...]] = get_args(NormPoint)

    norm_size: int
    eps: float = 1e-6
    weight_offset: int = 0
    rounding: frozenset[NormPoint] = frozenset({"sum", "output"})
    out_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        elements("norm_size", self.norm_size)
        object.__setattr__(self, "eps", epsilon(self.eps))
        one_of("weight_offset", self.weight_offset, (0, 1))
        object.__setattr__(self, "rounding", rounding_points(self.rounding, self.POINTS))
        output_dtype(self.out_dtype, self.rounding)

    @classmethod
    def native(cls, norm_size: int, eps: float = 1e-6) -> RMSNorm:
        """`torch.nn.functional.rms_norm` of a rounded sum: float32 throughout, one rounding at the end.

        Source: PyTorch's decomposition of `aten._fused_rms_norm` (torch/_decomp/decompositions.py).
        """
        return cls(norm_size, eps)

    @classmethod
    def llama(cls, norm_size: int, eps: float = 1e-6) -> RMSNorm:
        """transformers' `LlamaRMSNorm`: the norm is rounded before the weight.

        Source: transformers 5.23, models/llama/modeling_llama.py; Qwen2, Qwen3, Mistral, DeepSeek-V3 and most others
        share it.
        """
        return cls(norm_size, eps, rounding=frozenset({"sum", "norm", "output"}))

    @classmethod
    def qwen3_next(cls, norm_size: int = 2048, eps: float = 1e-6) -> RMSNorm:
        """transformers' `Qwen3NextRMSNorm`: a weight stored as its difference from one, one rounding at the end.

        Source: transformers 5.23, models/qwen3_next/modeling_qwen3_next.py, after Gemma3's; Qwen3.5 shares it.
        """
        return cls(norm_size, eps, weight_offset=1)

    @classmethod
    def vllm(cls, norm_size: int, eps: float = 1e-6) -> RMSNorm:
        """vLLM's `RMSNorm.forward_native`: norms the float32 sum and rounds before the weight.

        Source: vLLM model_executor/layers/layernorm.py.
        """
        return cls(norm_size, eps, rounding=frozenset({"norm", "output"}))


@dataclass(frozen=True, repr=False)
class ActAndMul(_Rounded):
    """A product with an activation, the form of a gated linear unit::

        y = round_output(x * round_activation(act(gate)))

    All arithmetic is float32; both points round to x's dtype, but the activation rounds to the gate's dtype if x is
    float32, as the scan of a Mamba2 layer leaves it. With silu or gelu it is what an MLP puts between its
    projections (SwiGLU and GeGLU: Shazeer, arXiv:2002.05202), with sigmoid the output gate of an attention layer.

    Args:
        activation: `silu` (gate * sigmoid(gate)), `gelu` by erf, `gelu_tanh` (its approximation), or `sigmoid`.
        rounding: the points at which the value is rounded. Without `output` the result is float32.
        out_dtype: what the point `output` rounds to if that is not x's dtype. Needs the point `output`.
    """

    POINTS: ClassVar[tuple[str, ...]] = get_args(ProductPoint)

    activation: Activation = "silu"
    rounding: frozenset[ProductPoint] = frozenset({"activation", "output"})
    out_dtype: torch.dtype | None = None

    def __post_init__(self) -> None:
        one_of("activation", self.activation, get_args(Activation))
        object.__setattr__(self, "rounding", rounding_points(self.rounding, self.POINTS))
        output_dtype(self.out_dtype, self.rounding)

    @classmethod
    def swiglu(cls) -> ActAndMul:
        """`act_fn(gate_proj(x)) * up_proj(x)` in 16 bits: rounds the activation, then the product.

        Source: transformers 5.23, `LlamaMLP`, `Qwen3NextMLP` and most others; vLLM's `SiluAndMul.forward_native`.
        """
        return cls("silu")

    @classmethod
    def geglu(cls, approximate: bool = True) -> ActAndMul:
        """The same with gelu, by tanh as in Gemma or by erf.

        Source: transformers 5.23, `Gemma3MLP` (`gelu_pytorch_tanh`); vLLM's `GeluAndMul.forward_native`.
        """
        return cls("gelu_tanh" if approximate else "gelu")

    @classmethod
    def sigmoid_gate(cls) -> ActAndMul:
        """`attn_output * torch.sigmoid(gate)` in 16 bits: rounds the sigmoid, then the product.

        Source: transformers 5.23, models/qwen3_next/modeling_qwen3_next.py, `Qwen3NextAttention`; Qwen3.5 shares it.
        """
        return cls("sigmoid")
