"""Scales packed after the quantisation: four ue8m0 exponents to an int32, column by column, as DeepGEMM takes them.

Three PyTorch spellings are read: `fusionlib.reference.lay_out_scales`, which pads the scales and copies the words into
strided storage; DeepGEMM's own `get_mn_major_tma_aligned_packed_ue8m0_tensor_torch_impl` (deep_gemm/utils/layout.py),
which writes the exponents into a padded tensor of zeros; and its `pack_ue8m0_to_int` (deep_gemm/utils/math.py), which
first asserts that scales are powers of two, and whose words transformers copies into columns.
"""

from __future__ import annotations

import torch
from torch import fx

from fusionlib.match.graph import (
    aten,
    dtype,
    input_of,
    is_call,
    is_cast,
    listed,
    literal,
    numel,
    peel_views,
    shape,
    tensor_of,
)
from fusionlib.match.result import Match, QuantRead
from fusionlib.match.sizes import Shape, Size, equal, same_shape
from fusionlib.reference import scale_storage

_SHIFTS = (aten.__rshift__.Scalar, aten.bitwise_right_shift.Tensor_Scalar)
_MASKS = (aten.bitwise_and.Scalar, aten.__and__.Scalar)
_ANYS = (aten.any.default, aten.any.dim, aten.any.dims)
_ALLS = (aten.all.default, aten.all.dim, aten.all.dims)
_ASSERTS = (aten._assert_async.default, aten._assert_async.msg)
_LONGEST = 12  # operations from the scale to the packed words


def packed_copy(user: fx.Node, match: Match) -> fx.Node | None:
    """The node that holds the scales packed, if `user` begins the packing and nothing else reads the steps."""
    quant = match.quant
    if quant.spec.scale_format != "ue8m0":  # packing keeps only the exponent, which is not all of any other number
        return None
    tokens, groups = numel(match.value) // match.hidden, match.hidden // quant.spec.group_size
    size, stride, _ = scale_storage(tokens, groups, quant.spec.with_layout("packed_int32"))
    node = user
    for _ in range(_LONGEST):
        if dtype(node) is torch.int32 and same_shape(shape(node), size) and _has_strides(node, stride):
            return node if _packs(node, quant, tokens, groups) else None
        if len(node.users) != 1:
            return None
        node = next(iter(node.users))
    return None


def checked_power(user: fx.Node, match: Match) -> fx.Node | None:
    """The assertion that every scale is a power of two, if `user` begins it and it is always true.

    A scale that stays NaN is none.
    """
    mask = user
    if match.quant.spec.nan_scale != "largest" or not is_call(mask, *_MASKS) or literal(mask.args[1]) != 0x7FFFFF:
        return None
    if input_of(mask) is not match.quant.scale_bits or (equal_to_zero := _only_user(mask, aten.eq.Scalar)) is None:
        return None
    if literal(equal_to_zero.args[1]) != 0:
        return None
    if (every := _only_user(equal_to_zero, *_ALLS)) is None:  # or none that is not
        some = _only_user(_only_user(equal_to_zero, aten.logical_not.default), *_ANYS)
        every = _only_user(some, aten.logical_not.default)
    return _only_user(every, *_ASSERTS)


def _only_user(node: fx.Node | None, *targets: object) -> fx.Node | None:
    """The one node that reads `node`, if it calls one of `targets`."""
    user = next(iter(node.users)) if node is not None and len(node.users) == 1 else None
    return user if user is not None and is_call(user, *targets) else None


def _has_strides(node: fx.Node, stride: Shape) -> bool:
    return same_shape(tuple(tensor_of(node).stride()), stride)


def _packs(node: fx.Node, quant: QuantRead, tokens: Size, groups: int) -> bool:
    """Whether the words are the exponents of the scale, in order, then zeros."""
    words = peel_views(_copied(_below_slice(node)))
    if not is_call(words, aten.view.dtype) or dtype(input_of(words)) is not torch.uint8:
        return False
    octets = peel_views(input_of(words))
    if len(shape(octets)) != 2 or not equal(shape(octets)[1], (groups + 3) // 4 * 4):
        return False
    narrow = _below_padding(octets)
    exponents = _exponents(narrow)
    if exponents is None or not same_shape(shape(exponents), shape(narrow)):
        return False
    source = _below_padding(exponents)
    return same_shape(shape(source), (tokens, groups)) and peel_views(source) in (quant.scale, quant.scale_bits)


def _below_slice(node: fx.Node) -> fx.Node:
    """What `node` takes the first rows of."""
    first = is_call(node, aten.slice.Tensor) and [*node.args[1:], 0, 0][:2] in ([0, 0], [0, None])
    return input_of(node) if first and len(node.args) <= 4 else node


def _copied(node: fx.Node) -> fx.Node:
    if is_call(node, aten.copy.default):
        source = input_of(node, 1)
        return source if same_shape(shape(source), shape(node)) else node
    return input_of(node) if is_call(node, aten.clone.default) else node


def _below_padding(node: fx.Node) -> fx.Node:
    """What `node` pads with zeros after the last row and column; no view in between may change the rows."""
    while True:
        top = peel_views(node)
        if not same_shape(shape(top), shape(node)):
            return node
        if is_call(top, aten.constant_pad_nd.default):
            pads = listed(top.args[1])
            ends_only = all(isinstance(n, int) and n >= 0 for n in pads) and not any(pads[::2])
            if not ends_only or literal([*top.args[2:], 0][0]) != 0:
                return node
            node = input_of(top)
        elif is_call(top, aten.slice_scatter.default):
            start = (*top.args, 0, 0)[3]
            if not _is_zeros(input_of(top)) or start not in (0, None) or len(top.args) > 5:
                return node
            node = _copied(input_of(top, 1))
        else:
            return node


def _is_zeros(node: fx.Node) -> bool:
    while is_call(node, aten.slice.Tensor):
        node = input_of(node)
    return is_call(node, aten.full.default) and literal(node.args[1]) == 0


def _exponents(octets: fx.Node) -> fx.Node | None:
    """The float32 values that `octets` are the exponents of, or their bits."""
    octets = peel_views(octets)
    if not is_cast(octets) or dtype(octets) is not torch.uint8:
        return None
    shifted = peel_views(input_of(octets))
    if is_call(shifted, *_MASKS) and literal(shifted.args[1]) == 0xFF:
        shifted = peel_views(input_of(shifted))
    if not is_call(shifted, *_SHIFTS) or literal(shifted.args[1]) != 23:
        return None
    bits = peel_views(input_of(shifted))
    if dtype(bits) is not torch.int32:
        return None
    return input_of(bits) if is_call(bits, aten.view.dtype) else bits
