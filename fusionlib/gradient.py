"""Gradients of the ops: those of their PyTorch reference, on every device, eager and compiled.

Without a registered gradient, the behaviour depends on the device: on CPU autograd differentiates the implementation,
on a GPU it stops at the kernel, and the compiler treats the result as a constant. The same call would train on one and
silently leave `x.grad` at None on the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def register(name: str, reference: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]) -> None:
    """Give the op `name` the gradient of `reference`, which takes the op's arguments and returns its results.

    The backward pass runs `reference` again on the op's inputs and differentiates that, so double backward works; only
    the inputs are saved. Integer results (packed scales) propagate no gradient. A quantisation has the gradient of its
    PyTorch code: a cast to FP8 passes on the gradient it receives, in FP8.
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
        ctx.save_for_backward(*(value if isinstance(value, torch.Tensor) else None for value in inputs))
        ctx.others = tuple(None if isinstance(value, torch.Tensor) else value for value in inputs)

    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        needed = ctx.needs_input_grad
        kept = zip(ctx.saved_tensors, ctx.others, needed, strict=True)
        with torch.enable_grad():
            # A view of each: if x is also the gate, each argument has its own gradient.
            inputs = [(tensor.view_as(tensor) if need else tensor) if other is None else other
                      for tensor, other, need in kept]  # fmt: skip
            results = reference(*inputs)
        results = results if isinstance(results, tuple) else (results,)
        pairs = [(r, g) for r, g in zip(results, gradients, strict=True) if r.requires_grad and g is not None]
        found = torch.autograd.grad(
            [result for result, _ in pairs],
            [value for value, need in zip(inputs, needed, strict=True) if need],
            [gradient for _, gradient in pairs],
            create_graph=torch.is_grad_enabled(),
            allow_unused=True,
            materialize_grads=True,
        )
        remaining = iter(found)
        return tuple(next(remaining) if need else None for need in needed)

    torch.library.register_autograd(name, backward, setup_context=keep)
