"""`unsupported` is None where the op runs and a reason where it does not; it is the only place that decides."""

import pytest
import torch

import fusionlib
from fusionlib import ActAndMul, GatedNorm, GroupQuant, RMSNorm, contract
from tests.support import good


def test_cpu_runs_whatever_fits_the_contract():
    arguments = good()
    assert fusionlib.unsupported(**arguments) is None
    assert "norm_size=96" in fusionlib.unsupported(**(arguments | {"norm": GatedNorm(96)}))


def test_another_device_is_named():
    arguments = good()
    for name in ("x", "gate", "weight"):
        arguments[name] = arguments[name].to("meta")
    assert "'meta'" in fusionlib.unsupported(**arguments)


@pytest.mark.parametrize(
    ("shape", "norm_size", "group_size", "words"),
    [
        ((1, 127 * 256), 127, 256, ["norm_size=127", "group_size=256", "32512", "16384", "smaller"]),
        ((1, 32768), 128, 32768, ["32768", "16384"]),
        ((2**25, 64, 128), 128, 128, ["32-bit", "split"]),
    ],
)
def test_what_the_kernel_cannot_do(shape, norm_size, group_size, words):
    x = torch.empty(shape, device="meta")
    problem = contract.kernel_problem(x, x, None, None, GatedNorm(norm_size), GroupQuant(group_size))
    for word in words:
        assert word in problem


@pytest.mark.parametrize(
    ("shape", "norm_size", "group_size", "words"),
    [
        ((1, 32768), 32768, 128, ["norm_size=32768", "32768", "16384"]),
        ((1, 127 * 256), 127, 256, ["norm_size=127", "32512"]),
        ((1, 16384), 16384, 128, None),
        ((2**31, 128), 128, 128, ["32-bit", "split"]),
    ],
)
def test_what_the_rms_norms_kernel_cannot_do(shape, norm_size, group_size, words):
    x = torch.empty(shape, device="meta", dtype=torch.bfloat16)
    check(contract.rms_norm_kernel_problem(x, None, None, None, RMSNorm(norm_size), GroupQuant(group_size)), words)


@pytest.mark.parametrize(
    ("shape", "group_size", "words"),
    [
        ((1, 32768), 32768, ["group_size=32768", "16384"]),
        ((1, 32768), 128, None),
        ((2**25, 64 * 128), 128, ["32-bit", "split"]),
    ],
)
def test_what_the_products_kernel_cannot_do(shape, group_size, words):
    x = torch.empty(shape, device="meta", dtype=torch.bfloat16)
    check(contract.act_and_mul_kernel_problem(x, x, ActAndMul(), GroupQuant(group_size)), words)


def test_interleaved_halves_take_one_level_of_strides_of_the_two():
    wide = torch.empty(2, 4, 2, 64)
    halves = {
        "every other": wide.flatten(1)[:, ::2],
        "every other of heads": torch.empty(2, 4, 256)[:, :, :64:2],
        "of heads in groups": torch.empty(2, 3, 4, 256)[:, :2, :2, :64:2],
    }
    for name, x in halves.items():
        spec, quant = RMSNorm(x[0].numel()), GroupQuant(32)
        assert contract.rms_norm_problem(x, None, None, None, spec, quant) is None
        problem = contract.rms_norm_kernel_problem(x, None, None, None, spec, quant)
        check(problem, ["x.contiguous()"] if name == "of heads in groups" else None)
        other = torch.empty(2, x[0].numel())
        problem = contract.act_and_mul_kernel_problem(other, x, ActAndMul(), quant)
        check(problem, ["gate.contiguous()"] if name == "of heads in groups" else None)


def test_too_many_levels_of_strides():
    gate = torch.empty(2, 3, 5, 7, 11).as_strided((2, 2, 2, 2, 4), (1155, 385, 77, 11, 1))
    x = torch.empty(2, 32)
    assert "gate.contiguous()" in contract.kernel_problem(x, gate, None, None, GatedNorm(32), GroupQuant(32))


@pytest.mark.parametrize(
    ("capability", "dtype", "words"),
    [
        ((8, 0), torch.float8_e4m3fn, ["8.0", "8.9"]),
        ((9, 0), torch.float8_e4m3fnuz, ["NVIDIA", "float8_e4m3fn"]),
        ((9, 0), torch.float8_e4m3fn, None),
    ],
)
def test_what_an_nvidia_device_cannot_do(monkeypatch, capability, dtype, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", None)
    check(contract.device_problem(torch.device("cuda"), dtype), words)


@pytest.mark.parametrize(
    ("arch", "dtype", "words"),
    [
        ("gfx942:sramecc+", torch.float8_e4m3fn, ["gfx942", "e4m3fnuz"]),
        ("gfx942", torch.float8_e4m3fnuz, None),
        ("gfx950", torch.float8_e4m3fn, None),
        ("gfx950", torch.float8_e4m3fnuz, ["gfx950", "e4m3fn"]),
    ],
)
def test_what_a_rocm_device_cannot_do(monkeypatch, arch, dtype, words):
    properties = type("Properties", (), {"gcnArchName": arch})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    check(contract.device_problem(torch.device("cuda"), dtype), words)


def check(problem, words):
    if words is None:
        assert problem is None
    else:
        assert all(word in problem for word in words), problem
