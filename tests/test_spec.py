"""Specs validate themselves, and the presets are the contracts their sources state."""

import re
from dataclasses import replace

import numpy
import pytest
import torch

from fusionlib import ActAndMul, GatedNorm, GroupQuant, RMSNorm, SpecError, reference
from tests.support import same


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"norm_size": 0}, ["norm_size=0", "positive integer"]),
        ({"norm_size": 12.8}, ["norm_size=12.8", "positive integer"]),
        ({"norm_size": True}, ["norm_size=True"]),
        ({"norm_size": 2**63}, ["norm_size=9223372036854775808", "at most 2^31 - 1"]),
        ({"norm_size": 10**5000}, ["norm_size=<int>", "at most"]),
        ({"norm_size": numpy.int64(128)}, ["norm_size=np.int64(128)", "a Python int"]),
        ({"norm_size": [128]}, ["norm_size=[128]"]),
        ({"eps": -1e-6}, ["eps=-1e-06", "must be 0", "1e-6"]),
        ({"eps": float("nan")}, ["eps=nan", "finite"]),
        ({"eps": float("inf")}, ["eps=inf", "finite"]),
        ({"eps": 1e39}, ["eps=1e+39", "not finite in float32", "1e-6"]),
        ({"eps": 10**400}, ["eps=1000", "(401 characters)", "not finite in float32"]),
        ({"eps": 1e-50}, ["eps=1e-50", "1.17549e-38", "1e-6"]),
        ({"eps": "1e-6"}, ["eps='1e-6'", "float(...)"]),
        ({"eps": True}, ["eps=True", "number"]),
        ({"eps": None}, ["eps=None", "number"]),
        ({"eps": numpy.float32(1e-6)}, ["eps=np.float32(1e-06)", "float(...)"]),
        ({"eps": torch.tensor([1e-6, 1e-5])}, ["eps=tensor(", "float(...)"]),
        ({"activation": ["silu"]}, ["activation=['silu']", "'sigmoid'"]),
        ({"norm_before_gate": "yes"}, ["norm_before_gate='yes'", "True or False"]),
        ({"norm_before_gate": 1}, ["norm_before_gate=1", "True or False"]),
        ({"weight_offset": 1.0}, ["weight_offset=1.0", "0, 1"]),
        ({"weight_offset": True}, ["weight_offset=True", "0, 1"]),
        ({"weight_offset": torch.ones(2)}, ["weight_offset=tensor(", "0, 1"]),
        ({"rounding": None}, ["rounding=None", "{'output'}"]),
        ({"rounding": "output"}, ["rounding='output'", "set", "{'output'}"]),
        ({"rounding": 3}, ["rounding=3", "{'output'}"]),
        ({"rounding": [["output"]]}, ["rounding=['output']", "'weight'"]),
        ({"rounding": {"output", 1}}, ["rounding=1", "'weight'"]),
        ({"out_dtype": torch.float64}, ["out_dtype=torch.float64", "None", "torch.bfloat16"]),
        ({"out_dtype": "bfloat16"}, ["out_dtype='bfloat16'", "torch.bfloat16"]),
        ({"out_dtype": torch.bfloat16, "rounding": {"norm"}}, ["out_dtype=torch.bfloat16", "'output'"]),
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
        ({"norm_size": 0}, ["norm_size=0", "positive integer"]),
        ({"norm_size": True}, ["norm_size=True"]),
        ({"norm_size": 2**63}, ["at most 2^31 - 1"]),
        ({"eps": -1e-6}, ["eps=-1e-06", "must be 0"]),
        ({"eps": float("nan")}, ["eps=nan", "finite"]),
        ({"eps": 1e-50}, ["eps=1e-50", "1.17549e-38"]),
        ({"eps": "1e-6"}, ["eps='1e-6'", "float(...)"]),
        ({"weight_offset": 2}, ["weight_offset=2", "0, 1"]),
        ({"weight_offset": True}, ["weight_offset=True", "0, 1"]),
        ({"rounding": "output"}, ["rounding='output'", "set"]),
        ({"rounding": {"weight"}}, ["rounding='weight'", "'sum'", "'norm'", "'output'"]),
        ({"rounding": {"sum", "gate"}}, ["rounding='gate'", "'sum'"]),
        ({"out_dtype": torch.float64}, ["out_dtype=torch.float64", "torch.bfloat16"]),
        ({"out_dtype": torch.bfloat16, "rounding": {"sum"}}, ["out_dtype=torch.bfloat16", "'output'"]),
    ],
)
def test_rms_norm_refuses(changes, names):
    with pytest.raises(SpecError) as error:
        RMSNorm(**{"norm_size": 128, **changes})
    for name in names:
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"activation": "relu"}, ["activation='relu'", "'silu'", "'sigmoid'", "'gelu'", "'gelu_tanh'"]),
        ({"activation": ["silu"]}, ["activation=['silu']"]),
        ({"rounding": "output"}, ["rounding='output'", "set"]),
        ({"rounding": {"norm"}}, ["rounding='norm'", "'activation'", "'output'"]),
        ({"out_dtype": "bfloat16"}, ["out_dtype='bfloat16'", "torch.bfloat16"]),
        ({"out_dtype": torch.bfloat16, "rounding": {"activation"}}, ["out_dtype=torch.bfloat16", "'output'"]),
    ],
)
def test_act_and_mul_refuses(changes, names):
    with pytest.raises(SpecError) as error:
        ActAndMul(**changes)
    for name in names:
        assert name in str(error.value)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"group_size": -128}, ["group_size=-128", "positive integer"]),
        ({"dtype": torch.int8}, ["dtype=torch.int8", "float8_e4m3fn"]),
        ({"group_size": 2**63}, ["group_size=9223372036854775808", "at most 2^31 - 1"]),
        ({"dtype": [torch.float8_e4m3fn]}, ["dtype=[torch.float8_e4m3fn]", "torch.float8_e5m2"]),
        ({"floor": 0.0}, ["floor=0.0", "None for no floor"]),
        ({"floor": float("inf")}, ["floor=inf", "finite", "None for no floor"]),
        ({"floor": float("nan")}, ["floor=nan", "finite", "None for no floor"]),
        ({"floor": 1e39}, ["floor=1e+39", "not finite in float32", "at most 1e+30"]),
        ({"floor": 1e35}, ["floor=1e+35", "at most 1e+30"]),
        ({"floor": "1e-6"}, ["floor='1e-6'", "float(...)"]),
        ({"floor": True}, ["floor=True", "number"]),
        ({"fp8_max": True}, ["fp8_max=True", "448.0"]),
        ({"fp8_max": "448"}, ["fp8_max='448'", "448.0"]),
        ({"round_scale": 1}, ["round_scale=1", "True or False"]),
        ({"scale_division": "approx"}, ["scale_division='approx'", "'reciprocal'"]),
        ({"scale_layout": {}}, ["scale_layout={}", "'vector'"]),
        ({"floor": 1e-38}, ["floor=1e-38", "at least 1e-30", "None for no floor"]),
        ({"floor_on": "max"}, ["floor_on='max'", "'amax'", "'scale'"]),
        ({"division": "approx"}, ["division='approx'", "'reciprocal'"]),
        ({"scale_format": "e8m0"}, ["scale_format='e8m0'", "'ue8m0'"]),
        ({"scale_layout": "blocked"}, ["scale_layout='blocked'", "'column_major'"]),
        ({"fp8_max": 240.0}, ["fp8_max=240.0", "448.0"]),
        ({"nan_scale": "zero"}, ["nan_scale='zero'", "'largest'"]),
        ({"nan_scale": "largest"}, ["nan_scale='largest'", "scale_format='float32'", "scale_format='ue8m0'"]),
        ({"scale_layout": "packed_int32"}, ["packs exponents", "scale_format='ue8m0'"]),
    ],
)
def test_group_quant_refuses(changes, names):
    with pytest.raises(SpecError) as error:
        GroupQuant(**changes)
    for name in names:
        assert name in str(error.value)


def test_numbers_are_floats_however_they_are_given():
    """So that specs which are equal print and hash the same, and an op's schema takes them."""
    specs = [GatedNorm(64, eps) for eps in (0, 0.0, -0.0, numpy.float64(0))]
    assert len({repr(spec) for spec in specs}) == len(set(specs)) == 1
    assert all(type(spec.eps) is float for spec in specs)
    quant = GroupQuant(floor=numpy.float64(1e-4), fp8_max=448)
    assert (type(quant.floor), type(quant.fp8_max)) == (float, float)


def test_a_preset_names_a_wrong_dtype():
    with pytest.raises(SpecError, match=r"dtype=torch\.int8"):
        GroupQuant.vllm_native(dtype=torch.int8)


@pytest.mark.parametrize(
    ("changes", "dtype", "floor"),
    [
        ({"round_scale": True}, torch.float16, None),
        ({"round_scale": True}, torch.bfloat16, 1e-10),
        ({"round_scale": True}, torch.float32, 1e-10),
        ({}, torch.float16, 1e-10),
        ({"round_scale": True, "floor_on": "scale"}, torch.float16, 1e-10),
        ({"round_scale": True, "floor": 1e-2}, torch.float16, 1e-2),
        ({"round_scale": True, "floor": 1e-2, "dtype": torch.float8_e5m2}, torch.float16, 1e-2),
        ({"round_scale": True, "floor": 1e-3, "dtype": torch.float8_e5m2}, torch.float16, None),
        ({"round_scale": True, "floor": None}, torch.float16, None),
    ],
)
def test_a_floor_binds_as_the_scales_rounding_leaves_it(changes, dtype, floor):
    """Where it binds, zeros have finite codes; where not, PyTorch makes NaN of them, with the floor and without."""
    quant = GroupQuant(4, **changes)
    assert quant.floor_in(dtype) == floor
    y = torch.tensor([[0.0] * 4, [1e-6, -3e-7, 0.0, 6e-8]]).to(dtype)
    codes, scale = reference.group_quant(y, quant)
    assert codes[0].float().isnan().all() == (floor is None)
    without = reference.group_quant(y, replace(quant, floor=floor))
    assert same(codes, without[0]) and same(scale, without[1])


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
    for spec in (RMSNorm.llama(2048), RMSNorm.vllm(64), RMSNorm(8, rounding=()), ActAndMul.geglu(), ActAndMul.swiglu()):
        assert eval(repr(spec)) == spec
    assert repr(RMSNorm.llama(8)).endswith("rounding={'sum', 'norm', 'output'})")


def test_rounding_text_is_in_the_order_of_the_computation():
    assert GatedNorm.qwen3_next().rounding_text == "norm,weight,output"
    assert GatedNorm.mamba2(1024).rounding_text == "norm,output"
    assert GatedNorm(128, rounding=()).rounding_text == ""
    assert RMSNorm.llama(8).rounding_text == "sum,norm,output" and RMSNorm.vllm(8).rounding_text == "norm,output"
    assert ActAndMul.swiglu().rounding_text == "activation,output"


def test_the_output_has_the_dtype_it_is_rounded_to():
    for spec in (RMSNorm, ActAndMul):
        size = (8,) if spec is RMSNorm else ()
        assert spec(*size).output_dtype(torch.bfloat16) is torch.bfloat16
        assert spec(*size, rounding=frozenset()).output_dtype(torch.bfloat16) is torch.float32
        assert spec(*size, out_dtype=torch.float16).output_dtype(torch.float32) is torch.float16


def test_limit_is_the_formats_own_maximum_unless_said_otherwise():
    for dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2):
        assert GroupQuant(dtype=dtype).limit == torch.finfo(dtype).max
    assert GroupQuant.vllm_native(dtype=torch.float8_e4m3fnuz).limit == 224.0


def test_every_preset_names_its_source():
    presets = [
        *(GatedNorm.__dict__[name] for name in ("vllm", "qwen3_next", "kimi_linear", "mamba2")),
        *(RMSNorm.__dict__[name] for name in ("native", "llama", "qwen3_next", "vllm")),
        *(ActAndMul.__dict__[name] for name in ("swiglu", "geglu", "sigmoid_gate")),
        *(GroupQuant.__dict__[name] for name in ("vllm", "vllm_native", "aiter", "deepgemm", "torchao")),
    ]
    for preset in presets:
        doc = preset.__func__.__doc__
        assert re.search(r"Source: |PR #\d+", doc), doc
