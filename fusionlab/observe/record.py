"""Records traces of the attention-output step: gated norm, quantisation, FP8 GEMM, in four variants.

The variants differ only in the norm and the quantisation; the GEMM after them is the same eager call in each:

    eager        plain PyTorch, one operator at a time
    two_kernel   the norm compiled, the quantisation an opaque op: what a serving engine has
    inductor     both left to Inductor
    fused        `two_kernel` with `FusionPass`, which must fuse it or nothing is recorded

`record_step` records one of them, live or to a file. On a CPU a trace has only operators: no kernel, no launch, no
CUDA graph.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FunctionType
from typing import Any

import torch

from fusionlab.observe.clean import SIZE_LIMIT, clean_trace
from fusionlab.observe.inputs import attention_inputs, seeded
from fusionlab.observe.privacy import own_names
from fusionlab.observe.trace import Trace, read_trace
from fusionlib.layers import AttentionOutput
from fusionlib.spec import GatedNorm

VARIANTS = ("eager", "two_kernel", "inductor", "fused")
MOST_STEPS = 3
WARM_UP = 5
_GPU_FEATURES, _CPU_FEATURES = 2048, 256

_numbers = itertools.count()


class RecordError(RuntimeError):
    """A trace that cannot be recorded here: the message says what is missing and how to fix it."""


@dataclass(frozen=True)
class Recording:
    """What to record.

    Args:
        variant: one of `VARIANTS`.
        tokens: rows of the input; 1 to 256 is a decode step, thousands are a prefill.
        graph: replay it from a CUDA graph.
        steps: number of marked steps in the trace, 1 to 3.
        heads, head_dim: of the attention's value; 32 x 128 in Qwen3-Next.
        out_features: of the projection; None means 2048, or 256 on a CPU, which multiplies in float32.
        seed: of inputs and weights.
        device: `cuda` or `cpu`; None for the GPU if there is one.
    """

    variant: str
    tokens: int
    graph: bool = False
    steps: int = 2
    heads: int = 32
    head_dim: int = 128
    out_features: int | None = None
    seed: int = 0
    device: str | None = None

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.variant}-{self.tokens}{'-graph' if self.graph else ''}.json.gz"

    @property
    def labels(self) -> dict[str, str | int | bool]:
        """Its labels in a manifest."""
        return {"variant": self.variant, "tokens": self.tokens, "graph": self.graph, "steps": self.steps}

    def resolved(self) -> Recording:
        """With the device and the sizes that depend on it filled in.

        Raises:
            RecordError: for values out of range, or a missing device.
        """
        if self.variant not in VARIANTS:
            raise RecordError(f"variant {self.variant!r} is unknown; choose one of {', '.join(VARIANTS)}")
        for name, value, most in (("tokens", self.tokens, 1 << 20), ("steps", self.steps, MOST_STEPS)):
            if type(value) is not int or not 1 <= value <= most:
                raise RecordError(f"{name}={value!r} must be an integer from 1 to {most}")
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
        if device == "cuda" and not torch.cuda.is_available():
            raise RecordError("device='cuda', and no GPU is visible to this process; leave it out, or give 'cpu'")
        if self.graph and device != "cuda":
            raise RecordError("graph=True needs a GPU: a CPU has no CUDA graphs; leave it out")
        features = self.out_features or (_GPU_FEATURES if device == "cuda" else _CPU_FEATURES)
        return replace(self, device=device, out_features=features)


def record_step(variant: str, tokens: int, *, path: str | Path | None = None, **options: Any) -> Trace:
    """Record `variant` of the step at `tokens`, cleaned (`observe.clean`), and return the trace.

    Args:
        variant, tokens, options: the fields of `Recording`.
        path: where the cleaned trace is written, .json.gz of at most 100 KB; if None, nothing is written and the
            trace's `path` is only its name.

    The steps are `Trace.marks`; `structure.steps` splits the trace by them. Earlier steps (compilation, warm-up) are
    not in the trace.

    Raises:
        RecordError: if it cannot be recorded here.
        TraceError: if the cleaned trace is too large or cannot be written.
    """
    recording = Recording(variant, tokens, **options).resolved()
    step = make_step(recording)
    with tempfile.TemporaryDirectory() as folder:
        cleaned = Path(folder, recording.name)
        trace = cleaned_trace(profiled([step] * recording.steps, str(recording.device)), cleaned)
        if path is None:
            return replace(trace, path=Path(recording.name))
        path = Path(path)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(cleaned.read_bytes())
        os.replace(partial, path)
    return replace(trace, path=path)


def make_step(recording: Recording) -> Callable[[], torch.Tensor]:
    """The step as a function without arguments, which returns the output: compiled, warmed up, captured if `graph`."""
    recording = recording.resolved()
    inputs = attention_inputs(
        recording.tokens, recording.heads, recording.head_dim, device=recording.device, seed=recording.seed
    )
    layer = _layer(recording)
    layer.norm.weight.data.copy_(inputs.weight)
    front = _front(layer, recording)

    def step() -> torch.Tensor:
        codes, scale = front(inputs.x, inputs.gate)
        return layer.out_proj.product(codes, scale, inputs.x.dtype)

    with torch.no_grad():
        return captured(step) if recording.graph else _warm(step)


def _layer(recording: Recording) -> AttentionOutput:
    """The layer with seeded weights; the caller's random state is unchanged."""
    with seeded(str(recording.device), recording.seed):
        layer = AttentionOutput(
            recording.heads,
            recording.head_dim,
            recording.out_features,
            GatedNorm.qwen3_next(recording.head_dim),
            native_quant=recording.variant in ("eager", "inductor"),
            device=recording.device,
        )
    return layer.requires_grad_(False)


def _front(layer: AttentionOutput, recording: Recording) -> Callable[..., tuple[torch.Tensor, torch.Tensor]]:
    """Norm and quantisation of `recording.variant`.

    The compiled part ends before the GEMM: results of a compiled function keep their strides, and the GEMM requires
    column-major scales.
    """

    def front(x: torch.Tensor, gate: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return layer.out_proj.quantise(layer.norm(x, gate).flatten(1))

    if recording.variant == "eager":
        return front
    options: dict[str, Any] = {}
    if recording.device == "cpu":
        options["cpp.enable_kernel_profile"] = True  # else the loops generated by Inductor are not in the trace
    if recording.variant == "fused":
        from fusionlib.rewrite import FusionPass

        options["post_grad_custom_pre_pass"] = FusionPass(devices=("cpu", "cuda"), expect=1, strict=True)
    return torch.compile(own_code(front), dynamic=False, options=options)


def own_code(function: FunctionType) -> FunctionType:
    """`function` with a new code object: Dynamo counts recompilations, and remembers sizes, by code object."""
    code = function.__code__.replace(co_name=f"{function.__code__.co_name}_{next(_numbers)}")
    return FunctionType(code, function.__globals__, code.co_name, function.__defaults__, function.__closure__)


def _warm(step: Callable[[], Any]) -> Callable[[], Any]:
    for _ in range(WARM_UP):
        step()
    return step


def captured(step: Callable[[], Any]) -> Callable[[], Any]:
    """`step` as the replay of a CUDA graph; compiled and warmed up on a side stream first, as capture requires."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]):
        torch.cuda.synchronize()  # CUPTI must be active before the graph is made, else its kernels are not told apart
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _warm(step)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = step()

    def replay() -> Any:
        graph.replay()
        return output

    return _warm(replay)


def profiled(steps: Sequence[Callable[[], Any]], device: str) -> torch.profiler.profile:
    """The profile of `steps`, each called once and marked by its number.

    There is no synchronisation between them, as in a decode loop.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # suppresses its start and stop messages on stderr
    gpu = device == "cuda"
    activities = [torch.profiler.ProfilerActivity.CPU]
    activities += [torch.profiler.ProfilerActivity.CUDA] if gpu else []
    with torch.no_grad(), torch.cuda.device(0) if gpu else nullcontext(), warnings.catch_warnings():
        # PyTorch 2.11 gives this warning for every profile, even of one cycle, where nothing is lost.
        warnings.filterwarnings("ignore", message="Warning: Profiler clears events at the end of each cycle")
        if gpu:
            torch.cuda.synchronize()
        with torch.profiler.profile(activities=activities) as profiler:
            for number, step in enumerate(steps):
                with torch.profiler.record_function(f"fusionlib step {number}"):
                    step()
            if gpu:
                torch.cuda.synchronize()
    return profiler


def cleaned_trace(profiler: torch.profiler.profile, path: Path, size_limit: int = SIZE_LIMIT) -> Trace:
    """Write the profile to `path`, cleaned (`observe.clean`) and of at most `size_limit` bytes, and read it back.

    Raises:
        TraceError: if the cleaned trace is too large or cannot be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder, "raw.json")
        profiler.export_chrome_trace(str(raw))
        clean_trace(raw, path, secrets=own_names(), size_limit=size_limit)
    return read_trace(path)
