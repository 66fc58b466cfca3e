"""The block-FP8 linear layer: an nn.Linear to the rest of PyTorch."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from fusionlib import explain
from fusionlib.block_mm import block_scaled_mm, laid_out_scale, laid_out_weight
from fusionlib.layers import BlockFP8Linear, quantise_blocks
from fusionlib.reference import dequantise, group_quant

FP8 = torch.float8_e4m3fn


def layer(inputs=384, outputs=256, bias=True, **options) -> BlockFP8Linear:
    return BlockFP8Linear.from_linear(nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16), **options)


def dense(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    wide = scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    return codes.float() * wide[: codes.shape[0], : codes.shape[1]]


@pytest.mark.parametrize(("inputs", "outputs"), [(384, 256), (200, 256), (384, 200), (200, 72)])
@pytest.mark.parametrize("native", [False, True])
def test_the_product_and_its_bias_for_any_sizes(inputs, outputs, native):
    linear = nn.Linear(inputs, outputs, dtype=torch.bfloat16)
    ours = BlockFP8Linear.from_linear(linear, native_quant=native)
    x = torch.randn(2, 5, inputs).bfloat16()
    codes, scale = quantise_blocks(linear.weight.detach())
    padded = nn.functional.pad(x.view(10, -1), (0, -inputs % 128))
    activation = dequantise(*group_quant(padded, ours.quant), ours.quant)[:, :inputs]
    expected = (activation @ dense(codes, scale).t()).bfloat16() + linear.bias
    assert torch.equal(ours(x), expected.view(2, 5, outputs))
    assert (ours.in_features, ours.out_features) == (inputs, outputs) and torch.equal(ours.bias, linear.bias)


def test_partial_blocks_have_the_scale_of_what_they_hold():
    weight = torch.randn(200, 130)
    codes, scale = quantise_blocks(weight)
    assert codes.shape == (200, 130) and scale.shape == (2, 2)
    assert scale[1, 1] == weight[128:, 128:].abs().max() / 448


@pytest.mark.parametrize(("rows", "columns"), [(256, 384), (200, 384), (256, 130), (72, 130)])
def test_memory_has_room_for_whole_blocks_and_a_multiple_of_four_scales(rows, columns):
    """What cuBLAS reads: no copy is made for a layer that was laid out once."""
    codes, scale = quantise_blocks(torch.randn(rows, columns))
    weight, scales = laid_out_weight(codes.view(torch.uint8)), laid_out_scale(scale)
    assert torch.equal(weight, codes.view(torch.uint8)) and torch.equal(scales, scale)
    whole_rows, whole_columns = -(-rows // 128) * 128, -(-columns // 128) * 128
    behind = weight.as_strided((whole_rows, whole_columns), (whole_columns, 1))
    assert not behind[rows:].any() and not behind[:, columns:].any() and behind.data_ptr() == weight.data_ptr()
    assert scales.stride(1) == 1 and (scales.stride(0) % 4 == 0 or len(scales) == 1)
    assert laid_out_weight(weight) is weight and laid_out_scale(scales) is scales
    again = laid_out_scale(scales.contiguous())
    assert torch.equal(again, scale) and again.untyped_storage().nbytes() % 16 == 0


def test_the_op_takes_bytes_and_partial_blocks():
    linear, x = layer(200, 72, bias=False), torch.randn(3, 200).bfloat16()
    codes, scale = linear.quantise(x)
    got = block_scaled_mm(codes, scale, linear.weight, linear.weight_scale_inv, torch.bfloat16)
    assert torch.equal(got, linear(x))


def test_casts_change_the_bias_alone():
    linear = layer(outputs=200)
    codes, scale, x = linear.codes.clone(), linear.weight_scale_inv.clone(), torch.randn(3, 384)
    for cast in (nn.Module.half, nn.Module.double, nn.Module.bfloat16, lambda m: m.to("cpu", torch.float32)):
        assert cast(linear) is linear
        assert torch.equal(linear.codes.float(), codes.float()) and torch.equal(linear.weight_scale_inv, scale)
        assert linear.weight_scale_inv.dtype is torch.float32
        assert linear.weight_scale_inv.stride() == (4, 1)
    assert linear.bias.dtype is torch.float32 and linear(x).dtype is torch.float32
    assert linear.to("meta").weight.is_meta and linear.weight_scale_inv.is_meta


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("scale_dtype", [torch.float32, torch.float8_e8m0fnu])
def test_a_state_dict_is_a_block_fp8_checkpoint(assign, scale_dtype, tmp_path):
    """transformers' names, shapes and dtypes (FP8Linear); its ue8m0 scales are powers of two and exact in float32."""
    linear, other = layer(384, 200), layer(384, 200)
    if scale_dtype is not torch.float32:
        linear.weight_scale_inv.copy_(linear.weight_scale_inv.to(scale_dtype).float())
    state = linear.state_dict()
    assert {name: (value.dtype, tuple(value.shape)) for name, value in state.items()} == {
        "weight": (FP8, (200, 384)),
        "weight_scale_inv": (torch.float32, (2, 3)),
        "bias": (torch.bfloat16, (200,)),
    }
    assert all(value.is_contiguous() for value in state.values())
    state["weight_scale_inv"] = state["weight_scale_inv"].to(scale_dtype)
    torch.save(state, tmp_path / "state.pt")
    x = torch.randn(3, 384).bfloat16()
    assert not torch.equal(other(x), linear(x))
    other.load_state_dict(torch.load(tmp_path / "state.pt"), assign=assign)
    assert torch.equal(other(x), linear(x)) and other.weight.dtype is torch.uint8
    assert other.weight_scale_inv.dtype is torch.float32 and other.weight_scale_inv.stride() == (4, 1)


def test_a_weight_in_16_bits_is_not_loaded_as_codes():
    linear = layer(bias=False)
    before = linear.codes.float().clone()
    with pytest.raises(RuntimeError, match=r"weight is torch.bfloat16.*quantize_linears"):
        linear.load_state_dict({"weight": torch.randn(256, 384).bfloat16(), "weight_scale_inv": torch.ones(2, 3)})
    assert torch.equal(linear.codes.float(), before)


def test_a_copy_is_a_layer_of_its_own():
    linear, x = layer(384, 200), torch.randn(3, 384).bfloat16()
    copied, want = copy.deepcopy(linear), linear(x)
    linear.weight.zero_()
    assert torch.equal(copied(x), want) and copied.weight_scale_inv.stride() == (4, 1)
    weight = copied.weight.data  # it has its room, so that no call copies it
    assert laid_out_weight(weight).data_ptr() == weight.data_ptr() and weight.untyped_storage().nbytes() == 256 * 384


@pytest.mark.parametrize("columns", [300, 383, 512])
def test_another_number_of_elements_is_refused_as_by_a_linear_layer(columns):
    """384 are whole groups: less is not padded to it, and of more nothing is dropped."""
    with pytest.raises(ValueError, match=f"x has shape \\[3, {columns}\\]; the layer takes 384"):
        layer(384, 200)(torch.randn(3, columns).bfloat16())


def test_no_tokens():
    assert layer(384, 200)(torch.randn(2, 0, 384).bfloat16()).shape == (2, 0, 200)


def test_what_lies_behind_a_part_of_a_larger_tensor_is_no_part_of_the_weight():
    codes, scale = quantise_blocks(torch.randn(200, 130))
    wide = torch.full((256, 256), float("nan")).to(codes.dtype)
    wide[:200, :130] = codes
    linear = BlockFP8Linear(wide[:200, :130], scale)
    room = linear.weight.data.as_strided((256, 256), (256, 1)).view(codes.dtype).float()
    assert room[200:].abs().sum() == 0 and room[:, 130:].abs().sum() == 0


def test_a_weight_in_16_bits_is_not_tied_to_codes():
    linear, embedding = layer(256, 384), nn.Embedding(384, 256, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match=r"bytes of FP8 codes, and this one is torch\.bfloat16"):
        linear.weight = embedding.weight


#: Inductor rounds where eager does if it is told to.
BACKENDS = {
    "aot_eager": {"backend": "aot_eager"},
    "inductor": {"backend": "inductor", "options": {"emulate_precision_casts": True}},
}


def gradient_of(call, x, up):
    leaf = x.clone().requires_grad_()
    result = call(leaf)
    result.backward(up)
    return result.detach(), leaf.grad


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("backend", [None, *BACKENDS])
def test_the_gradient_is_that_of_the_dequantised_weight(native, backend):
    """In the dtype of the gradient, also where it is too small for FP8, eager and compiled."""
    linear = layer(256, 128, native_quant=native)
    linear.bias.requires_grad_()
    x, up = torch.randn(4, 256).bfloat16(), torch.randn(4, 128).bfloat16() * 2.0**-20
    if backend == "inductor" and native:
        pytest.skip("one real compile is enough")
    torch._dynamo.reset()
    call = linear if backend is None else torch.compile(linear, fullgraph=True, **BACKENDS[backend])
    result, gradient = gradient_of(call, x, up)
    assert torch.equal(result, linear(x).detach())
    assert torch.equal(gradient, (up.float() @ dense(linear.codes, linear.weight_scale_inv)).bfloat16())
    assert gradient.abs().min() > 0 and torch.equal(linear.bias.grad, up.sum(0))
    assert linear.weight.grad is None


@pytest.mark.parametrize("native", [False, True])
def test_the_transforms_of_torch_func_have_the_same_gradient(native):
    linear = layer(256, 128, native_quant=native)
    x, up = torch.randn(3, 4, 256).bfloat16(), torch.randn(3, 4, 128).bfloat16()

    def loss(x, up):
        return (linear(x) * up).sum()

    _, want = gradient_of(linear, x, up)
    gradient, value = torch.func.grad_and_value(loss)(x, up)
    assert torch.equal(gradient, want) and torch.equal(value, loss(x, up))
    assert torch.equal(torch.func.vmap(torch.func.grad(loss), in_dims=(1, 1), out_dims=1)(x, up), want)
    assert torch.equal(torch.func.vjp(linear, x)[1](up)[0], want)


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_a_forward_mode_derivative_is_the_same_product(native, grad):
    linear = layer(256, 128, native_quant=native)
    x, tangent = torch.randn(4, 256).bfloat16(), torch.randn(4, 256).bfloat16()
    want = (tangent.float() @ dense(linear.codes, linear.weight_scale_inv).t()).bfloat16()
    value, along = torch.func.jvp(linear, (x,), (tangent,))
    assert torch.equal(value, linear(x)) and torch.equal(along, want) and along.abs().max() > 0
    with torch.set_grad_enabled(grad), forward_ad.dual_level():
        dual = linear(forward_ad.make_dual(x, tangent))
        assert torch.equal(forward_ad.unpack_dual(dual).tangent, want)
        assert forward_ad.unpack_dual(linear(x)).tangent is None

    def one(row, its_tangent):
        return torch.func.jvp(lambda row: linear(row[None])[0], (row,), (its_tangent,))[1]

    assert torch.equal(torch.func.vmap(one)(x, tangent), want)
    weight = dense(linear.codes, linear.weight_scale_inv).bfloat16()
    assert torch.equal(torch.func.jacfwd(lambda row: linear(row[None])[0])(x[0]), weight)
    assert torch.equal(torch.func.jacrev(lambda row: linear(row[None])[0])(x[0]), weight)
    curved = torch.func.hessian(lambda row: (linear(row[None]).double() ** 2).sum())(x[0]).float()
    exact = 2 * weight.float().t() @ weight.float()
    assert (curved - exact).norm() < 2.0**-7 * exact.norm()  # each derivative is rounded to bf16


@pytest.mark.parametrize("native", [False, True])
def test_a_compiled_layer_does_not_lose_a_forward_mode_derivative(native):
    linear = layer(256, 128, native_quant=native)
    x, tangent = torch.randn(4, 256).bfloat16(), torch.randn(4, 256).bfloat16()
    want = (tangent.float() @ dense(linear.codes, linear.weight_scale_inv).t()).bfloat16()
    torch._dynamo.reset()
    with forward_ad.dual_level():
        dual = torch.compile(linear, backend="eager")(forward_ad.make_dual(x, tangent))
        assert torch.equal(forward_ad.unpack_dual(dual).tangent, want)
        torch._dynamo.reset()
        with pytest.raises(torch._dynamo.exc.Unsupported):
            torch.compile(linear, backend="eager", fullgraph=True)(forward_ad.make_dual(x, tangent))
    torch._dynamo.reset()
    assert torch.equal(torch.compile(linear, backend="eager", fullgraph=True)(x), linear(x))


@pytest.mark.parametrize("native", [False, True])
def test_an_input_in_any_layout_is_taken_as_a_linear_layer_takes_it(native):
    linear = layer(256, 128, native_quant=native)
    x = torch.randn(3, 256).bfloat16()
    assert torch.equal(linear(x.t().contiguous().t()), linear(x))
    per_column = torch.func.vmap(torch.func.grad(lambda row: linear(row[None]).sum()), in_dims=1, out_dims=1)
    assert torch.equal(per_column(x.t().contiguous()), gradient_of(linear, x, torch.ones(3, 128).bfloat16())[1].t())


def test_a_weight_that_is_to_be_trained_is_an_error_that_says_what_can_be():
    linear = layer(256, 128)
    with pytest.raises(TypeError, match=r"bytes of FP8 codes.*layer\.bias\.requires_grad_\(\)"):
        linear.requires_grad_()
    linear.bias.requires_grad_()
    assert linear.requires_grad_(False) is linear and not linear.bias.requires_grad


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("given", [torch.float32, torch.float16, torch.bfloat16])
def test_autocast_casts_the_input_as_of_a_linear_layer(given, compiled):
    linear = layer(256, 128)
    plain, x = nn.Linear(256, 128), torch.randn(3, 256).to(given)
    torch._dynamo.reset()
    call = torch.compile(linear, backend="aot_eager", fullgraph=True) if compiled else linear
    with torch.autocast("cpu", torch.bfloat16):
        got = call(x)
        assert got.dtype == plain(x).dtype == torch.bfloat16
    assert torch.equal(got, linear(x.bfloat16()))
    assert linear(x).dtype is given
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert linear(x).dtype is given


def test_a_device_without_autocast_has_shapes_and_gradients():
    linear, x = layer(256, 128).to("meta"), torch.empty(3, 256, device="meta", requires_grad=True)
    linear(x).sum().backward()
    assert x.grad.shape == (3, 256)


def test_autocast_is_undone_in_the_gradient():
    linear, x, up = layer(256, 128), torch.randn(3, 256), torch.randn(3, 128).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        _, gradient = gradient_of(linear, x, up)
    assert gradient.dtype is torch.float32 and torch.equal(gradient, gradient_of(linear, x.bfloat16(), up)[1].float())


def test_a_site_that_trains_is_still_told():
    """The layer's own gradient does not hide its quantisation from the pass."""
    linear, weight = layer(256, 128), torch.ones(256, dtype=torch.bfloat16)
    x = torch.randn(4, 256).bfloat16().requires_grad_()
    report = explain(lambda x: linear(nn.functional.rms_norm(x, (256,), weight, 1e-6)), x, devices="cpu")
    assert [site.code for site in report.refused] == ["training"]


def test_tensor_parallelism_and_ddp_over_gloo(tmp_path):
    """Two processes: `sharded_linear.py` says what each holds."""
    script = Path(__file__).with_name("sharded_linear.py")
    root = str(script.parents[1])
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(tmp_path / "meeting")],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "PYTHONPATH": root},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        told = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(told)
