"""explain(fn, *args): what FusionPass would do with a function, without generating code for it.

Dynamo traces the function, AOTAutograd and Inductor turn it into what the pass would get, subgraphs included, and it
stops there. In place of a compiled graph, the traced graph runs, call by call with PyTorch's own kernels: code after a
graph break gets the values it would get, and what the function writes is written.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from fusionlib.devices import KERNEL_DEVICES
from fusionlib.rewrite.fusion_pass import FusionPass
from fusionlib.rewrite.report import CompileRecord, Report

log = logging.getLogger(__name__)

#: Called with every graph before and after the pass: for figures and the command line.
Watcher = Callable[[fx.GraphModule, CompileRecord], None]


def explain(
    fn: Callable[..., Any],
    *args: Any,
    devices: Iterable[str] = KERNEL_DEVICES,
    dynamic: bool | None = None,
    watch: Watcher | None = None,
    **kwargs: Any,
) -> Report:
    """The report that `FusionPass(devices)` would give for `fn(*args, **kwargs)`.

    The function runs once, as if it were called: its asserts see real values, and a cache that it writes is
    written. If a graph holds an op that has no kernel for its device, the rest cannot be seen; a warning says so.

    Args:
        fn: a function or module.
        devices: where the pass would rewrite; GPUs only by default, as for FusionPass. Elsewhere a site is refused as
            `device`, so `devices="cpu"` asks about a model on a CPU.
        dynamic: as in `torch.compile`.
        watch: called with each graph, rewritten, and its record.

    Returns:
        a Report; its refused sites are ranked, nearest miss first.
    """
    fusion, records, graphs = FusionPass(devices), [], []

    def look(graph: fx.Graph) -> None:
        record = fusion.rewrite(graph)
        if record.sites:
            records.append(record)
        if watch is not None and (module := graph.owning_module) is not None:
            module.recompile()
            watch(module, record)

    def inner_compile(module: fx.GraphModule, example_inputs: Sequence[Any], **how: Any) -> Any:
        graphs.append(stand_in := stand_in_for(module))
        to_the_pass(module, example_inputs, look, is_inference=bool(how.get("is_inference")))
        return stand_in

    try:
        with apart_from_caches():
            torch.compile(fn, backend=inductor_until(inner_compile), dynamic=dynamic)(*args, **kwargs)
    except NoKernel as stopped:
        log.warning("fusionlib.explain saw %d graphs and stopped there: %s", len(graphs), stopped)
    return Report(tuple(records))


class NoKernel(NotImplementedError):
    """A traced graph cannot run, since an op has no kernel for its device; what comes after it is not seen."""


class _PassRan(Exception):
    """Ends Inductor's passes over one graph after ours, so that the graph stays as ours left it."""


def to_the_pass(
    module: fx.GraphModule, example_inputs: Sequence[Any], graph_pass: Callable[[fx.Graph], Any], *, is_inference: bool
) -> None:
    """Run `graph_pass` on every graph that Inductor runs `post_grad_custom_pre_pass` on, in its order and state.

    These are the bodies of conditions, loops, maps, regions and score functions, each before the graph that calls it,
    and each first cleaned and reordered as Inductor does.
    """
    import torch._inductor.config as inductor_config
    from torch._dynamo.utils import count_calls
    from torch._inductor.compile_fx import _get_subgraph_names, fake_tensor_prop, post_grad_passes, view_to_reshape
    from torch._inductor.virtualized import V

    def run_and_stop(graph: fx.Graph) -> None:
        graph_pass(graph)
        raise _PassRan

    def visit(part: fx.GraphModule) -> None:
        for name in _get_subgraph_names(part):
            visit(getattr(part, name))
        with contextlib.suppress(_PassRan):
            post_grad_passes(part, is_inference)

    if not count_calls(module.graph) or not inductor_config.use_post_grad_passes:
        return
    view_to_reshape(module)
    with torch.no_grad():
        fake_mode = fake_tensor_prop(module, example_inputs)
    with inductor_config.patch(post_grad_custom_pre_pass=run_and_stop), V.set_fake_mode(fake_mode):
        visit(module)


def inductor_until(inner_compile: Callable[..., Any]) -> Callable[[fx.GraphModule, Sequence[Any]], Any]:
    """A backend that is Inductor up to where it would compile a graph: `inner_compile` gets the graph instead."""

    def backend(module: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        from torch._inductor.compile_fx import compile_fx

        return compile_fx(module, example_inputs, inner_compile=inner_compile)

    return backend


@contextlib.contextmanager
def apart_from_caches() -> Iterator[None]:
    """Neither read nor fill the caches of real compiles."""
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


def stand_in_for(module: fx.GraphModule) -> Callable[..., Any]:
    """Something that takes a graph's inputs and returns its outputs, whatever is done to `module` afterwards."""
    twin = _twin(module)

    def run(*values: Any) -> Any:
        try:
            return twin(*values)
        except NotImplementedError as error:
            raise NoKernel(str(error)) from error

    return boxed(run)


def boxed(call: Callable[..., Any]) -> Callable[[list[Any]], Any]:
    """`call` as Inductor calls a compiled graph: with a list of its inputs, which it empties."""

    def run(inputs: list[Any]) -> Any:
        values = list(inputs)
        inputs.clear()
        return call(*values)

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def _twin(module: fx.GraphModule) -> fx.GraphModule:
    """A module with the same tensors and its own graphs, including those of its submodules."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    twin = fx.GraphModule(module, graph)
    for name, child in twin.named_children():
        if isinstance(child, fx.GraphModule):
            setattr(twin, name, _twin(child))
    return twin
