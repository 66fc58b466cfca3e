"""The process in which the versions are interpreted; started by `subprocess_interpreter.ask`, never imported by it.

A whole process either interprets or compiles its jitted functions. The request is a file of torch.save, the answer is
JSON: `python -m fusionlab.versions.interpreted REQUEST ANSWER`.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # must be set before triton is imported

import json
import linecache
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import interpreter_builder

from fusionlab.codes import code_steps
from fusionlab.versions.check import spoilt as spoilt_scales
from fusionlab.versions.registry import VERSIONS, Version
from fusionlib import reference
from fusionlib.kernels import gated_norm as product
from fusionlib.kernels.config import LaunchConfig
from fusionlib.spec import GatedNorm, GroupQuant

MOST_VALUES = 4096  # per variable; of larger ones only the shape is reported


@triton.jit
def _cast_kernel(value_ptr, codes_ptr, ELEMENTS: tl.constexpr):
    offset = tl.arange(0, ELEMENTS)
    tl.store(codes_ptr + offset, tl.load(value_ptr + offset).to(codes_ptr.dtype.element_ty))


def interpreters_codes(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`value` cast to `dtype` by the interpreter, whose FP8 casts are not the hardware's."""
    elements = triton.next_power_of_2(value.numel())
    padded = torch.zeros(elements)
    padded[: value.numel()] = value.flatten()
    codes = torch.zeros(elements, dtype=torch.uint8).view(dtype)
    _cast_kernel[(1,)](padded, codes, ELEMENTS=elements)
    return codes[: value.numel()].view(value.shape)


def check(x, gate, weight, norm: GatedNorm, quant: GroupQuant) -> list[dict[str, Any]]:
    """Every version against the reference, in float32, codes through the interpreter's own cast."""
    x, gate, weight = x.float(), gate.float(), weight.float()
    y = reference.rms_norm_gated(x, gate, weight, norm)
    _, expected_scale = reference.group_quant(y, quant)
    quotient = y / expected_scale.repeat_interleave(quant.group_size, 1)
    expected = interpreters_codes(quotient.clamp(-quant.limit, quant.limit), quant.dtype)
    return [_compare(version, x, gate, weight, norm, quant, expected, expected_scale) for version in VERSIONS]


def _compare(version: Version, x, gate, weight, norm, quant, expected, expected_scale) -> dict[str, Any]:
    codes = torch.full(expected.shape, 0x7E, dtype=torch.uint8).view(quant.dtype)  # an unwritten byte shows as 448
    scale = torch.full_like(expected_scale, torch.nan)
    version.launch_into(x, gate, weight, norm, quant, codes, scale)
    steps = code_steps(codes, expected)
    off = (scale / expected_scale - 1).abs()
    return {
        "codes": steps.numel(),
        "moved": int((steps > 0).sum()),
        "steps": int(steps.max()),
        "scales": scale.numel(),
        # Another summation order changes a float32 value in its last bits; a missing scale is NaN and counts.
        "scales_moved": int((~(off < 2**-20)).sum()),
    }


def spoilt(x, gate, weight, norm: GatedNorm, quant: GroupQuant) -> list[list[float]]:
    """`fusionlab.versions.check.spoilt` in float32, without NumPy's warnings about the NaN that it is given."""
    with np.errstate(invalid="ignore"):
        return spoilt_scales(x.float(), gate.float(), weight.float(), norm, quant)


class Recorder:
    """Records what the programs of some kernels of one file load and store, and the variables of one program."""

    def __init__(self, kernels: list[Any], program: int) -> None:
        self.names = {kernel.fn.__name__ for kernel in kernels}
        self.file = kernels[0].fn.__code__.co_filename
        self.program = program
        self.accesses: list[dict[str, Any]] = []
        self.steps: list[dict[str, Any]] = []
        self._kernel = ""
        self._pointers: dict[str, tuple[int, int]] = {}
        self._known: dict[int, dict[str, int]] = {}  # frame -> variable -> identity of its value
        self._line: dict[int, int] = {}

    def __enter__(self) -> Recorder:
        builder = interpreter_builder
        load, store = builder.create_masked_load, builder.create_masked_store

        def recorded_load(ptrs, mask, *rest):
            self._access("load", ptrs.data, mask.data)
            return load(ptrs, mask, *rest)

        def recorded_store(ptrs, value, mask, *rest):
            self._access("store", ptrs.data, mask.data)
            return store(ptrs, value, mask, *rest)

        builder.create_masked_load, builder.create_masked_store = recorded_load, recorded_store
        sys.settrace(self._called)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)
        del interpreter_builder.create_masked_load, interpreter_builder.create_masked_store

    def _access(self, kind: str, addresses: Any, mask: Any) -> None:
        if not self._pointers:
            return
        live = sorted(int(address) for address in addresses[mask].flatten())
        if not live:
            return
        # Two arguments may be the same tensor; the first one is the one that is read.
        name = max(
            (name for name, (base, _) in self._pointers.items() if base <= live[0]), key=lambda n: self._pointers[n][0]
        )
        base, size = self._pointers[name]
        offsets = [(address - base) // size for address in live]
        runs: list[list[int]] = []
        for offset in offsets:
            if runs and offset == runs[-1][0] + runs[-1][1]:
                runs[-1][1] += 1
            elif not runs or offset >= runs[-1][0] + runs[-1][1]:
                runs.append([offset, 1])
        self.accesses.append(
            {
                "kernel": self._kernel,
                "program": interpreter_builder.grid_idx[0],
                "kind": kind,
                "argument": name.removesuffix("_ptr"),
                "element_bytes": size,
                "runs": runs,
            }
        )

    def _called(self, frame: FrameType, event: str, _argument: Any) -> Any:
        if frame.f_code.co_filename != self.file or not hasattr(interpreter_builder, "grid_idx"):
            return None  # not ours, or the interpreter is still reading the source
        if frame.f_code.co_name in self.names:
            values = frame.f_locals
            self._kernel, self._pointers = frame.f_code.co_name, {}
            for name, value in values.items():
                if name.endswith("_ptr"):
                    place = (int(value.handle.data.flat[0]), value.dtype.element_ty.primitive_bitwidth // 8)
                    if place[0] not in [base for base, _ in self._pointers.values()]:
                        self._pointers[name] = place
        if interpreter_builder.grid_idx[0] != self.program:
            return None
        self._known[id(frame)] = {name: id(value) for name, value in frame.f_locals.items()}
        self._line[id(frame)] = frame.f_lineno
        return self._stepped

    def _stepped(self, frame: FrameType, event: str, _argument: Any) -> Any:
        known, line = self._known[id(frame)], self._line[id(frame)]
        for name, value in list(frame.f_locals.items()):
            if known.get(name) != id(value) and isinstance(value, tl.tensor):
                self._keep(line, frame.f_code.co_name, name, value)
            known[name] = id(value)
        self._line[id(frame)] = frame.f_lineno
        return self._stepped

    def _keep(self, line: int, function: str, name: str, value: tl.tensor) -> None:
        data = value.handle.data
        if value.dtype.scalar.is_bf16():  # kept as the bits of its upper half
            data = torch.from_numpy(data.view("int16").copy()).view(torch.bfloat16).float().numpy()
        plain = value.dtype.scalar.is_floating() or value.dtype.scalar.is_int()
        self.steps.append(
            {
                "line": line,
                "source": linecache.getline(self.file, line).strip(),
                "function": function,
                "name": name,
                "dtype": str(value.dtype.scalar),
                "shape": [int(size) for size in getattr(value, "shape", ())],
                "values": data.flatten().tolist() if plain and data.size <= MOST_VALUES else None,
            }
        )


def watch(
    x, gate, weight, norm: GatedNorm, quant: GroupQuant, *, version: str, program: int, rows: int, num_warps: int
) -> dict[str, Any]:
    """Run a version with a recorder, and compare its codes with the reference's."""
    (chosen,) = (known for known in VERSIONS if known.name == version)
    codes = torch.full((x.shape[0], x[0].numel()), 0x7E, dtype=torch.uint8).view(quant.dtype)
    scale = torch.full((x.shape[0], codes.shape[1] // quant.group_size), torch.nan)
    if chosen.launches is None:
        from fusionlib.kernels.launch import launch_fused

        kernels = [product.rms_norm_gated_group_quant_kernel]
        programs = triton.cdiv(x.numel() // max(norm.norm_size, quant.group_size), rows)

        def run() -> None:
            launch_fused(x, gate, weight, None, norm, quant, codes, scale, None, LaunchConfig(rows, num_warps))
    else:
        launches = chosen.launches(x, gate if chosen.strided else gate.contiguous(), weight, norm, quant, codes, scale)
        kernels, programs = [launch.kernel for launch in launches], launches[-1].programs

        def run() -> None:
            for launch in launches:
                launch.run()

    if not 0 <= program < programs:
        raise ValueError(f"program={program} does not exist; choose 0 to {programs - 1}")
    with Recorder(kernels, program) as recorder:
        run()
    expected, _ = reference.group_quant(reference.rms_norm_gated(x, gate, weight, norm), quant)
    return {
        "programs": programs,
        "accesses": recorder.accesses,
        "steps": recorder.steps,
        "codes": codes.numel(),
        "codes_unlike_the_reference": int((code_steps(codes, expected) > 0).sum()),
    }


def main(request: str, answer: str) -> None:
    """Read a request, run it, write the answer, which may be an error."""
    asked = torch.load(request, map_location="cpu", weights_only=True)
    norm = GatedNorm(**{**asked.pop("norm")})
    quant = GroupQuant(**{**asked.pop("quant")})
    job = {"check": check, "spoilt": spoilt, "watch": watch}[asked.pop("job")]
    tensors = [asked.pop(name) for name in ("x", "gate", "weight")]
    try:
        result = {"result": job(*tensors, norm, quant, **asked)}
    except Exception as error:  # reported to the requesting process
        result = {"error": f"{type(error).__name__}: {error}"}
    Path(answer).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
