"""Gradients of the ops: those of the plain PyTorch that says what an op computes, on every device, eager and compiled.

An op without a gradient of its own is not without one: on CPU autograd sees through its implementation, on a GPU it
finds a kernel and stops, and the compiler takes the result for a constant. The same call would train here and leave
`x.grad` at None there, without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def register(name: str, reference: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]]) -> None:
    """Give the op `name` the gradient of `reference`, which takes the op's arguments and returns its results.

    The backward pass runs `reference` again on the op's inputs and differentiates that, so it may be differentiated
    itself; nothing but the inputs is kept for it. Integer results (packed scales) pass on no gradient. A quantisation
    has the gradient that PyTorch gives its spelling: a cast to FP8 hands on what comes back to it, in FP8.
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:
        ctx.save_for_backward(*(value if isinstance(value, torch.Tensor) else None for value in inputs))
        ctx.others = tuple(None if isinstance(value, torch.Tensor) else value for value in inputs)

    def backward(ctx: Any, *gradients: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        needed = ctx.needs_input_grad
        kept = zip(ctx.saved_tensors, ctx.others, needed, strict=True)
        with torch.enable_grad():
            # A view each: where x is also the gate, each place has a gradient of its own.
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
