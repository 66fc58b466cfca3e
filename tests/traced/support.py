"""Running a pass on a graph as torch.compile makes it, without generating code: what the pass leaves is interpreted."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx
from torch._inductor.compile_fx import compile_fx

from fusionlib.traced.spellings import Spelling


def run_with(graph_pass: Callable[[fx.Graph], object], fn: Callable, *args, dynamic: Sequence[int] = ()):
    """The outputs of `fn` after `graph_pass` saw its graphs; the first dimension of args in `dynamic` is a symbol."""

    def inner(module: fx.GraphModule, example_inputs: Sequence, **_):
        graph_pass(module.graph)
        module.recompile()

        def run(inputs):
            values = list(inputs)
            inputs.clear()
            return module(*values)

        run._boxed_call = True
        return run

    torch._dynamo.reset()
    for index in dynamic:
        torch._dynamo.mark_dynamic(args[index], 0)
    with torch.no_grad():
        return torch.compile(fn, backend=lambda m, i: compile_fx(m, i, inner_compile=inner))(*args)


def run_spelling(graph_pass: Callable[[fx.Graph], object], spelling: Spelling):
    """(outputs with the pass, outputs without) of a spelling."""
    fn, inputs = spelling.build()
    return run_with(graph_pass, fn, *inputs, dynamic=(0, 1) if spelling.dynamic else ()), fn(*inputs)
