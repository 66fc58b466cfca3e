"""Which GPUs convert to FP8 is said in one place, and everybody who asks gets its answer."""

from __future__ import annotations

import pytest
import torch

from fusionlib import contract, devices
from fusionlib.commands import diagnosis
from fusionlib.devices import converts_to_fp8, fp8_problem, threads_per_warp

E4M3FN, E4M3FNUZ, E5M2 = "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"

#: (compute capability, architecture): the FP8 dtypes that it converts to, and the lanes of its warps.
GPUS = {
    "sm_80": ((8, 0), None, (), 32),
    "sm_86": ((8, 6), None, (), 32),
    "sm_89": ((8, 9), None, (E4M3FN, E5M2), 32),
    "sm_90": ((9, 0), None, (E4M3FN, E5M2), 32),
    "sm_100": ((10, 0), None, (E4M3FN, E5M2), 32),
    "gfx90a": ((9, 0), "gfx90a", (), 64),
    "gfx942": ((9, 4), "gfx942", (E4M3FNUZ, E5M2), 64),
    "gfx950": ((9, 5), "gfx950", (E4M3FN, E5M2), 64),
    "gfx1100": ((11, 0), "gfx1100", (), 32),
    "gfx1201": ((12, 0), "gfx1201", (E4M3FN, E5M2), 32),
}


@pytest.mark.parametrize("gpu", GPUS)
def test_what_a_gpu_converts_to(gpu):
    capability, arch, dtypes, lanes = GPUS[gpu]
    found = tuple(dtype for dtype in (E4M3FN, E4M3FNUZ, E5M2) if fp8_problem(dtype, capability, arch) is None)
    assert found == dtypes and converts_to_fp8(capability, arch) == bool(dtypes)
    assert threads_per_warp(arch) == lanes


@pytest.mark.parametrize(
    ("gpu", "dtype", "words"),
    [
        ("sm_80", E4M3FN, ["8.0", "8.9 or newer"]),
        ("sm_86", E5M2, ["8.6", "8.9 or newer"]),
        ("sm_100", E4M3FNUZ, ["NVIDIA", "use torch.float8_e4m3fn"]),
        ("gfx90a", E4M3FN, ["gfx90a has no conversion to FP8", "gfx94x", "gfx95x", "gfx12x"]),
        ("gfx1100", E5M2, ["gfx1100 has no conversion to FP8"]),
        ("gfx942", E4M3FN, ["gfx942", "use torch.float8_e4m3fnuz"]),
        ("gfx950", E4M3FNUZ, ["gfx950", "use torch.float8_e4m3fn"]),
    ],
)
def test_the_reason_names_the_gpu_and_the_way_out(gpu, dtype, words):
    capability, arch, *_ = GPUS[gpu]
    problem = fp8_problem(dtype, capability, arch)
    assert all(word in problem for word in words), problem


def test_on_amd_the_compute_capability_decides_nothing():
    """Theirs are numbers of their own: gfx90a has (9, 0), as a GPU that converts has elsewhere."""
    assert fp8_problem(E4M3FN, (9, 0), "gfx90a") is not None and fp8_problem(E4M3FNUZ, (0, 0), "gfx942") is None


@pytest.fixture
def on(monkeypatch):
    """A machine with the GPU of that name, as torch would show it."""

    def put(gpu: str) -> None:
        capability, arch, *_ = GPUS[gpu]
        seen = {"name": gpu, "major": capability[0], "minor": capability[1], "gcnArchName": f"{arch}:sramecc+:xnack-"}
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device=None: type("Properties", (), seen))
        monkeypatch.setattr(torch.version, "hip", None if arch is None else "7.0")

    return put


@pytest.mark.parametrize("gpu", GPUS)
def test_contract_and_doctor_agree(gpu, on):
    pytest.importorskip("triton")
    on(gpu)
    capability, arch, dtypes, _ = GPUS[gpu]
    for dtype in (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2):
        problem = contract.device_problem(torch.device("cuda"), dtype)
        assert (problem is None) == (str(dtype).removeprefix("torch.") in dtypes), problem
    seen, error = diagnosis._probe_torch()
    assert error is None and (seen.capability, seen.arch) == (capability, arch)
    assert seen.converts_to_fp8 == bool(dtypes)
    (finding,) = [f for f in diagnosis.diagnose(diagnosis.this_machine()) if f.part == "GPU"]
    assert finding.state == ("ok" if dtypes else "differs") and gpu in finding.found


@pytest.mark.parametrize("gpu", ["sm_90", "gfx942", "gfx1201"])
def test_a_launch_counts_on_the_warps_of_its_gpu(gpu, on, monkeypatch):
    launch = pytest.importorskip("fusionlib.kernels.launch")
    on(gpu)
    assert warps_of_a_launch(launch, monkeypatch) == [GPUS[gpu][3]] * 5


def warps_of_a_launch(launch, monkeypatch) -> list[int]:
    """The lanes of a warp with which each kernel chooses how it is launched."""
    from fusionlib import ActAndMul, GatedNorm, GroupQuant, RMSNorm
    from fusionlib.kernels import config

    class Chosen(Exception):
        """The launch is chosen: that is all there is to see without a GPU."""

    asked = []

    def choose(units, unit, lanes=32):
        asked.append(lanes)
        raise Chosen

    monkeypatch.setattr(launch, "choose_launch", choose)
    monkeypatch.setattr(config, "choose_launch", choose)
    monkeypatch.setattr(config, "choose_row_launch", choose)
    x, codes, scale = torch.ones(2, 128), torch.ones(2, 128), torch.ones(2, 1)
    row, row_codes = torch.ones(2, 2048), torch.ones(2, 2048)
    with pytest.raises(Chosen):
        launch.launch_fused(x, x, torch.ones(128), None, GatedNorm(128), GroupQuant(128), codes, scale, None)
    for size, tensor, out in ((128, x, codes), (2048, row, row_codes)):
        with pytest.raises(Chosen):
            launch.launch_rms_norm(tensor, None, None, None, RMSNorm(size), GroupQuant(128), out, scale, None, None)
    with pytest.raises(Chosen):
        launch.launch_act_and_mul(x, x, ActAndMul(), GroupQuant(128), codes, scale, None)
    with pytest.raises(Chosen):
        launch.launch_group_quant(x, GroupQuant(128), codes, scale)
    return asked


def test_nobody_else_decides(on, monkeypatch):
    """Another table here changes what the contract, the doctor and a launch say."""
    launch = pytest.importorskip("fusionlib.kernels.launch")
    on("sm_86")
    ampere = diagnosis.Gpu("GPU", (8, 6))
    assert contract.device_problem(torch.device("cuda"), torch.float8_e4m3fn) is not None
    assert not ampere.converts_to_fp8
    monkeypatch.setattr(devices, "NVIDIA_FP8", (8, 0))
    assert contract.device_problem(torch.device("cuda"), torch.float8_e4m3fn) is None
    assert ampere.converts_to_fp8
    on("gfx1100")
    radeon = diagnosis.Gpu("GPU", (11, 0), "gfx1100")
    assert contract.device_problem(torch.device("cuda"), torch.float8_e4m3fn) is not None
    assert not radeon.converts_to_fp8
    monkeypatch.setitem(devices.AMD_E4M3, "gfx11", E4M3FN)
    assert contract.device_problem(torch.device("cuda"), torch.float8_e4m3fn) is None
    assert radeon.converts_to_fp8
    monkeypatch.setattr(devices, "_WIDE_WARPS", ("gfx9", "gfx11"))
    assert warps_of_a_launch(launch, monkeypatch) == [64] * 5
