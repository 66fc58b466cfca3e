"""Device code of the activations: silu, sigmoid and gelu of float32 values."""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra import libdevice

from fusionlib.kernels import ptx

#: sqrt(1/2), sqrt(2/pi) and the cubic term of the approximation by tanh (Hendrycks and Gimpel, arXiv:1606.08415).
_SQRT_HALF = tl.constexpr(0.7071067811865476)
_SQRT_TWO_OVER_PI = tl.constexpr(0.7978845608028654)
_CUBIC = tl.constexpr(0.044715)


@triton.jit
def activated(gate, ACTIVATION: tl.constexpr, EXACT: tl.constexpr, PTX: tl.constexpr):
    """The activation of float32 values; EXACT is for scales without a floor, and for the interpreter."""
    if ACTIVATION == "gelu":
        value = gate * 0.5 * (1.0 + tl.erf(gate * _SQRT_HALF))
    elif ACTIVATION == "gelu_tanh":
        inner = _SQRT_TWO_OVER_PI * (gate + _CUBIC * (gate * gate * gate))
        value = 0.5 * gate * (1.0 + _tanh(inner, PTX))
    else:
        value = _sigmoid_or_silu(gate, ACTIVATION == "silu", EXACT, PTX)
    return value


@triton.jit
def _tanh(value, PTX: tl.constexpr):
    # PyTorch's own function on NVIDIA: for negative values most digits of 1 + tanh cancel, and another function that is
    # as exact would leave others.
    return libdevice.tanh(value) if PTX else 1.0 - 2.0 / (1.0 + tl.exp(2.0 * value))


@triton.jit
def _sigmoid_or_silu(gate, SILU: tl.constexpr, EXACT: tl.constexpr, PTX: tl.constexpr):
    # An approximate division (2 ulp, results below 2^-126 become zero) is enough where the output is rounded to bf16,
    # or to FP8 with a floor. The interpreter has no device library.
    if PTX and not EXACT:
        value = ptx.sigmoid(gate)
        if SILU:
            value = gate * value
    else:
        numerator = gate if SILU else tl.full(gate.shape, 1.0, tl.float32)
        denominator = 1.0 + tl.exp(-gate)
        value = numerator / denominator if EXACT else libdevice.fast_dividef(numerator, denominator)
    return value
