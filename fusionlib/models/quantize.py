"""quantize_linears(model): the linear layers of a model as block-FP8, in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from fusionlib.block_linear import BlockFP8Linear
from fusionlib.block_mm import BLOCK
from fusionlib.models.quantize_report import Left, QuantizeReport, Replaced
from fusionlib.models.selection import KEPT, as_patterns, check_patterns, first_match, is_asked_for
from fusionlib.spec import GroupQuant

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
_FLOATS = (torch.bfloat16, torch.float16, torch.float32)


def quantize_linears(
    model: nn.Module,
    include: str | Iterable[str] = "*",
    exclude: str | Iterable[str] = (),
    quant: GroupQuant | None = None,
    *,
    native_quant: bool = False,
) -> QuantizeReport:
    """Replace linear layers of `model` by `fusionlib.layers.BlockFP8Linear`, in place.

    An `nn.Linear` is quantised by blocks of 128x128. The `FP8Linear` of a block-FP8 checkpoint in transformers keeps
    its codes and scales. Left as they are: layers of the names `KEPT` (routers, gates of experts, `lm_head`, ...) and
    those with fewer than 128 inputs or outputs, unless `include` has their own name; subclasses of `nn.Linear`, layers
    with hooks, and weights that are no linear layers, such as experts in one tensor.

    Args:
        model: its weights must be loaded. While this runs, both forms of all replaced weights are in memory.
        include, exclude: patterns of names as in `fnmatch`, one or several. A pattern is for the whole name or its end:
            `out_proj`, `mlp.*_proj`, `model.layers.3.*`. `exclude` wins.
        quant: how activations are quantised; the default, and which have an FP8 product, are `BlockFP8Linear`'s.
        native_quant: quantise them in plain PyTorch instead of by an opaque op.

    A model that is to be saved is saved by its `state_dict`: transformers' `save_pretrained` would write no
    `quantization_config`, and read the codes as numbers.

    Returns:
        the layers that were replaced, with what was padded, and those that were left, with the reason.

    Raises:
        ValueError: if a pattern matches nothing (the message has the nearest names), no layer is left to replace, or a
            weight is not loaded. The model is as before then.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r} must be an nn.Module")
    if quant is not None and not isinstance(quant, GroupQuant):
        raise TypeError(f"quant={quant!r} must be a fusionlib.GroupQuant, such as GroupQuant.vllm({BLOCK})")
    if isinstance(model, nn.Linear):
        raise ValueError("model is a linear layer itself and cannot be replaced in place: BlockFP8Linear.from_linear")
    wanted, unwanted = as_patterns(include, "include"), as_patterns(exclude, "exclude")
    linears = _linears(model)
    read = _read_directly(model)
    every = [name for names in linears.values() for name in names]
    check_patterns([pattern for pattern in wanted if pattern != "*"], every, "include")
    check_patterns(unwanted, every, "exclude")
    reasons = {
        layer: read.get(layer) or _reason_to_leave(layer, names, wanted, unwanted) for layer, names in linears.items()
    }
    chosen = {layer: names for layer, names in linears.items() if reasons[layer] is None}
    if not chosen:
        found = "; ".join(dict.fromkeys(filter(None, reasons.values()))) or "it has none"
        raise ValueError(f"no linear layer of the model is to be replaced: {found}")
    # All are made before the first is put in: an error leaves the model as it was.
    made = {layer: _replacement(layer, names[0], quant, native_quant) for layer, names in chosen.items()}
    for layer, names in chosen.items():
        for name in names:
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, made[layer])
    left = [Left(names[0], reason) for layer, names in linears.items() if (reason := reasons[layer]) is not None]
    return QuantizeReport(
        tuple(_replaced(layer, names[0]) for layer, names in chosen.items()),
        (*left, *_other_weights(model)),
        sum(_bytes(layer) for layer in chosen),
        sum(_bytes(layer) for layer in made.values()),
    )


def _linears(model: nn.Module) -> dict[nn.Linear, list[str]]:
    """Every linear layer with all of its names: a block that a model uses in several places has several."""
    found: dict[nn.Linear, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, nn.Linear):
            found.setdefault(module, []).append(name)
    return found


def _read_directly(model: nn.Module) -> dict[nn.Linear, str]:
    """Layers whose weight another module multiplies with itself, and why they are left."""
    encoders = (module for module in model.modules() if isinstance(module, nn.TransformerEncoderLayer))
    reason = "nn.TransformerEncoderLayer multiplies with its weight itself"
    return {layer: reason for encoder in encoders for layer in (encoder.linear1, encoder.linear2)}


def _reason_to_leave(
    layer: nn.Linear, names: list[str], wanted: tuple[str, ...], unwanted: tuple[str, ...]
) -> str | None:
    """Why a layer is not replaced; None if it is. A layer of several names is left if any of them is."""
    for name in names:
        if pattern := first_match(name, unwanted):
            return f"exclude has {pattern!r}"
        if first_match(name, wanted) is None:
            return "include does not have it"
        if not is_asked_for(name, wanted) and (reason := _kept(layer, name)):
            return f"{reason}; include its name to have it"
    if any(getattr(layer, hooks) for hooks in _HOOKS) or "forward" in vars(layer):
        return "it has hooks or a forward of its own, which a replacement would lose"
    return _unfit(layer)


def _kept(layer: nn.Linear, name: str) -> str | None:
    if _has_block_scales(layer):
        return None  # its checkpoint decided
    if pattern := first_match(name, KEPT):
        return f"kept in {_dtype_of(layer)}: {pattern!r} is in fusionlib.models.KEPT"
    if min(layer.in_features, layer.out_features) < BLOCK:
        return (
            f"kept in {_dtype_of(layer)}: [{layer.out_features}, {layer.in_features}] is less than one block of {BLOCK}"
        )
    return None


def _dtype_of(layer: nn.Linear) -> str:
    return str(layer.weight.dtype).removeprefix("torch.")


def _unfit(layer: nn.Linear) -> str | None:
    """Why a layer cannot be replaced. Raises ValueError where only its weight is missing."""
    if isinstance(layer, BlockFP8Linear):
        return "block-FP8 already"
    if (problem := _checkpoint_problem(layer)) is not None:
        return problem or None
    if type(layer) is not nn.Linear:
        return f"{type(layer).__name__} is more than an nn.Linear"
    if type(layer.weight) is not nn.Parameter or layer.weight.dtype not in _FLOATS:
        return f"its weight is {type(layer.weight).__name__} of {_dtype_of(layer)}"
    return None


# What a block-FP8 checkpoint has: transformers' FP8Linear (transformers 5.23, integrations/finegrained_fp8.py).


def _has_block_scales(layer: nn.Linear) -> bool:
    return hasattr(layer, "weight_scale_inv") and not isinstance(layer, BlockFP8Linear)


def _checkpoint_problem(layer: nn.Linear) -> str | None:
    """Why the FP8 of a checkpoint's layer is not ours; empty if it is, None if it is no such layer."""
    if not _has_block_scales(layer):
        return None
    name, scale = type(layer).__name__, layer.weight_scale_inv
    if hasattr(layer, "n_groups"):
        return f"{name} multiplies by groups"
    if not isinstance(scale, torch.Tensor) or scale.ndim != 2:
        return f"{name} has one scale for its weight and none per block"
    if layer.weight.dtype is not torch.float8_e4m3fn:
        return f"{name} has a weight of {_dtype_of(layer)}"
    size = getattr(layer, "block_size", None)
    if size is None or tuple(size) != (BLOCK, BLOCK):
        return f"{name} has scales for blocks of {size}, not of {BLOCK}x{BLOCK}"
    if getattr(layer, "activation_scale", None) is not None:
        return f"{name} has a static scale for its activations"
    return ""


def _replacement(layer: nn.Linear, name: str, quant: GroupQuant | None, native_quant: bool) -> BlockFP8Linear:
    if layer.weight.is_meta:
        raise ValueError(f"{name} has no weight yet (it is on the meta device): load the model first")
    if not _has_block_scales(layer):
        return BlockFP8Linear.from_linear(layer, quant, native_quant=native_quant)
    codes, scale = layer.weight.detach(), layer.weight_scale_inv
    assert isinstance(scale, torch.Tensor)
    made = BlockFP8Linear(codes, scale.detach(), quant, bias=layer.bias, native_quant=native_quant)
    return made.train(layer.training)


def _replaced(layer: nn.Linear, name: str) -> Replaced:
    padded = []
    for what, size in (("in_features", layer.in_features), ("out_features", layer.out_features)):
        if missing := -size % BLOCK:
            padded.append(f"{what} {size} padded to {size + missing}")
    if layer.in_features % BLOCK:
        padded.append("so its activation is padded too, and fuses with no producer")
    return Replaced(name, layer.in_features, layer.out_features, type(layer).__name__, ", ".join(padded))


def _bytes(layer: nn.Linear) -> int:
    tensors: Mapping[str, torch.Tensor | None] = {**layer._parameters, **layer._buffers}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values() if tensor is not None)


def _other_weights(model: nn.Module) -> Iterator[Left]:
    """Modules with stacked matrices of their own, such as all experts of a layer in one tensor."""
    for name, module in model.named_modules():
        stacked = [key for key, value in module._parameters.items() if value is not None and value.ndim == 3]
        if stacked and not isinstance(module, nn.modules.conv._ConvNd):
            yield Left(name, f"{type(module).__name__} holds {', '.join(stacked)} as one tensor, no linear layer")
