"""quantize_linears: which layers become block-FP8, what is said of the others, and that an error changes nothing."""

import subprocess
import sys

import pytest
import torch
from torch import nn

from fusionlib import GroupQuant
from fusionlib.layers import BlockFP8Linear, quantise_blocks
from fusionlib.models import quantize_linears
from fusionlib.models.quantize import _linears
from tests.models.small import build

transformers = pytest.importorskip("transformers")


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(256)
        self.qkv_proj = nn.Linear(256, 384)
        self.out_proj = nn.Linear(384, 200, bias=False)
        self.gate = nn.Linear(256, 128)
        self.down = nn.Linear(200, 256)
        self.few = nn.Linear(256, 8)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(128, 256)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.lm_head = nn.Linear(256, 128)


def kinds(model):
    return {name: type(module) for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def taken(report):
    return [entry.name for entry in report.replaced]


def test_the_defaults_keep_routers_heads_and_what_is_less_than_a_block():
    model = Model().bfloat16().eval()
    want, bias = quantise_blocks(model.blocks[1].qkv_proj.weight.detach()), model.blocks[1].qkv_proj.bias.clone()
    report = quantize_linears(model)
    assert taken(report) == [f"blocks.{i}.{name}" for i in range(2) for name in ("qkv_proj", "out_proj", "down")]
    now = model.blocks[1].qkv_proj
    assert isinstance(now, BlockFP8Linear) and torch.equal(now.codes.float(), want[0].float())
    assert torch.equal(now.weight_scale_inv, want[1]) and torch.equal(now.bias, bias) and not now.training
    assert type(model.blocks[0].gate) is type(model.lm_head) is type(model.blocks[0].few) is nn.Linear
    left = {entry.name: entry.reason for entry in report.left}
    assert "'gate'" in left["blocks.0.gate"] and "'lm_head'" in left["lm_head"]
    assert "[8, 256] is less than one block" in left["blocks.1.few"]
    padded = {entry.name: entry.padded for entry in report.replaced}
    assert padded["blocks.0.out_proj"] == "out_features 200 padded to 256" and not padded["blocks.0.qkv_proj"]
    assert "in_features 200" in padded["blocks.0.down"] and "fuses with no producer" in padded["blocks.0.down"]
    assert report.bytes_before > 1.5 * report.bytes_after > 0
    text = str(report)
    assert "block-FP8 blocks.*.qkv_proj x 2: [384, 256] from Linear" in text
    assert "left      blocks.*.gate x 2: kept in bfloat16: 'gate' is in fusionlib.models.KEPT" in text


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("lm_head", (), ["lm_head"]),
        (["*.gate", "few"], "blocks.1.*", ["blocks.0.gate", "blocks.0.few"]),
        ("blocks.0.*", ["*_proj"], ["blocks.0.down"]),
        ("*", ["blocks.0.*", "blocks.1.out_proj"], ["blocks.1.qkv_proj", "blocks.1.down"]),
    ],
)
def test_names_are_chosen_by_patterns(include, exclude, expected):
    model = Model()
    assert taken(quantize_linears(model, include, exclude)) == expected
    assert [name for name, kind in kinds(model).items() if kind is BlockFP8Linear] == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"include": "out_porj"}, ValueError, r"include='out_porj' matches no.*nearest names are out_proj"),
        ({"include": ["down", "mlp.down"]}, ValueError, r"'mlp.down' matches no"),
        ({"exclude": "blocks.*.lm_haed"}, ValueError, r"exclude='blocks.\*.lm_haed'"),
        ({"include": 3}, TypeError, "not iterable"),
        ({"include": [3]}, TypeError, r"3 must be a pattern of names"),
        ({"exclude": "*"}, ValueError, r"no linear layer of the model is to be replaced: exclude has '\*'"),
        ({"quant": "vllm"}, TypeError, "must be a fusionlib.GroupQuant"),
    ],
)
def test_an_error_says_what_is_wrong_and_changes_nothing(options, error, message):
    model = Model()
    before = dict(model.named_modules())
    with pytest.raises(error, match=message):
        quantize_linears(model, **options)
    assert dict(model.named_modules()) == before


def test_a_failure_in_the_last_layer_leaves_the_first_as_it_was():
    model = Model()
    model.blocks[1].down.to("meta")
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=r"blocks.1.down has no weight yet.*load the model first"):
        quantize_linears(model)
    assert dict(model.named_modules()) == before


def test_what_is_more_than_a_linear_layer_is_left():
    model = Model()
    model.blocks[0].down.register_forward_hook(lambda *_: None)
    model.blocks[1].down = type("LoraLinear", (nn.Linear,), {})(200, 256)
    model.blocks[0].experts = nn.ParameterDict({"gate_up": nn.Parameter(torch.zeros(2, 8, 8))})
    left = {entry.name: entry.reason for entry in quantize_linears(model).left}
    assert "hooks" in left["blocks.0.down"] and "LoraLinear is more than" in left["blocks.1.down"]
    assert "holds gate_up as one tensor" in left["blocks.0.experts"]
    own = Model()
    own.blocks[0].down.register_full_backward_hook(lambda *_: None)
    own.blocks[1].down.forward = torch.tanh
    left = {entry.name: entry.reason for entry in quantize_linears(own).left}
    assert all("hooks or a forward of its own" in left[f"blocks.{i}.down"] for i in range(2))
    again = quantize_linears(model, ["gate", "qkv_proj"])
    assert taken(again) == ["blocks.0.gate", "blocks.1.gate"]
    assert {entry.name: entry.reason for entry in again.left}["blocks.0.qkv_proj"] == "block-FP8 already"


def test_weights_that_another_module_multiplies_with_are_left():
    """PyTorch's own encoder layer reads them in its fast path."""
    model = nn.Sequential(nn.TransformerEncoderLayer(128, 1, 256, batch_first=True), nn.Linear(128, 128)).eval()
    with torch.no_grad():
        report = quantize_linears(model)
        assert taken(report) == ["1"] and model(torch.randn(1, 3, 128)).isfinite().all()
    assert {entry.name for entry in report.left if "multiplies with its weight itself" in entry.reason} == {
        "0.linear1",
        "0.linear2",
    }


def test_bytes_are_those_of_the_weights_and_not_of_what_they_are_parts_of():
    whole = torch.randn(4, 128, 128)
    model = nn.Sequential(*(nn.Linear(128, 128, bias=False) for _ in range(4)))
    for linear, weight in zip(model, whole, strict=True):
        linear.weight = nn.Parameter(weight)
    assert quantize_linears(model).bytes_before == 4 * 128 * 128 * 4


def test_a_block_that_is_used_twice_is_replaced_in_both_places():
    model = Model()
    model.blocks.append(model.blocks[0])
    report = quantize_linears(model, "qkv_proj")
    assert taken(report) == ["blocks.0.qkv_proj", "blocks.1.qkv_proj"]
    assert model.blocks[2].qkv_proj is model.blocks[0].qkv_proj and isinstance(model.blocks[2].qkv_proj, BlockFP8Linear)
    with pytest.raises(ValueError, match="exclude has"):
        quantize_linears(Model(), "lm_head", "lm_head")


def test_the_activation_quantisation_is_the_callers():
    model, quant = Model(), GroupQuant.deepgemm()
    quantize_linears(model, "down", quant=quant, native_quant=True)
    assert model.blocks[0].down.quant is quant and model.blocks[0].down.native_quant


def test_a_model_that_is_a_linear_layer_cannot_be_replaced_in_place():
    with pytest.raises(ValueError, match="from_linear"):
        quantize_linears(nn.Linear(128, 128))
    with pytest.raises(TypeError, match=r"nn\.Module"):
        quantize_linears("model")


# A block-FP8 checkpoint.


def checkpoint_layer(inputs, outputs, scale_fmt="float", **options):
    """transformers' layer with what a checkpoint would load into it."""
    from transformers.integrations.finegrained_fp8 import FP8Linear

    layer = FP8Linear(inputs, outputs, **{"block_size": (128, 128), "scale_fmt": scale_fmt, **options})
    codes, scale = quantise_blocks(torch.randn(outputs, inputs))
    if scale_fmt == "ue8m0":
        scale = scale.to(torch.float8_e8m0fnu)
    if options.get("block_size", True) is not None:
        layer.weight_scale_inv.data = scale
    layer.weight.data = codes
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("scale_fmt", ["float", "ue8m0"])
@pytest.mark.parametrize(("inputs", "outputs", "bias"), [(256, 384, False), (256, 200, True)])
def test_a_checkpoints_layer_keeps_its_codes_and_scales(scale_fmt, inputs, outputs, bias):
    layer = checkpoint_layer(inputs, outputs, scale_fmt, has_bias=bias)
    model = nn.ModuleDict({"gate": layer})  # also under a name that is kept in 16 bits: the checkpoint decided
    report = quantize_linears(model)
    ours, x = model["gate"], torch.randn(3, inputs).bfloat16()
    assert report.replaced[0].was == "FP8Linear" and isinstance(ours, BlockFP8Linear)
    assert torch.equal(ours.codes.float(), layer.weight.float())
    assert torch.equal(ours.weight_scale_inv, layer.weight_scale_inv.float())
    plain = BlockFP8Linear(layer.weight.detach(), layer.weight_scale_inv.detach(), bias=layer.bias)
    assert torch.equal(ours(x), plain(x))
    state = layer.state_dict()
    assert set(state) == set(ours.state_dict())
    fresh = BlockFP8Linear.from_linear(nn.Linear(inputs, outputs, bias=bias))
    fresh.load_state_dict(state)  # the other way: a model in block-FP8 takes the checkpoint's own tensors
    assert torch.equal(fresh(x), ours.to(fresh.bias.dtype if bias else x.dtype)(x))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"block_size": None}, "one scale for its weight"),
        ({"activation_scheme": "static"}, "static scale for its activations"),
    ],
)
def test_another_fp8_layer_is_left_with_the_reason(options, reason):
    model = nn.ModuleDict({"a": checkpoint_layer(256, 256, **options), "b": nn.Linear(256, 256)})
    report = quantize_linears(model)
    assert taken(report) == ["b"] and reason in report.left[0].reason


def test_a_model_of_transformers_in_a_checkpoints_layout():
    """Names, dtypes and shapes that Qwen3-Next-80B-A3B-Instruct-FP8 has: `weight` and `weight_scale_inv`."""
    model = build("qwen3_next")
    report = quantize_linears(model)
    state = model.state_dict()
    name = "model.layers.0.linear_attn.in_proj_qkvz"
    assert state[f"{name}.weight"].dtype is torch.float8_e4m3fn and state[f"{name}.weight"].shape == (768, 128)
    assert state[f"{name}.weight_scale_inv"].shape == (6, 1)
    kept = {entry.name.rpartition(".")[2] for entry in report.left}
    assert kept == {"in_proj_ba", "shared_expert_gate", "lm_head", "experts"}
    assert len(report.replaced) + len([e for e in report.left if "experts" not in e.name]) == len(_linears(model))
    other = build("qwen3_next")
    for parameter in other.parameters():
        parameter.zero_()
    quantize_linears(other)
    other.load_state_dict(state)
    ids = torch.randint(3, 128, (1, 5))
    with torch.no_grad():
        assert torch.equal(other(ids).logits, model(ids).logits)


def test_nothing_of_it_is_imported_with_fusionlib():
    code = (
        "import sys, fusionlib; assert 'fusionlib.models' not in sys.modules and 'torch' not in sys.modules;"
        "assert fusionlib.models.quantize_linears and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
