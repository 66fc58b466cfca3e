"""BlockFP8Linear: an nn.Linear whose weight is FP8 with one scale per 128x128 block, as block-FP8 checkpoints have it.

The weight is kept as the bytes of its codes. Casts of a model (`.to(torch.bfloat16)`), gloo and DTensor's collectives
would change or refuse FP8, and leave bytes as they are; `state_dict` has the codes as FP8, under a checkpoint's names.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad

from fusionlib import op, reference
from fusionlib.block_mm import BLOCK, block_scaled_mm, dequantised, in_blocks, laid_out_scale, laid_out_weight
from fusionlib.spec import GroupQuant

#: (device mesh, placements) of a weight that tensor parallelism has sharded.
Sharding = tuple[Any, tuple[Any, ...]]


class BlockFP8Linear(nn.Linear):
    """A linear layer in FP8: one scale per 1x128 activation group, one per 128x128 weight block.

    The activation is quantised by `torch.ops.fusionlib.group_quant`, opaque as in serving engines, or in plain PyTorch
    with `native_quant=True`. The product is `fusionlib.block_mm.block_scaled_mm` on GPUs with block-wise scaling
    (compute capability 9.0), and elsewhere the float32 product of the dequantised operands, which the hardware
    approximates. Sizes that 128 does not divide are filled with zeros: `out_features` in memory alone, `in_features` in
    the activation too, so that no producer is next to its quantisation any more.

    To the rest of PyTorch it is an `nn.Linear`:

    - `weight` [out, in] is a parameter without a gradient: the bytes (uint8) of the codes; `codes` is the same memory
      as FP8. `weight_scale_inv` [out / 128, in / 128], each rounded up, is a float32 buffer: what codes are multiplied
      by. `state_dict()` has both under these names, the weight as FP8, and takes them from a block-FP8 checkpoint.
    - `.to(dtype)` and its kin change the bias alone. Under `torch.autocast` the input is cast as a linear layer's is.
    - `parallelize_module` shards weight and scale alike; a shard that begins inside of a block is a ValueError.
    - The input's gradient is that of the product with the dequantised weight: the activation's quantisation passes it
      on, and nothing is rounded to FP8 on the way back. `torch.func.grad`, `vjp`, `jvp` and `vmap` of them have the
      same in eager; in a compiled graph a forward-mode derivative is a graph break. Weight and scale have none:
      `requires_grad_()` of the layer is a TypeError, that of its bias is not.

    Args:
        codes: [out, in] FP8.
        scale: [out / 128, in / 128], each rounded up, float32 or float8_e8m0fnu.
        quant: how the activation is quantised; by default `GroupQuant.vllm(128)` with the layout of scales that the
            FP8 product takes, column-major. With another layout, format or group the product is computed in float32.
        bias: [out], added to the product.
        native_quant: quantise the activation in plain PyTorch.

    Raises:
        ValueError: if codes are not FP8 or the scale's shape is another.
    """

    weight_scale_inv: torch.Tensor

    def __init__(
        self,
        codes: torch.Tensor,
        scale: torch.Tensor,
        quant: GroupQuant | None = None,
        *,
        bias: torch.Tensor | None = None,
        native_quant: bool = False,
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's would first allocate a weight of another dtype
        if codes.ndim != 2 or not _is_fp8(codes.dtype):
            raise ValueError(
                f"weight is {codes.dtype} {list(codes.shape)}; it must be FP8 [out, in]: "
                "BlockFP8Linear.from_linear quantises another one"
            )
        expected = [in_blocks(size) for size in codes.shape]
        if list(scale.shape) != expected:
            raise ValueError(f"scale has shape {list(scale.shape)}; a weight {list(codes.shape)} takes {expected}")
        self.out_features, self.in_features = codes.shape
        self.quant = quant or GroupQuant.vllm(BLOCK).with_layout(
            "column_major" if native_quant else "column_major_padded"
        )
        self.native_quant = native_quant
        self.weight_dtype = codes.dtype
        self._sharding: Sharding | None = None
        padded = any(size % BLOCK for size in codes.shape)
        codes = codes.clone() if padded else codes  # what lies behind a part of a larger tensor is no zeros
        self.weight = nn.Parameter(laid_out_weight(codes.view(torch.uint8)), requires_grad=False)
        self.register_buffer("weight_scale_inv", laid_out_scale(scale.float()))
        trains = bias is not None and bias.requires_grad
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias.detach(), requires_grad=trains))

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, quant: GroupQuant | None = None, *, native_quant: bool = False
    ) -> BlockFP8Linear:
        """Quantise the weight of `linear` by 128x128 blocks (amax / 448, floor 1e-10 on amax); the bias is kept."""
        codes, scale = quantise_blocks(linear.weight.detach(), (quant or GroupQuant.vllm()).dtype)
        return cls(codes, scale, quant, bias=linear.bias, native_quant=native_quant).train(linear.training)

    @property
    def codes(self) -> torch.Tensor:
        """The weight [out, in] as FP8, in the same memory; of a sharded weight, this process's part."""
        return _local(self.weight).view(self.weight_dtype)

    def extra_repr(self) -> str:
        """What `nn.Linear` prints, and the activation's quantisation."""
        return f"{super().extra_repr()}, group_size={self.quant.group_size}, native_quant={self.native_quant}"

    def reset_parameters(self) -> None:
        """Nothing: the weight comes from a checkpoint or another layer."""

    def requires_grad_(self, requires_grad: bool = True) -> BlockFP8Linear:
        """As `nn.Module`'s, but there is nothing to train in the codes. Raises TypeError for True."""
        if requires_grad:
            raise TypeError(
                "the weight of a BlockFP8Linear is the bytes of FP8 codes, and no gradient can change it: train its "
                "bias alone (layer.bias.requires_grad_()) or what is around it; its input has a gradient as it is"
            )
        return super().requires_grad_(False)

    # The computation.

    def quantise(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x [tokens, in] -> codes [tokens, in rounded up to 128] and scale in the layout of `quant`."""
        taken = _local(self.weight).shape[1]
        if x.shape[-1] != taken:
            raise ValueError(f"x has shape {list(x.shape)}; the layer takes {taken} elements in the last dimension")
        if x.stride(-1) != 1:
            x = x.contiguous()  # the quantisation reads rows; what a transposition left is copied
        if missing := -taken % BLOCK:
            x = nn.functional.pad(x, (0, missing))
        return reference.group_quant(x, self.quant) if self.native_quant else op.group_quant(x, self.quant)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., in] -> [..., out], of x's dtype, or under `torch.autocast` of that one's."""
        kind = x.device.type
        if _autocasts(kind):
            x = x if x.dtype is torch.float64 else x.to(torch.get_autocast_dtype(kind))
            with torch.autocast(kind, enabled=False):  # the product is one in float32 inside
                return self._with_bias(x)
        return self._with_bias(x)

    def product(self, codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """The product of quantised activations [tokens, in] with the weight: [tokens, out] of `dtype`, no bias."""
        if self._has_block_scaled_mm(codes, dtype):
            return block_scaled_mm(codes, scale, _local(self.weight), _local(self.weight_scale_inv), dtype)
        weight = self.dequantised_weight()
        activation = reference.dequantise(codes, scale, self.quant)[:, : weight.shape[1]]
        return (activation @ weight.t()).to(dtype)

    def dequantised_weight(self) -> torch.Tensor:
        """The weight [out, in] in float32; of a sharded one, this process's part."""
        return dequantised(self.codes, _local(self.weight_scale_inv), BLOCK)

    def _with_bias(self, x: torch.Tensor) -> torch.Tensor:
        product = self._on_shards(x) if self._sharding is not None else self._linear(x)
        return product if self.bias is None else product + self.bias.to(product.dtype)

    def _linear(self, x: torch.Tensor) -> torch.Tensor:
        if forward_ad._current_level >= 0:  # a tangent may be under one or more of x's wrappers
            return _with_tangent(x, self)
        if torch.is_grad_enabled() and x.requires_grad:
            return _WithGradient.apply(x, self)
        return self._product_of(x)

    def _product_of(self, x: torch.Tensor) -> torch.Tensor:
        codes, scale = self.quantise(x.reshape(-1, x.shape[-1]))
        product = self.product(codes, scale, x.dtype)
        return product.view(*x.shape[:-1], product.shape[-1])

    def _has_block_scaled_mm(self, codes: torch.Tensor, dtype: torch.dtype) -> bool:
        quant = self.quant
        return (
            codes.is_cuda
            and not torch.version.hip
            and torch.cuda.get_device_capability(codes.device) == (9, 0)
            and dtype is torch.bfloat16
            and (quant.dtype, quant.group_size) == (torch.float8_e4m3fn, BLOCK)
            and self.weight_dtype is torch.float8_e4m3fn
            and quant.scale_layout in ("column_major", "column_major_padded")
        )

    # Tensor parallelism.

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As `nn.Module`'s; a weight that `parallelize_module` has sharded takes its scale along.

        Raises:
            TypeError: for a weight that is no codes, such as one of an embedding that is to be tied.
        """
        if name == "weight" and param is not None:
            if param.dtype is not torch.uint8:
                raise TypeError(
                    f"the weight of a BlockFP8Linear is the bytes of FP8 codes, and this one is {param.dtype}: leave a "
                    "layer whose weight is shared out of quantize_linears"
                )
            if _is_dtensor(param):
                self._shard_scale(param)
        super().register_parameter(name, param)

    def _shard_scale(self, weight: Any) -> None:
        from torch.distributed.tensor import DTensor, distribute_tensor

        mesh, placements = weight.device_mesh, weight.placements
        for each, count in zip(placements, mesh.shape, strict=True):
            if each.is_shard():
                _check_shards(list(weight.shape), each.dim % 2, count)
        scale = distribute_tensor(self.weight_scale_inv.contiguous(), mesh, placements)
        local = laid_out_scale(scale.to_local())
        size, stride = scale.shape, scale.stride()
        self.weight_scale_inv = DTensor.from_local(local, mesh, placements, run_check=False, shape=size, stride=stride)
        self._sharding = mesh, placements

    def _on_shards(self, x: torch.Tensor) -> torch.Tensor:
        """The product of this process's shards, as a DTensor: its part of the columns, or of the sum."""
        from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

        assert self._sharding is not None
        mesh, placements = self._sharding
        last = x.ndim - 1
        taken: list[Any] = [Replicate()] * len(placements)
        if isinstance(x, DTensor):
            taken = [_taken(of_weight, of_x, last) for of_weight, of_x in zip(placements, x.placements, strict=True)]
            # Of the columns that it has, a process knows only its part of the input's gradient.
            parts = [Partial() if w.is_shard(0) else place for w, place in zip(placements, taken, strict=True)]
            x = x.redistribute(mesh, taken).to_local(grad_placements=parts)
        local = self._linear(x)
        kinds = {0: Shard(last), 1: Partial()}
        found = [kinds[w.dim % 2] if w.is_shard() else place for w, place in zip(placements, taken, strict=True)]
        product = DTensor.from_local(local, mesh, found, run_check=False)
        if self.bias is None:
            return product
        # Summed first: a bias is added once, and after the sum as in one process.
        return product.redistribute(mesh, [Replicate() if each.is_partial() else each for each in found])

    # Casts, copies and checkpoints.

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> BlockFP8Linear:
        """Move what is to be moved: a scale keeps its dtype, and the weight, as bytes, is cast by nobody."""
        kept = self.weight_scale_inv

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            found = fn(tensor)
            return tensor.to(found.device) if tensor is kept and found.dtype != tensor.dtype else found

        super()._apply(moved, recurse)
        self._lay_out()
        return self

    def _lay_out(self) -> None:
        """The memory that the product needs, where a copy of a tensor lost it."""
        if self._sharding is None:
            self.weight.data = laid_out_weight(self.weight.data)
            self.weight_scale_inv = laid_out_scale(self.weight_scale_inv)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # of a copy, or from a file: neither keeps the room behind a tensor
        self._lay_out()

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Contiguous, since safetensors takes nothing else.
        destination[f"{prefix}weight"] = _viewed(destination[f"{prefix}weight"].contiguous(), self.weight_dtype)
        destination[f"{prefix}weight_scale_inv"] = destination[f"{prefix}weight_scale_inv"].contiguous()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        *_, errors = others
        weight = state_dict.get(name := f"{prefix}weight")
        if weight is not None and weight.dtype == self.weight_dtype:
            state_dict[name] = _viewed(weight, torch.uint8)
        elif weight is not None and weight.dtype is not torch.uint8:
            errors.append(
                f"{name} is {weight.dtype} and the layer's is {self.weight_dtype}: load it before the model is "
                "quantised (fusionlib.models.quantize_linears)"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *others)
        if self.weight_scale_inv.dtype is not torch.float32:  # `assign=True` with another checkpoint's
            self.weight_scale_inv = self.weight_scale_inv.float()
        self._lay_out()


class _WithGradient(torch.autograd.Function):
    """The product, with the gradient of the one with the dequantised weight; `torch.func.grad` and `vmap` work too."""

    @staticmethod
    def forward(x: torch.Tensor, layer: BlockFP8Linear) -> torch.Tensor:
        return layer._product_of(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, BlockFP8Linear], output: torch.Tensor) -> None:
        _, ctx.layer = inputs

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: torch.Tensor, layer: BlockFP8Linear) -> tuple[torch.Tensor, int]:
        return _WithGradient.apply(x.movedim(in_dims[0], 0), layer), 0  # one more dimension of tokens

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = gradients
        return _float_product(gradient, ctx.layer.dequantised_weight()), None


class _WithTangent(_WithGradient):
    """The same with a forward-mode derivative. Dynamo refuses a function that has one, or drops it."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], x: torch.Tensor, layer: BlockFP8Linear) -> tuple[torch.Tensor, int]:
        return _WithTangent.apply(x.movedim(in_dims[0], 0), layer), 0

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, _: None) -> torch.Tensor:
        return _float_product(tangent, ctx.layer.dequantised_weight().t())


@_disable_dynamo  # `torch.compiler.disable` would import Dynamo with this module, for a second and a half
def _with_tangent(x: torch.Tensor, layer: BlockFP8Linear) -> torch.Tensor:
    """Outside of a compiled graph, which would lose the derivative; with `fullgraph=True` PyTorch raises instead."""
    return _WithTangent.apply(x, layer)


def _float_product(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """x @ weight in float32, under autocast too, rounded to x's dtype."""
    kind = x.device.type
    with torch.autocast(kind, enabled=False) if _autocasts(kind) else nullcontext():
        return (x.float() @ weight).to(x.dtype)


def quantise_blocks(
    weight: torch.Tensor, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise `weight` [out, in] by 128x128 blocks: codes [out, in] and scale [out / 128, in / 128] float32.

    The sizes of scale are rounded up; blocks at the edge may be smaller. Each block is flattened to one row with one
    group, so that `reference.group_quant` does the arithmetic.
    """
    if weight.ndim != 2:
        raise ValueError(f"weight has shape {list(weight.shape)}; it must be [out, in]")
    rows, columns = weight.shape
    padded = nn.functional.pad(weight, (0, -columns % BLOCK, 0, -rows % BLOCK))
    blocks = padded.unflatten(0, (-1, BLOCK)).unflatten(2, (-1, BLOCK)).transpose(1, 2)  # [out/128, in/128, 128, 128]
    codes, scale = reference.group_quant(blocks.flatten(1).contiguous(), GroupQuant(BLOCK * BLOCK, dtype))
    codes = codes.view(blocks.shape).transpose(1, 2).reshape(padded.shape)
    return codes[:rows, :columns].contiguous(), scale


def _autocasts(kind: str) -> bool:
    """Whether `torch.autocast` is on for a type of device; meta has none (and Dynamo in 2.11 cannot ask which have)."""
    return kind != "meta" and torch.is_autocast_enabled(kind)


def _is_fp8(dtype: torch.dtype) -> bool:
    return dtype.itemsize == 1 and dtype.is_floating_point and dtype is not torch.float8_e8m0fnu


def _is_dtensor(tensor: torch.Tensor) -> bool:
    return hasattr(tensor, "device_mesh")  # importing DTensor takes a while, and few need it


def _local(tensor: Any) -> torch.Tensor:
    return tensor.to_local() if _is_dtensor(tensor) else tensor


def _viewed(tensor: Any, dtype: torch.dtype) -> torch.Tensor:
    """The same memory as another one-byte dtype; a DTensor stays one."""
    if not _is_dtensor(tensor):
        return tensor.view(dtype)
    from torch.distributed.tensor import DTensor

    local, size, stride = tensor.to_local().view(dtype), tensor.shape, tensor.stride()
    return DTensor.from_local(local, tensor.device_mesh, tensor.placements, run_check=False, shape=size, stride=stride)


def _taken(of_weight: Any, of_x: Any, last: int) -> Any:
    """How an input is placed for a weight: split with its rows, whole for its columns, and left in peace otherwise."""
    from torch.distributed.tensor import Replicate, Shard

    if of_weight.is_shard(1):
        return Shard(last)
    keeps = not of_weight.is_shard() and of_x.is_shard() and of_x.dim % (last + 1) != last
    return of_x if keeps else Replicate()


def _check_shards(shape: list[int], dim: int, count: int) -> None:
    """Raise ValueError if one of `count` shards along `dim` begins inside of a block, or the last is not whole."""
    size, name = shape[dim], ("out_features", "in_features")[dim]
    step = -(-size // count)
    if count > 1 and (size % BLOCK or step % BLOCK):
        raise ValueError(
            f"the weight {shape} cannot be sharded in {count} along {name}: the second shard begins at {step} of "
            f"{size}, and both must be multiples of {BLOCK}, the size of a block with one scale"
        )
