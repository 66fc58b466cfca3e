"""TracedPass: the patterns for one model as a pass for `torch.compile(options=...)`."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import fx, nn
from torch._inductor.custom_graph_pass import CustomGraphPass
from torch._inductor.pattern_matcher import PatternMatcherPass

from fusionlib.contract import device_problem
from fusionlib.devices import KERNEL_DEVICES
from fusionlib.pattern.infer import HeadShape, infer
from fusionlib.pattern.pattern import TracedPattern, fold_consecutive_reshapes, group_problem, view_to_reshape
from fusionlib.rewrite.cache_key import combined, source_hash
from fusionlib.spec import GroupQuant


def unavailable(devices: Iterable[str], dtype: torch.dtype) -> str | None:
    """Why the fused op cannot run on any of `devices` with codes of `dtype`, or None."""
    reasons = []
    for device in devices:
        if device == "cpu":
            return None
        reason = device_problem(torch.device(device), dtype) if device == "cuda" else "fusionlib has no op for it"
        if reason is None:
            return None
        reasons.append(f"{device}: {reason}")
    return "; ".join(reasons) or "no device given"


class TracedPass(CustomGraphPass):
    """Replaces code written exactly like one of its patterns.

        traced = TracedPass.of_model(model)
        model = torch.compile(model, options={"post_grad_custom_pre_pass": traced})
        model(inputs)
        traced.fired  # how many sites; it cannot tell which were missed, or why

    Args:
        shapes: the head shapes to trace patterns for.
        quants: the quantisations to trace patterns for.
        devices: device types to replace on; GPUs by default, as for FusionPass.
        dtype: of the activations and the weight that patterns are traced with.

    Attributes:
        registered: the patterns that are searched for.
        refused: a sentence for each pattern that could not be registered.
        fired: how many sites this object replaced; a warm compile cache does not count.
    """

    def __init__(
        self,
        shapes: Iterable[HeadShape],
        quants: Iterable[GroupQuant] = (GroupQuant.vllm(),),
        *,
        devices: Iterable[str] = KERNEL_DEVICES,
        dtype: torch.dtype = torch.bfloat16,
    ) -> None:
        self.devices, self.dtype = tuple(devices), dtype
        self.registered: list[TracedPattern] = []
        self.refused: list[str] = []
        self.fired = 0
        self._patterns = PatternMatcherPass(pass_name="fusionlib_traced")
        for shape, quant in itertools.product(shapes, quants):
            self._register(shape, quant)

    @classmethod
    def of_model(
        cls,
        model: nn.Module,
        *,
        devices: Iterable[str] = KERNEL_DEVICES,
        dtype: torch.dtype = torch.bfloat16,
    ) -> TracedPass:
        """The patterns for the layers of `model`; without an FP8 layer, with `GroupQuant.vllm()`."""
        inferred = infer(model)
        made = cls(inferred.shapes, inferred.quants or (GroupQuant.vllm(),), devices=devices, dtype=dtype)
        made.refused[:0] = inferred.skipped
        return made

    def _register(self, shape: HeadShape, quant: GroupQuant) -> None:
        reason = group_problem(shape.head_dim, quant.group_size) or unavailable(self.devices, quant.dtype)
        if reason is not None:
            self.refused.append(f"{shape.heads} heads of {shape.head_dim}: {reason}")
            return
        for custom_norm, custom_quant in itertools.product((False, True), repeat=2):
            pattern = TracedPattern(shape.norm, shape.heads, quant, custom_norm, custom_quant, self.devices, self.dtype)
            pattern.register(self._patterns)
            self.registered.append(pattern)

    def __call__(self, graph: fx.Graph) -> None:
        """Replace every match of the patterns in `graph`, in place."""
        if not self.registered:
            return
        view_to_reshape(graph)
        fold_consecutive_reshapes(graph)
        self.fired += self._patterns.apply(graph)
        graph.lint()

    def uuid(self) -> str:
        """Inductor's cache key: the sources that decide the result, and every pattern's parameters."""
        own = hashlib.sha256()
        for path in sorted(Path(__file__).parent.glob("*.py")):
            own.update(path.read_bytes())
        return combined((source_hash(), own.hexdigest(), *map(repr, self.registered)))
