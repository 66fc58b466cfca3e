"""explain(fn, *args): what FusionPass would do with a function, without generating or running code for it.

Dynamo traces the function, AOTAutograd and Inductor's early passes make the graph that the pass would get, and there
it ends: what stands for a compiled graph returns zeros of the right shapes, so that tracing goes on behind a graph
break, and neither kernels nor side effects of the graph happen.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from fusionlib.rewrite.fusion import DEVICES, FusionPass
from fusionlib.rewrite.report import CompileRecord, Report

#: Called with every graph before and after the pass: for figures and for the command line.
Watcher = Callable[[fx.GraphModule, CompileRecord], None]


def explain(
    fn: Callable[..., Any],
    *args: Any,
    devices: Sequence[str] = DEVICES,
    dynamic: bool | None = None,
    watch: Watcher | None = None,
    **kwargs: Any,
) -> Report:
    """The report that `FusionPass(devices)` would give for `fn(*args, **kwargs)`.

    Args:
        fn: a function or module; it is traced, and Python outside of its graphs runs.
        devices: where the pass would rewrite; by default wherever the tensors are.
        dynamic: as in `torch.compile`.
        watch: called with each graph, rewritten, and its record.

    Returns:
        a Report; its refused sites are ranked, nearest miss first.
    """
    fusion, records = FusionPass(devices), []

    def inner_compile(module: fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., list]:
        stand_in = stand_in_for(module)
        record = fusion.rewrite(module.graph)
        if record.sites:
            records.append(record)
        if watch is not None:
            module.recompile()
            watch(module, record)
        return stand_in

    def backend(module: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        from torch._inductor.compile_fx import compile_fx

        return compile_fx(module, example_inputs, inner_compile=inner_compile)

    with apart_from_caches():
        torch.compile(fn, backend=backend, dynamic=dynamic)(*args, **kwargs)
    return Report(tuple(records))


@contextlib.contextmanager
def apart_from_caches() -> Iterator[None]:
    """Neither reads nor fills the caches of real compiles."""
    import torch._functorch.config as functorch_config
    import torch._inductor.config as inductor_config

    torch._dynamo.reset()
    try:
        with (
            functorch_config.patch(enable_autograd_cache=False),
            inductor_config.patch(fx_graph_cache=False, fx_graph_remote_cache=False),
        ):
            yield
    finally:
        torch._dynamo.reset()


def stand_in_for(module: fx.GraphModule) -> Callable[..., list]:
    """Something that takes a graph's inputs and returns zeros for its outputs."""
    outputs = [
        node.meta.get("val") if isinstance(node, fx.Node) else node for node in module.graph.output_node().args[0]
    ]

    def run(inputs: list) -> list:
        inputs.clear()
        return [_zeros(output) for output in outputs]

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def _zeros(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        sizes = [_number(size) for size in output.shape]
        strides = [_number(stride) for stride in output.stride()]
        return torch.empty_strided(sizes, strides, dtype=output.dtype, device=output.device).zero_()
    return _number(output) if isinstance(output, (torch.SymInt, torch.SymFloat, torch.SymBool)) else output


def _number(size: Any) -> Any:
    """A size as a number: a symbol's value for the example inputs."""
    return size if isinstance(size, (int, float)) else size.node.hint
