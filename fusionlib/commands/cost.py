"""`fusionlib cost`: how long the pass takes, on synthetic graphs of many layers.

A layer is what a Gated DeltaNet model has around the fusion: projection, gated norm, FP8 quantisation, product,
residual, feed-forward. It is traced once with fake tensors and chained, so nothing is computed.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import fx

LIMIT = 1.0  # CPU seconds per 10,000 nodes
TOKENS, HEADS, HEAD_DIM = 16, 4, 128
HIDDEN = HEADS * HEAD_DIM


@dataclass(frozen=True)
class Cost:
    """The pass's cost on one graph: `seconds` of CPU time, the median of several runs.

    CPU time, because the pass is a single Python thread and wall time would include other load on the machine.
    """

    layers: int
    nodes: int
    fused: int
    seconds: float

    @property
    def per_ten_thousand(self) -> float:
        """Seconds per 10,000 nodes."""
        return self.seconds * 10_000 / self.nodes


def register(subparsers: Any) -> None:
    """Add the `cost` command to the parser."""
    parser = subparsers.add_parser("cost", help="measure how long the pass takes on synthetic graphs of many layers")
    parser.add_argument("--layers", type=_positive, nargs="+", default=[12, 48, 192], help="default: 12 48 192")
    parser.add_argument("--runs", type=_positive, default=5, help="runs per graph; the median counts; default 5")
    parser.set_defaults(run=_run)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _run(args: argparse.Namespace) -> int:
    """Print a line for each graph; 0 if all are within the limit, 1 otherwise."""
    costs = []
    print(f"{'layers':>8}{'nodes':>9}{'fused':>8}{'CPU s':>11}{'CPU s per 10,000':>22}")
    for layers in args.layers:
        costs.append(measure(layers, args.runs))
        cost = costs[-1]
        numbers = f"{cost.layers:>8}{cost.nodes:>9}{cost.fused:>8}{cost.seconds:>11.4f}{cost.per_ten_thousand:>22.3f}"
        print(numbers, flush=True)
    kept = all(cost.per_ten_thousand <= LIMIT for cost in costs)
    print(f"limit: {LIMIT:g} CPU s per 10,000 nodes: {'kept' if kept else 'exceeded'}")
    return 0 if kept else 1


def measure(layers: int, runs: int = 5) -> Cost:
    """Rewrite a fresh graph of `layers` layers `runs` times."""
    import gc
    import statistics

    from fusionlib.rewrite import FusionPass

    fusion, layer, seconds = FusionPass("cpu"), traced_layer(), []
    for _ in range(runs):
        graph = layered_graph(layers, layer)
        gc.collect()  # of what is not the pass's: one collection of all of torch takes as long as 2,000 nodes
        begin = time.process_time()
        record = fusion.rewrite(graph)
        seconds.append(time.process_time() - begin)
    return Cost(layers, record.nodes, sum(site.fused for site in record.sites), statistics.median(seconds))


def _layer(
    hidden: torch.Tensor, w_in: torch.Tensor, weight: torch.Tensor, w_out: torch.Tensor, w_up: torch.Tensor
) -> torch.Tensor:
    """[tokens, hidden] -> [tokens, hidden]."""
    import torch.nn.functional as F

    from fusionlib import reference
    from fusionlib.spec import GatedNorm, GroupQuant

    projected = F.rms_norm(hidden, (HIDDEN,)) @ w_in
    x, gate = (part.unflatten(1, (HEADS, HEAD_DIM)) for part in projected.chunk(2, 1))
    normed = reference.rms_norm_gated(x, gate, weight, GatedNorm.qwen3_next(HEAD_DIM))
    codes, scale = reference.group_quant(normed, GroupQuant.vllm(HEAD_DIM))
    hidden = hidden + (reference.dequantise(codes, scale, GroupQuant.vllm(HEAD_DIM)) @ w_out).to(hidden.dtype)
    up, act = (F.rms_norm(hidden, (HIDDEN,)) @ w_up).chunk(2, 1)
    return hidden + up * F.silu(act)


def traced_layer() -> fx.Graph:
    """One layer as Inductor would get it: decomposed, with fake values."""
    import torch
    from torch._inductor.decomposition import select_decomp_table
    from torch.fx.experimental.proxy_tensor import make_fx

    shapes = [(TOKENS, HIDDEN), (HIDDEN, 2 * HIDDEN), (HEAD_DIM,), (HIDDEN, HIDDEN), (HIDDEN, 2 * HIDDEN)]
    tensors = [torch.empty(shape, dtype=torch.bfloat16) for shape in shapes]
    tensors[3] = tensors[3].float()
    graph = make_fx(_layer, decomposition_table=select_decomp_table(), tracing_mode="fake")(*tensors).graph
    graph.eliminate_dead_code()
    return graph


def layered_graph(layers: int, layer: fx.Graph) -> fx.Graph:
    """`layers` copies of a traced layer in sequence, all with the same weights."""
    from torch import fx

    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    hidden: fx.Node | None = None
    first = next(node for node in layer.nodes if node.op == "placeholder")
    for _ in range(layers):
        copies = {node: known[node] for node in known} | ({first: hidden} if hidden is not None else {})
        result = graph.graph_copy(layer, copies)
        hidden = result if isinstance(result, fx.Node) else None
        for source, copy in copies.items():
            copy.meta.update(source.meta)
        known = {node: copies[node] for node in layer.nodes if node.op == "placeholder" and node is not first}
    graph.output((hidden,))
    return graph
