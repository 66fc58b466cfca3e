"""Whether the codes of each site are eager's: the site alone, compiled in each way, on the same inputs.

A whole block cannot say that: one code that differs changes all that is computed from it. So each site is compiled by
itself on inputs with the strides that it has in the block, and three pairs are compared:

    fused  / eager   with bf16's roundings kept in the graph: `correctness.CODE_BOUND` is the most that may differ
    opaque / eager   as a model compiles: Inductor keeps fused values in float32, and quantises a slightly different one
    fused  / opaque  as a model compiles: the kernel rounds where the graph does. Before PyTorch 2.13 Inductor takes
                     roundings out of the graph before any pass runs, so that both leave out the same ones

Only the first can be wrong. The other two say how much the roundings change that the compiler leaves out, which has no
bound: several in a row can move a value by more than one step of bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fusionlab.observe.bench.correctness import Agreement, agreement
from fusionlab.observe.step import sites
from fusionlab.observe.step.blocks import Block
from fusionlab.observe.step.decode_sizes import FULL, LINEAR
from fusionlab.observe.step.decoder import Weights
from fusionlab.observe.step.step_variants import STEP_VARIANTS, compiled, eager_roundings
from fusionlib.layers import BlockFP8Linear

Tensors = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class QuantisedSite:
    """One kind of site.

    Args:
        name: in words; fusion: the name of the fusion that takes it; kind: of a block that has it.
        linear: the layer that quantises, in such a block.
        value: (block, *inputs) -> the value, and what else the site returns.
        inputs: (block, tokens) -> random inputs with the block's strides.
    """

    name: str
    fusion: str
    kind: str
    linear: Callable[[Block], BlockFP8Linear]
    value: Callable[..., Tensors]
    inputs: Callable[[Block, int], Tensors]


def _rows(block: Block, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=block.input_norm.weight.device, dtype=torch.bfloat16)


def _heads(block: Block, tokens: int) -> Tensors:
    """The recurrence's output, and z as a slice of the projection."""
    sizes = block.sizes
    values = sizes.values_per_key * sizes.value_dim
    core = _rows(block, tokens, sizes.value_heads, sizes.value_dim)
    return core, _rows(block, tokens, sizes.key_heads, 2 * sizes.key_dim + 2 * values)[..., -values:]


def _gated(block: Block, tokens: int) -> Tensors:
    """The attention's output, and the gate as a slice of the projection."""
    sizes = block.sizes
    projected = _rows(block, tokens, sizes.qkv)[:, : 2 * sizes.heads * sizes.head_dim]
    gate = projected.view(tokens, sizes.heads, 2 * sizes.head_dim)[..., sizes.head_dim :]
    return _rows(block, tokens, sizes.heads, sizes.head_dim), gate


QUANTISED = (
    QuantisedSite(
        "residual + delta, normed",
        "rms_norm",
        LINEAR,
        lambda block: block.attention.in_proj_qkvz,
        lambda block, delta, residual: sites.add_and_norm(block.input_norm, delta, residual),
        lambda block, tokens: (_rows(block, tokens, block.sizes.hidden), _rows(block, tokens, block.sizes.hidden)),
    ),
    QuantisedSite(
        "gated norm of heads",
        "gated_norm",
        LINEAR,
        lambda block: block.attention.out_proj,
        lambda block, core, z: (sites.norm_and_gate(block.attention.norm, core, z),),
        _heads,
    ),
    QuantisedSite(
        "silu and mul",
        "act_and_mul",
        LINEAR,
        lambda block: block.mlp.down,
        lambda block, gate_up: (sites.silu_and_mul(gate_up),),
        lambda block, tokens: (_rows(block, tokens, 2 * block.sizes.intermediate),),
    ),
    QuantisedSite(
        "heads times sigmoid",
        "sigmoid_gate",
        FULL,
        lambda block: block.attention.o_proj,
        lambda block, attended, gate: (sites.gate_heads(attended, gate),),
        _gated,
    ),
)


@dataclass(frozen=True)
class SiteCodes:
    """How a site's codes under `variant` compare with those of `against`; `fused` if the site was fused."""

    site: str
    variant: str
    against: str
    fused: bool
    agreement: Agreement

    def problem(self) -> str | None:
        """Why they are wrong, or None: what is fused must be eager's where the graph keeps its roundings."""
        if (self.variant, self.against) != ("fused", "eager"):
            return None
        found = self.agreement.problem(exact=True) if self.fused else "the site was not fused"
        return f"{self.site}, {self.variant} against {self.against}: {found}" if found else None

    def as_json(self) -> dict[str, Any]:
        """A plain object."""
        named = {"site": self.site, "variant": self.variant, "against": self.against, "fused": self.fused}
        return named | self.agreement.as_json()


def site_codes(weights: Weights, tokens: int, seed: int) -> list[SiteCodes]:
    """The three comparisons of every site at `tokens` tokens."""
    found = []
    for site in QUANTISED:
        block = next(block for block in weights.opaque if block.kind == site.kind)
        torch.manual_seed(seed)
        inputs = site.inputs(block, tokens)
        eager = quantised(site, block)(*inputs)
        with eager_roundings():
            exact, fused = _compiled(site, "fused", block, inputs)
        opaque, _ = _compiled(site, "opaque", block, inputs)
        ours, also_fused = _compiled(site, "fused", block, inputs)
        quant = site.linear(block).quant
        found += [
            SiteCodes(site.name, "fused", "eager", fused, agreement(exact[:2], eager[:2], quant)),
            SiteCodes(site.name, "opaque", "eager", False, agreement(opaque[:2], eager[:2], quant)),
            SiteCodes(site.name, "fused", "opaque", also_fused, agreement(ours[:2], opaque[:2], quant)),
        ]
    return found


def quantised(site: QuantisedSite, block: Block) -> Callable[..., Tensors]:
    """The site as a function of its inputs: codes, scale, and what else it returns."""
    linear, value = site.linear(block), site.value

    def run(*inputs: torch.Tensor) -> Tensors:
        first, *further = value(block, *inputs)
        return *linear.quantise(first), *further

    return run


def _compiled(site: QuantisedSite, name: str, block: Block, inputs: Tensors) -> tuple[Tensors, bool]:
    """The site's results under a variant, and whether it was fused."""
    fusion = STEP_VARIANTS[name].make_pass()
    results = compiled(quantised(site, block), fusion)(*inputs)
    return results, fusion is not None and fusion.report().fused_by == {site.fusion: 1}
