"""A block of linear attention and its MLP under tensor parallelism, every quantisation fused on every rank.

    torchrun --nproc-per-node 2 examples/tensor_parallel.py             # gloo on CPUs, NCCL on GPUs
    torchrun --nproc-per-node 2 examples/tensor_parallel.py --tokens 64 --hidden 2048 --heads 32 --measure  # GPUs only

Heads are split between the ranks, so that a head's norm, its gate and its groups of 128 are all on one rank:
projections to heads and to the MLP's halves are split by columns, those back to the hidden size by rows.
`parallelize_module` knows a `BlockFP8Linear` as the `nn.Linear` it is. Each rank compiles its own graph, with the pass
in it, and checks that its results are those of the same block without the pass.

`--measure` then times the block as a step of decoding runs it: each of the two compiles that were compared is captured
into a CUDA graph with its all-reduces, and the graphs are replayed in turns, in the same order on every rank, between
CUDA events. Each rank prints the median and the 10th and 90th percentile of either, in microseconds a call, and what
the pass saves. Both compiles keep eager's roundings; without the pass the quantisation is an op that the compiler does
not look into, as in serving engines. What a single block reads may stay in the GPU's cache, as it does not in a model:
microseconds saved carry over to one, per cent less so.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import fusionlib
from fusionlib.layers import RMSNormGated
from fusionlib.models import quantize_linears

HEAD_DIM = 128
#: Of one block: the two norms of the hidden state, the gated norm, the MLP's product. The first norm is quantised for
#: two projections and the second for two, so six sites are four fused calls.
SITES = {"rms_norm": 4, "gated_norm": 1, "act_and_mul": 1}

#: Of a measurement: samples of each compile, and the timed replays of one.
ROUNDS, REPLAYS = 200, 20


class Block(nn.Module):
    """Norm, linear attention with a gated norm, norm, MLP. What mixes the tokens is a running mean for each head."""

    def __init__(self, hidden: int, heads: int) -> None:
        super().__init__()
        inner = heads * HEAD_DIM
        self.input_norm = nn.RMSNorm(hidden, eps=1e-6)
        self.value_proj = nn.Linear(hidden, inner, bias=False)
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.norm = RMSNormGated(HEAD_DIM, fusionlib.GatedNorm.vllm(HEAD_DIM))
        self.out_proj = nn.Linear(inner, hidden, bias=False)
        self.post_norm = nn.RMSNorm(hidden, eps=1e-6)
        self.mlp_gate = nn.Linear(hidden, 2 * inner, bias=False)
        self.mlp_up = nn.Linear(hidden, 2 * inner, bias=False)
        self.mlp_down = nn.Linear(2 * inner, hidden, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [tokens, hidden] -> [tokens, hidden]."""
        normed = self.input_norm(x)
        value, gate = (proj(normed).unflatten(-1, (-1, HEAD_DIM)) for proj in (self.value_proj, self.gate_proj))
        count = torch.arange(1, len(x) + 1, device=x.device).view(-1, 1, 1)
        mixed = (value.float().cumsum(0) / count).to(x.dtype)
        x = x + self.out_proj(self.norm(mixed, gate).flatten(1))
        normed = self.post_norm(x)
        return x + self.mlp_down(nn.functional.silu(self.mlp_gate(normed)) * self.mlp_up(normed))


def make_block(hidden: int, heads: int, device: str) -> Block:
    """The same block on every rank, in bf16 with all linear layers in block-FP8."""
    torch.manual_seed(0)
    block = Block(hidden, heads).to(device, torch.bfloat16).requires_grad_(False)
    quantize_linears(block, include=("*_proj", "mlp_*"))
    return block


def split(block: Block, mesh: DeviceMesh) -> Block:
    """`block` with the heads and the MLP's elements split between the ranks of `mesh`."""
    columns, rows = ColwiseParallel(), RowwiseParallel()
    plan = {"value_proj": columns, "gate_proj": columns, "out_proj": rows}
    plan |= {"mlp_gate": columns, "mlp_up": columns, "mlp_down": rows}
    parallelize_module(block, mesh, plan)
    return block


def compiled(block: nn.Module, fusion: fusionlib.FusionPass | None = None) -> nn.Module:
    """`block` compiled, with eager's roundings so that results can be compared."""
    options = {"emulate_precision_casts": True}
    options |= {} if fusion is None else {"post_grad_custom_pre_pass": fusion}
    torch._dynamo.reset()  # or the second compile would find the first one's code
    return torch.compile(block, options=options, fullgraph=True)


@dataclass
class Captured:
    """One call of a compiled block as a CUDA graph, with the tensor that every replay writes."""

    graph: torch.cuda.CUDAGraph
    output: torch.Tensor


def capture(block: nn.Module, x: torch.Tensor, stream: torch.cuda.Stream) -> Captured:
    """Capture one call of `block`, which is compiled already, with its all-reduces."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):  # what belongs to a stream is allocated now: cuBLAS's workspace, NCCL's buffers
            block(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    gc.disable()  # to free another graph or an event would end the capture
    try:
        # NCCL's watchdog asks for events from a thread of its own, which a capture of the default mode would forbid.
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            output = block(x)
    finally:
        gc.enable()
    return Captured(graph, output)


def replay_times(graphs: Mapping[str, torch.cuda.CUDAGraph], stream: torch.cuda.Stream) -> dict[str, list[float]]:
    """`ROUNDS` samples of each graph on this rank: microseconds a replay, averaged over `REPLAYS`."""
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    names, order = list(graphs), random.Random(0)  # of the same seed on all ranks: a replay waits for the others'
    with torch.cuda.stream(stream):
        for _ in range(ROUNDS):
            order.shuffle(names)
            for name in names:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                graphs[name].replay()  # not timed: here the ranks meet, and the host gets ahead of the GPU
                start.record()
                for _ in range(REPLAYS):
                    graphs[name].replay()
                end.record()
                end.synchronize()
                samples[name].append(start.elapsed_time(end) * 1e3 / REPLAYS)
    return samples


def measured(variants: Mapping[str, Captured], results: Mapping[str, torch.Tensor], stream: torch.cuda.Stream) -> str:
    """The times of `variants`, of which `results` says what each computes, and what the second saves, in lines."""
    times = replay_times({name: each.graph for name, each in variants.items()}, stream)
    lines, medians = [f"  one call on {torch.cuda.get_device_name()}, microseconds, median (10 % to 90 %):"], []
    for name, each in variants.items():
        differ = (each.output != results[name]).float().mean().item()
        assert differ < 0.01, f"the graph {name} computes something else: {differ:.1e} of its elements"
        low, *_, high = statistics.quantiles(times[name], n=10)
        medians.append(statistics.median(times[name]))
        lines.append(f"    {name}: {medians[-1]:.2f} ({low:.2f} to {high:.2f})")
    without, fused = medians
    return "\n".join([*lines, f"    the pass saves {without - fused:.2f}, {1 - fused / without:.1%}"])


def run(tokens: int, hidden: int, heads: int, measure: bool = False) -> None:
    """Compare the split block with and without the pass on this rank, and with the whole block on one.

    With `measure`, on GPUs, also time both.
    """
    rank, ranks = dist.get_rank(), dist.get_world_size()
    device = f"cuda:{torch.cuda.current_device()}" if dist.get_backend() == "nccl" else "cpu"
    x = torch.randn(tokens, hidden, generator=torch.Generator().manual_seed(1)).to(device, torch.bfloat16)
    block = split(make_block(hidden, heads, device), init_device_mesh(device.split(":")[0], (ranks,)))
    fusion = fusionlib.FusionPass(devices=("cpu", "cuda"), expect=SITES, strict=True)
    stream = torch.cuda.Stream() if measure else None
    results: dict[str, torch.Tensor] = {}
    variants: dict[str, Captured] = {}
    with torch.no_grad():
        for name, each in {"without the pass": None, "with the pass": fusion}.items():
            call = compiled(block, each)
            results[name] = call(x)
            if stream is not None:  # before the next compile makes Dynamo forget this one
                variants[name] = capture(call, x, stream)
        whole = make_block(hidden, heads, device)(x)
    fusion.check()
    unfused, fused = results.values()
    differ = (fused != unfused).float().mean().item()
    apart = ((fused.float() - whole.float()).norm() / whole.float().norm()).item()
    times = measured(variants, results, stream) if stream is not None else ""
    for turn in range(ranks):
        dist.barrier()
        if turn == rank:
            print(f"rank {rank} of {ranks}, {heads // ranks} of {heads} heads: {fusion.report().summary}", flush=True)
            print(f"  elements that differ from the compile without the pass: {differ:.1e}", flush=True)
            print(f"  distance from the whole block on one rank, relative: {apart:.1e}", flush=True)
            if times:
                print(times, flush=True)
    for each in variants.values():
        each.graph.reset()  # a communicator that a graph still refers to is never destroyed
    # On a CPU nothing is summed in another order. On a GPU a few codes may move by a step, and a sum with them.
    assert differ == 0 if device == "cpu" else differ < 0.01, differ
    # The halves of a sum are rounded to bf16 before they are added, so that some codes behind it differ.
    assert apart < 0.02, apart


def main() -> None:
    """Read the sizes, join the other ranks, and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--measure", action="store_true", help="time the block with and without the pass, on GPUs")
    asked = parser.parse_args()
    ranks = int(os.environ.get("WORLD_SIZE", "0"))
    if not ranks:
        parser.error("start it by `torchrun --nproc-per-node 2 examples/tensor_parallel.py`")
    if asked.heads % ranks:
        parser.error(f"--heads {asked.heads} cannot be split between {ranks} ranks; choose a multiple of {ranks}")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    gpus = found >= ranks
    if asked.measure and not gpus:
        parser.error(
            f"--measure needs a GPU for each of the {ranks} ranks, and {found} are found: CPUs have no CUDA graphs"
        )
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl", device_id=torch.device("cuda", torch.cuda.current_device()))
    else:
        dist.init_process_group("gloo")
    run(asked.tokens, asked.hidden, asked.heads, asked.measure)
    dist.destroy_process_group()  # not after an error: it could wait for ranks that wait for this one


if __name__ == "__main__":
    main()
