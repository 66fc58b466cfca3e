"""Head counts, head dimensions and quantisations, inferred from a model's layers.

A traced pattern contains concrete sizes, so they must be known before anything is compiled. The layers have them: the
norm's weight is as long as a head, and the projection after it takes all the heads of a token.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from fusionlib.layers import BlockFP8Linear, RMSNormGated
from fusionlib.spec import GatedNorm, GroupQuant

#: Names of the projection after the norm, in fusionlib.layers and in transformers.
PROJECTIONS = ("out_proj", "o_proj")
_EPSILONS = ("variance_epsilon", "eps", "epsilon")


@dataclass(frozen=True)
class HeadShape:
    """The number of heads per token, and the norm applied to each; `norm.norm_size` is the head dimension."""

    heads: int
    norm: GatedNorm

    @property
    def head_dim(self) -> int:
        """Elements per head."""
        return self.norm.norm_size


@dataclass(frozen=True)
class Inferred:
    """What was inferred: distinct head shapes and quantisations in model order, and the layers skipped."""

    shapes: tuple[HeadShape, ...]
    quants: tuple[GroupQuant, ...]
    skipped: tuple[str, ...] = ()


def infer(model: nn.Module) -> Inferred:
    """Infer the head shapes and quantisations of `model` from our layers and modules that look like RMSNormGated."""
    shapes: dict[HeadShape, None] = {}
    quants: dict[GroupQuant, None] = {}
    skipped = []
    for path, module in model.named_modules():
        if isinstance(module, BlockFP8Linear):
            quants[module.quant] = None
        for name, child in module.named_children():
            if not is_gated_norm(child):
                continue
            shape = _head_shape(child, module)
            if isinstance(shape, HeadShape):
                shapes[shape] = None
            else:
                skipped.append(f"{f'{path}.' if path else ''}{name}: {shape}")
    return Inferred(tuple(shapes), tuple(quants), tuple(skipped))


def is_gated_norm(module: nn.Module) -> bool:
    """Whether a module is a gated RMS norm: ours, or named like those of transformers."""
    return isinstance(module, RMSNormGated) or type(module).__name__.endswith("RMSNormGated")


def _head_shape(norm: nn.Module, parent: nn.Module) -> HeadShape | str:
    """The heads that `norm` is applied to, or why they are unknown."""
    weight = getattr(norm, "weight", None)
    if weight is None or weight.ndim != 1:
        return "its weight is no vector of a head's length"
    head_dim = weight.shape[0]
    spec = _norm_spec(norm, head_dim)
    if isinstance(spec, str):
        return spec
    hidden = _projection_inputs(parent)
    if hidden is None:
        return f"no projection ({' or '.join(PROJECTIONS)}) beside it says how many heads a token has"
    if hidden % head_dim != 0:
        return f"the projection's {hidden} inputs are no whole number of heads of {head_dim}"
    return HeadShape(hidden // head_dim, spec)


def _norm_spec(norm: nn.Module, head_dim: int) -> GatedNorm | str:
    if isinstance(norm, RMSNormGated):
        same = norm.norm.norm_size == head_dim
        return norm.norm if same else f"one mean covers {norm.norm.norm_size} of {head_dim} elements"
    if any(hasattr(norm, name) for name in ("group_size", "n_groups")):
        return "it norms groups of a row, gated first (the Mamba2 family); the traced pattern norms heads"
    eps = next((getattr(norm, name) for name in _EPSILONS if hasattr(norm, name)), None)
    if eps is None:
        return f"no epsilon among {', '.join(_EPSILONS)}"
    activation = getattr(norm, "activation", "silu")
    if activation in ("swish", "silu", "sigmoid"):
        return GatedNorm.vllm(head_dim, float(eps), "sigmoid" if activation == "sigmoid" else "silu")
    return f"activation {activation!r} is neither silu nor sigmoid"


def _projection_inputs(parent: nn.Module) -> int | None:
    for name in PROJECTIONS:
        projection = getattr(parent, name, None)
        features = getattr(projection, "in_features", None)
        if isinstance(features, int):
            return features
    return None
