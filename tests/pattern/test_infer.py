"""Head counts and head dimensions are inferred from layers, ours and other people's."""

import importlib

import pytest
import torch
from torch import nn

from fusionlib import GatedNorm, GroupQuant
from fusionlib.layers import AttentionOutput, RMSNormGated
from fusionlib.pattern import HeadShape, infer


def test_layers_of_ours_in_model_order_without_repetition():
    model = nn.Sequential(
        AttentionOutput(4, 128, 256), AttentionOutput(4, 128, 256), AttentionOutput(2, 64, 128, native_quant=True)
    )
    inferred = infer(model)
    assert inferred.shapes == (HeadShape(4, GatedNorm.vllm(128)), HeadShape(2, GatedNorm.vllm(64)))
    assert inferred.quants == tuple(
        GroupQuant.vllm(128).with_layout(layout) for layout in ("column_major_padded", "column_major")
    )
    assert inferred.skipped == ()


class FakeRMSNormGated(nn.Module):
    def __init__(self, size: int, **attributes) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        for name, value in attributes.items():
            setattr(self, name, value)


def block(norm: nn.Module, inputs: int | None = 512, name: str = "o_proj") -> nn.Module:
    parent = nn.Module()
    parent.o_norm = norm
    if inputs is not None:
        setattr(parent, name, nn.Linear(inputs, 8, bias=False))
    return nn.ModuleDict({"layer": parent})


def test_any_gated_norm_by_its_looks():
    found = infer(block(FakeRMSNormGated(128, eps=1e-5, activation="sigmoid"))).shapes
    assert found == (HeadShape(4, GatedNorm.vllm(128, 1e-5, "sigmoid")),)
    assert found[0].head_dim == 128


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (block(FakeRMSNormGated(128)), "no epsilon"),
        (block(FakeRMSNormGated(128, eps=1e-5), None), "no projection (out_proj or o_proj)"),
        (block(FakeRMSNormGated(128, eps=1e-5), 500), "500 inputs are no whole number of heads of 128"),
        (block(FakeRMSNormGated(512, variance_epsilon=1e-5, group_size=128)), "Mamba2"),
        (block(FakeRMSNormGated(128, eps=1e-5, activation="gelu")), "'gelu' is neither"),
        (block(RMSNormGated(512, GatedNorm.vllm(128))), "one mean covers 128 of 512"),
    ],
)
def test_what_is_not_known_is_said(model, says):
    inferred = infer(model)
    assert inferred.shapes == ()
    assert inferred.skipped[0].startswith("layer.o_norm: ") and says in inferred.skipped[0]


def test_transformers_qwen3_next():
    pytest.importorskip("transformers")
    modeling = importlib.import_module("transformers.models.qwen3_next.modeling_qwen3_next")
    configuration = importlib.import_module("transformers.models.qwen3_next.configuration_qwen3_next")
    config = configuration.Qwen3NextConfig(
        hidden_size=64,
        linear_num_value_heads=8,
        linear_num_key_heads=4,
        linear_key_head_dim=32,
        linear_value_head_dim=128,
    )
    inferred = infer(nn.ModuleDict({"attention": modeling.Qwen3NextGatedDeltaNet(config, 0)}))
    assert inferred.shapes == (HeadShape(8, GatedNorm.vllm(128, config.rms_norm_eps)),)
