"""Layers spell the computation unfused; their values are the reference's."""

import pytest
import torch
from torch import nn

from fusionlib import GatedNorm, GroupQuant, reference
from fusionlib.layers import AttentionOutput, BlockFP8Linear, RMSNormGated, quantise_blocks


def test_norm_layer_keeps_the_shape_and_the_reference_value():
    layer = RMSNormGated(128, GatedNorm.qwen3_next(), dtype=torch.bfloat16)
    nn.init.normal_(layer.weight)
    x, gate = torch.randn(2, 2, 3, 4, 128, dtype=torch.bfloat16)
    expected = reference.rms_norm_gated(x.view(-1, 128), gate.view(-1, 128), layer.weight, layer.norm)
    assert torch.equal(layer(x, gate), expected.view(2, 3, 4, 128))


def test_norm_layer_starts_as_the_plain_norm():
    x, gate = torch.randn(2, 5, 128)
    plain = RMSNormGated(128, GatedNorm(128))(x, gate)
    assert torch.equal(RMSNormGated(128, GatedNorm(128, weight_offset=1))(x, gate), plain)
    assert plain.square().mean() > 0


def test_norm_layer_refuses_a_size_that_does_not_divide():
    with pytest.raises(ValueError, match=r"hidden=100.*norm_size=128"):
        RMSNormGated(100, GatedNorm(128))


def test_blocks_are_quantised_by_themselves():
    weight = torch.randn(256, 384) * torch.tensor([1.0, 100.0]).repeat_interleave(128).unsqueeze(1)
    codes, scale = quantise_blocks(weight)
    for row in range(2):
        for column in range(3):
            block = weight[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128]
            assert scale[row, column] == block.abs().max() / 448
            expected = (block / scale[row, column]).clamp(-448, 448).to(torch.float8_e4m3fn)
            got = codes[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128]
            assert torch.equal(got.float(), expected.float())


@pytest.mark.parametrize("in_features", [384, 512])  # three blocks are padded to four, four are not
def test_the_product_is_that_of_the_dequantised_operands(in_features):
    linear = nn.Linear(in_features, 256, bias=False, dtype=torch.bfloat16)
    layer = BlockFP8Linear.from_linear(linear)
    x = torch.randn(3, 5, in_features, dtype=torch.bfloat16)
    codes, scale = quantise_blocks(linear.weight.detach())
    weight = codes.float() * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    quant = GroupQuant.vllm()
    activation = reference.dequantise(*reference.group_quant(x.view(15, in_features), quant), quant)
    expected = (activation @ weight.t()).to(torch.bfloat16).view(3, 5, 256)
    assert torch.equal(layer(x), expected)
    assert torch.equal(BlockFP8Linear.from_linear(linear, native_quant=True)(x), expected)
    relative = (layer(x).float() - linear(x).float()).norm() / linear(x).float().norm()
    assert relative < 0.06  # two operands, each uniformly within half a step: 2^-4 / sqrt(3) * sqrt(2) at most


def test_linear_refuses_what_it_cannot_hold():
    with pytest.raises(ValueError, match=r"bfloat16.*from_linear"):
        BlockFP8Linear(torch.zeros(256, 128).bfloat16(), torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"scale has shape \[1, 1\].*\[2, 1\]"):
        BlockFP8Linear(torch.zeros(256, 128).to(torch.float8_e4m3fn), torch.ones(1, 1))


@pytest.mark.parametrize("native_quant", [False, True])
def test_attention_output_is_its_parts(native_quant):
    model = AttentionOutput(4, 128, 256, native_quant=native_quant)
    x, gate = torch.randn(2, 7, 4, 128, dtype=torch.bfloat16)
    normed = reference.rms_norm_gated(x, gate, model.norm.weight.repeat(4), model.norm.norm)
    assert torch.equal(model(x, gate), model.out_proj(normed))


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 3, 64])  # cuBLAS takes multiples of 4 only
def test_scaled_mm_approximates_the_exact_product(tokens):
    """cuBLAS accumulates FP8 products in less than float32; 2^-8 of the result's size is one bf16 step."""
    model = AttentionOutput(32, 128, 2048, device="cuda")
    x, gate = torch.randn(2, tokens, 32, 128, dtype=torch.bfloat16, device="cuda")
    codes, scale = model.out_proj.quantise(model.norm(x, gate).flatten(1))
    activation = reference.dequantise(codes, scale, model.out_proj.quant)
    exact = activation @ model.out_proj.dequantised_weight().t()
    got = model.out_proj.product(codes, scale, torch.bfloat16).float()
    assert got.shape == exact.shape
    assert ((got - exact).abs().max() / exact.abs().max()) < 2**-7
