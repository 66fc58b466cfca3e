from __future__ import annotations

import pytest
import torch

import fusionlib
from fusionlib import GroupQuant, reference
from fusionlib.block_mm import block_scaled_mm, dequantised, rows_of_four
from fusionlib.layers import AttentionOutput, BlockFP8Linear
from fusionlib.quant_op import empty_quantised, room_for_quantised


def operands(tokens: int, columns: int = 256, out: int = 384):
    torch.manual_seed(0)
    linear = BlockFP8Linear.from_linear(torch.nn.Linear(columns, out, bias=False))
    codes, scale = linear.quantise(torch.randn(tokens, columns, dtype=torch.bfloat16))
    return codes, scale, linear.codes, linear.weight_scale_inv


@pytest.mark.parametrize("tokens", [1, 6])
def test_it_is_the_product_of_what_the_codes_stand_for(tokens):
    codes, scale, weight, weight_scale = operands(tokens)
    wide = scale.repeat_interleave(128, 1)
    blocks = weight_scale[:, :2].repeat_interleave(128, 0).repeat_interleave(128, 1)
    expected = (codes.double() * wide) @ (weight.double() * blocks).t()
    got = block_scaled_mm(codes, scale, weight, weight_scale, torch.float32)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-6)  # float32 sums of 256 products
    assert torch.equal(dequantised(codes, scale, 1), codes.float() * wide)


@pytest.mark.parametrize("tokens", [1, 6])
def test_opcheck(tokens):
    """Only the fake: the schema's own test multiplies its inputs, and PyTorch cannot multiply FP8."""
    call = torch.ops.fusionlib.block_scaled_mm.default
    torch.library.opcheck(call, (*operands(tokens), torch.bfloat16), test_utils=("test_faketensor",))


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7, 64])
def test_rows_are_filled_with_zeros_to_a_multiple_of_four(tokens):
    codes, scale, *_ = operands(tokens)
    filled, scales = rows_of_four(codes, scale)
    rows = -(-tokens // 4) * 4
    assert filled.shape[0] == scales.shape[0] == rows and scales.stride() == (1, rows)
    assert torch.equal(filled[:tokens].float(), codes.float()) and torch.equal(scales[:tokens], scale)
    assert not filled[tokens:].float().any() and not scales[tokens:].any()


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 7])
def test_rows_are_not_copied_where_the_storage_has_room_for_four(tokens):
    quant = GroupQuant.vllm().with_layout("column_major_padded")
    y = torch.randn(tokens, 256, dtype=torch.bfloat16)
    codes, scale = room_for_quantised(y, quant)
    like = empty_quantised(y, quant)
    assert [(t.shape, t.stride(), t.dtype) for t in (codes, scale)] == [(t.shape, t.stride(), t.dtype) for t in like]
    want_codes, want_scale = reference.group_quant(y, quant)
    codes.view(torch.uint8).copy_(want_codes.view(torch.uint8))
    scale.copy_(want_scale)
    filled, scales = rows_of_four(codes, scale)
    rows = -(-tokens // 4) * 4
    assert (filled.data_ptr(), scales.data_ptr()) == (codes.data_ptr(), scale.data_ptr())
    assert filled.shape == (rows, 256) and filled.is_contiguous() and scales.stride() == (1, rows)
    assert torch.equal(filled[:tokens].float(), want_codes.float()) and torch.equal(scales[:tokens], want_scale)


def test_the_graph_is_whole_where_the_layer_takes_the_op(monkeypatch):
    """As on a GPU of compute capability 9.0: the op does not part the norm from its quantisation."""
    monkeypatch.setattr(BlockFP8Linear, "_has_block_scaled_mm", lambda *_: True)
    model = AttentionOutput(4, 128, 256, native_quant=True).requires_grad_(False)
    x, gate = torch.randn(2, 6, 4, 128, dtype=torch.bfloat16)
    expected = model(x, gate)
    fusion = fusionlib.FusionPass(devices=("cpu",), expect=1)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, options={"post_grad_custom_pre_pass": fusion})
    assert torch.equal(compiled(x, gate), expected)
    assert len(fusion.report().fused) == 1


def test_a_backward_is_traced_without_a_warning(monkeypatch, recwarn):
    """As on a GPU of compute capability 9.0; the site is refused, with the reason."""
    monkeypatch.setattr(BlockFP8Linear, "_has_block_scaled_mm", lambda *_: True)
    model = AttentionOutput(4, 128, 256, native_quant=True)
    x, gate = torch.randn(2, 6, 4, 128, dtype=torch.bfloat16)
    report = fusionlib.explain(model, x, gate, devices="cpu")
    assert [site.code for site in report.refused] == ["training"]
    assert not [warning for warning in recwarn if "autograd kernel was not registered" in str(warning.message)]


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 6, 64])
def test_on_a_gpu_the_op_is_traced_and_the_layer_fuses(tokens):
    """cuBLAS sums in less than float32: a bf16 step (2^-8) of the largest result, and one code that may differ."""
    model = AttentionOutput(32, 128, 512, device="cuda").requires_grad_(False)
    if not model.out_proj._has_block_scaled_mm(model.out_proj.codes, torch.bfloat16):
        pytest.skip("torch.nn.functional.scaled_mm with 1x128 scales takes compute capability 9.0")
    x, gate = torch.randn(2, tokens, 32, 128, dtype=torch.bfloat16, device="cuda")
    expected = model(x, gate)
    fusion = fusionlib.FusionPass(expect=1)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, options={"post_grad_custom_pre_pass": fusion})
    got = compiled(x, gate)
    assert len(fusion.report().fused) == 1
    assert (got - expected).abs().max() <= 2**-7 * expected.abs().max()
    codes, scale = model.out_proj.quantise(model.norm(x, gate).flatten(1))
    arguments = (codes, scale, model.out_proj.weight, model.out_proj.weight_scale_inv, torch.bfloat16)
    torch.library.opcheck(torch.ops.fusionlib.block_scaled_mm.default, arguments, test_utils=("test_faketensor",))
