"""Specs validate themselves, and the presets are the contracts their sources state."""

import re

import pytest
import torch

from fusionlib import GatedNorm, GroupQuant, SpecError


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"norm_size": 0}, ["norm_size=0", "positive integer"]),
        ({"norm_size": 12.8}, ["norm_size=12.8", "positive integer"]),
        ({"norm_size": True}, ["norm_size=True"]),
        ({"eps": -1e-6}, ["eps=-1e-06", ">= 0"]),
        ({"eps": float("nan")}, ["eps=nan", "finite"]),
        ({"activation": "gelu"}, ["activation='gelu'", "'silu'", "'sigmoid'"]),
        ({"weight_offset": 2}, ["weight_offset=2", "0, 1"]),
        ({"rounding": {"bf16"}}, ["rounding='bf16'", "'output'"]),
        ({"rounding": {"gate"}}, ["'gate'", "norm_before_gate", "'output'"]),
        ({"rounding": {"weight"}, "norm_before_gate": False}, ["'weight'", "gate-first", "'output'"]),
    ],
)
def test_gated_norm_refuses(changes, names):
    with pytest.raises(SpecError) as error:
        GatedNorm(**{"norm_size": 128, **changes})
    for name in names:
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"group_size": -128}, ["group_size=-128", "positive integer"]),
        ({"dtype": torch.int8}, ["dtype=torch.int8", "float8_e4m3fn"]),
        ({"floor": 0.0}, ["floor=0.0", "None for no floor"]),
        ({"floor": float("inf")}, ["floor=inf", "finite"]),
        ({"floor": 1e-38}, ["floor=1e-38", "at least 1e-30", "None for no floor"]),
        ({"floor_on": "max"}, ["floor_on='max'", "'amax'", "'scale'"]),
        ({"division": "approx"}, ["division='approx'", "'reciprocal'"]),
        ({"scale_format": "e8m0"}, ["scale_format='e8m0'", "'ue8m0'"]),
        ({"scale_layout": "blocked"}, ["scale_layout='blocked'", "'column_major'"]),
        ({"fp8_max": 240.0}, ["fp8_max=240.0", "448.0"]),
        ({"scale_layout": "packed_int32"}, ["packs exponents", "scale_format='ue8m0'"]),
    ],
)
def test_group_quant_refuses(changes, names):
    with pytest.raises(SpecError) as error:
        GroupQuant(**changes)
    for name in names:
        assert name in str(error.value)


def test_specs_are_values():
    assert GatedNorm(128, rounding={"output"}) == GatedNorm.vllm()
    assert len({GatedNorm.vllm(), GatedNorm(128), GatedNorm.vllm(eps=1e-5)}) == 2
    assert GroupQuant().with_layout("column_major") != GroupQuant()
    with pytest.raises(AttributeError):
        GatedNorm.vllm().eps = 1.0


def test_a_norm_prints_the_same_in_every_process_and_reads_back():
    for norm in (GatedNorm.qwen3_next(), GatedNorm.mamba2(1024), GatedNorm(64, rounding=())):
        assert eval(repr(norm)) == norm
    assert repr(GatedNorm.qwen3_next()).endswith("rounding={'norm', 'weight', 'output'})")


def test_rounding_text_is_in_the_order_of_the_computation():
    assert GatedNorm.qwen3_next().rounding_text == "norm,weight,output"
    assert GatedNorm.mamba2(1024).rounding_text == "norm,output"
    assert GatedNorm(128, rounding=()).rounding_text == ""


def test_limit_is_the_formats_own_maximum_unless_said_otherwise():
    for dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2):
        assert GroupQuant(dtype=dtype).limit == torch.finfo(dtype).max
    assert GroupQuant.vllm_native(dtype=torch.float8_e4m3fnuz).limit == 224.0


def test_every_preset_names_its_source():
    presets = [
        *(GatedNorm.__dict__[name] for name in ("vllm", "qwen3_next", "kimi_linear", "mamba2")),
        *(GroupQuant.__dict__[name] for name in ("vllm", "vllm_native", "aiter", "deepgemm", "torchao")),
    ]
    for preset in presets:
        doc = preset.__func__.__doc__
        assert re.search(r"Source: |PR #\d+", doc), doc
