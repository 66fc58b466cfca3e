"""Runs a function with its graphs edited, to check an edit without generating code.

Up to the edit this is what `torch.compile` does (Dynamo, AOTAutograd, Inductor's early passes); then PyTorch's own
kernels run the graph's calls one by one, so any difference in the result comes from the edit. Roundings that
older versions drop are kept (`roundings`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from fusionlib.explanation import apart_from_caches, boxed, inductor_until
from fusionlib.testing.roundings import roundings_kept


def run_edited(
    edit: Callable[[fx.Graph], object],
    fn: Callable[..., Any],
    *args: Any,
    dynamic: Iterable[int] = (),
    grad: bool = False,
) -> Any:
    """What `fn(*args)` returns if `edit` changes its graphs in place before they run.

    Args:
        edit: called with every graph, as a pass after Inductor's early passes gets it; its return value is ignored.
        fn: a function or module; Dynamo is reset before and after, so it is always traced again.
        dynamic: which of `args` have a symbolic first dimension; Dynamo's mark stays on them.
        grad: trace with gradients enabled; `edit` then gets the graph that saves values for the backward pass.
    """

    def inner_compile(module: fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Any:
        edit(module.graph)
        module.recompile()
        return boxed(module)

    for index in dynamic:
        torch._dynamo.mark_dynamic(args[index], 0)
    with apart_from_caches(), roundings_kept(), torch.set_grad_enabled(grad):
        return torch.compile(fn, backend=inductor_until(inner_compile))(*args)
