"""The traced pattern and its replacement, as a pair of functions, and how both are traced and registered.

`register_replacement` turns a function into a graph and searches for exactly that graph. Pattern and searched graph are
therefore normalised first: views become reshapes, and a chain of reshapes becomes one. Any other difference is a miss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import fx
from torch._inductor import pattern_matcher
from torch._inductor.pattern_matcher import Match, PatternMatcherPass

from fusionlib.devices import KERNEL_DEVICES
from fusionlib.match.sizes import Size, same_shape
from fusionlib.op import rms_norm_gated_group_quant, unsupported
from fusionlib.pattern.matchers import MatcherGroupQuant, MatcherRMSNormGated
from fusionlib.spec import GatedNorm, GroupQuant

aten = torch.ops.aten
_VIEWS = (aten.view.default, aten._unsafe_view.default)


def view_to_reshape(graph: fx.Graph) -> int:
    """Turn every view of `graph` into a reshape, in place; returns how many there were.

    The same code becomes a view or a reshape depending on strides; a reshape is correct for both.
    """
    views = [node for node in graph.nodes if node.op == "call_function" and node.target in _VIEWS]
    for node in views:
        node.target = aten.reshape.default
    return len(views)


def fold_consecutive_reshapes(graph: fx.Graph) -> int:
    """Let every reshape of a reshape read the first one's input, in place; returns how many were changed.

    Only the last shape of a chain counts. A reshape without users left is erased; one with other users stays.
    """
    folded = 0
    for node in list(graph.nodes):
        if not _is_reshape(node) or not _is_reshape(inner := node.args[0]):
            continue
        node.replace_input_with(inner, inner.args[0])
        folded += 1
        if not inner.users:
            graph.erase_node(inner)
    return folded


def _is_reshape(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is aten.reshape.default


def trace_fn(fn: Callable[..., Any], args: Sequence[Any], **kwargs: Any) -> fx.GraphModule:
    """Trace a pattern or a replacement into the normal form that `TracedPass` also gives the searched graph.

    Keyword arguments are passed through: torch 2.13 passes `get_decomp_fn`, torch 2.11 passes nothing. Writes into
    fresh tensors are functionalised first, as AOTAutograd has done to the searched graph.
    """
    module = pattern_matcher.fwd_only(torch.func.functionalize(fn, remove="mutations"), args, **kwargs)
    view_to_reshape(module.graph)
    fold_consecutive_reshapes(module.graph)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def group_problem(head_dim: int, group_size: int) -> str | None:
    """Why heads of `head_dim` cannot be quantised in groups of `group_size`, or None."""
    if head_dim % group_size != 0:
        return f"head_dim={head_dim} is no whole number of groups of {group_size}"
    return None


def guard_problem(shape: Sequence[Size], heads: int, head_dim: int, group_size: int) -> str | None:
    """Why a pattern traced for `heads` of `head_dim` must not be applied to an x of `shape`, or None.

    The search does not compare shapes, only the number of dimensions. Without this check, a pattern for heads of 128
    would match heads of 64, and one for 4 heads would match 8, where the replacement would cut the rows in two.
    """
    if len(shape) not in (2, 3):
        return f"x has shape {list(shape)}; the pattern was traced for [tokens, heads, head_dim]"
    found = list(shape)[1:]
    # A symbolic size is refused rather than compared: comparing would add a guard to the compiled graph.
    if not all(isinstance(size, int) for size in found) or found != [heads, head_dim][-len(found) :]:
        return f"x has shape {list(shape)}; the pattern was traced for {heads} heads of {head_dim}"
    return group_problem(head_dim, group_size)


@dataclass(frozen=True)
class TracedPattern:
    """RMSNormGated -> reshape to one row per token -> group quantisation, in one spelling.

    Args:
        norm, heads: the norm, and the number of heads per token; `norm.norm_size` is the head dimension.
        quant: the quantisation.
        custom_norm, custom_quant: search for the opaque op instead of plain PyTorch.
        devices: device types to replace on.
        dtype: of the example inputs.
    """

    norm: GatedNorm
    heads: int
    quant: GroupQuant
    custom_norm: bool = False
    custom_quant: bool = False
    devices: tuple[str, ...] = KERNEL_DEVICES
    dtype: torch.dtype = torch.bfloat16

    @property
    def hidden(self) -> int:
        """Elements per row."""
        return self.heads * self.norm.norm_size

    @property
    def name(self) -> str:
        """A description of what is searched for."""
        norm, quant = ("opaque" if custom else "native" for custom in (self.custom_norm, self.custom_quant))
        return f"{norm} norm, {quant} quant, {self.heads}x{self.norm.norm_size}, group {self.quant.group_size}"

    @cached_property
    def _norm(self) -> MatcherRMSNormGated:
        return MatcherRMSNormGated(self.norm, self.heads, self.custom_norm)

    @cached_property
    def _quant(self) -> MatcherGroupQuant:
        return MatcherGroupQuant(self.quant, self.hidden, self.custom_quant)

    def search(self, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What is searched for."""
        normed = self._norm(x, gate, weight)
        # The search compares sizes literally, so this matches what a model's `flatten(1)` produces.
        rows = normed.flatten(1) if normed.ndim > 2 else normed.reshape(normed.shape[0] // self.heads, self.hidden)
        return self._quant(rows)

    def replacement(self, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What takes its place."""
        heads = (-1, self.heads, self.norm.norm_size)
        return rms_norm_gated_group_quant(
            x.reshape(heads), gate.reshape(heads), weight, norm=self.norm, quant=self.quant
        )

    def extra_check(self, match: Match) -> bool:
        """Whether a graph that looks like the pattern may be replaced."""
        x, gate, weight = (match.kwargs[name].meta["val"] for name in ("x", "gate", "weight"))
        if x.device.type not in self.devices or not same_shape(x.shape, gate.shape):
            return False
        if guard_problem(x.shape, self.heads, self.norm.norm_size, self.quant.group_size) is not None:
            return False
        heads = (-1, self.heads, self.norm.norm_size)
        return unsupported(x.reshape(heads), gate.reshape(heads), weight, self.norm, self.quant) is None

    def register(self, patterns: PatternMatcherPass) -> None:
        """Add this pattern to `patterns`, and to nothing else."""

        # Plain functions: not every supported torch takes bound methods here.
        def search(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.search(x, gate, weight)

        def replacement(x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.replacement(x, gate, weight)

        pattern_matcher.register_replacement(
            search,
            replacement,
            self._norm.inputs(self.dtype),
            trace_fn,
            patterns,
            extra_check=self.extra_check,
            skip_duplicates=True,
        )
