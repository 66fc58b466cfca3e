"""The capstone's kernel without a GPU: run by Triton's interpreter, and compiled for GPUs that are not here.

In one process a jitted function is either interpreted or compiled, so both happen in a process of their own, which is
started on this file: `SOURCE interpret` or `SOURCE compile TARGET...`. It prints one line of JSON.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

WORKED = Path(__file__).with_name("kernel.py")
TARGETS = ("sm_90", "gfx950")
TOKENS = 61  # 122 groups: the last program has a tail


class OfflineError(RuntimeError):
    """The process failed; the message is its last line."""


def source_with(product: str) -> str:
    """The kernel's source with the function `product` in it exchanged for the one that is given as text."""
    text = WORKED.read_text(encoding="utf-8")
    functions = [node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    own = next(node for node in functions if node.name == "product")
    lines = text.splitlines()
    first = own.decorator_list[0].lineno - 1
    return "\n".join([*lines[:first], product.strip(), *lines[own.end_lineno :], ""])


def worked_product() -> str:
    """The worked `product` as text."""
    tree = ast.parse(text := WORKED.read_text(encoding="utf-8"))
    own = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "product")
    return "\n".join(text.splitlines()[own.decorator_list[0].lineno - 1 : own.end_lineno])


def run(source: str, *arguments: str) -> dict:
    """Run this file on `source` in a process of its own and return what it found. Raises OfflineError."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if arguments[0] == "interpret":
        environment["TRITON_INTERPRET"] = "1"
    package = str(Path(__file__).parents[3])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "candidate.py")
        path.write_text(source, encoding="utf-8")
        command = [sys.executable, "-m", "fusionlib.exercises.worked.offline", str(path), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    text = done.stdout if done.returncode == 0 else done.stderr
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if done.returncode != 0:
        raise OfflineError(lines[-1] if lines else f"the process ended with {done.returncode}")
    return json.loads(lines[-1])


def interpret(source: str) -> dict:
    """Interpret the kernel over several inputs: the fraction of the scales and of the codes that are off."""
    return run(source, "interpret")


def compile_for(source: str, *targets: str) -> dict:
    """Compile for each of `targets`: which conversions and how many wide loads the assembly has."""
    return run(source, "compile", *(targets or TARGETS))


_FOLDERS: list[tempfile.TemporaryDirectory] = []  # Triton reads a kernel's source again when it compiles


def load(source: str) -> ModuleType:
    """The source as a module of this process, to launch its kernel on a GPU that is here."""
    _FOLDERS.append(tempfile.TemporaryDirectory())
    path = Path(_FOLDERS[-1].name, "candidate.py")
    path.write_text(source, encoding="utf-8")
    return _load(str(path))


def _load(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location("candidate", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _interpret(module: ModuleType) -> dict:
    """Poisoned outputs, strided inputs, a tail in the last program; float16 where rounding matters.

    The interpreter truncates float32 to bf16 and its FP8 casts differ from torch's, so float16 stands in for bf16 and
    values are compared after dequantising, within one step of FP8.
    """
    import torch

    from fusionlib import GroupQuant, dequantise, reference
    from fusionlib.exercises.worked.silu_and_mul import SiluAndMul, silu_and_mul

    torch.manual_seed(0)
    cases = []
    for dtype, act, out in ((torch.float32, False, False), (torch.float16, True, True), (torch.float16, False, True)):
        wide = (3 * torch.randn(TOKENS, 3 * 256)).to(dtype)
        gate, up = wide[:, :256], wide[:, 256:512]
        codes = torch.full((TOKENS, 256), 0x7E, dtype=torch.uint8).view(torch.float8_e4m3fn)
        scale = torch.full((TOKENS, 2), torch.nan)
        module.launch(gate, up, codes, scale, act, out, 128, 1e-10)
        y = silu_and_mul(gate, up, SiluAndMul(act, out))
        _, wanted = reference.group_quant(y, GroupQuant())
        value = dequantise(codes, scale, GroupQuant())
        step = 2.0**-3 * y.float().abs() + 2.0**-9 * wanted.repeat_interleave(128, 1)  # of e4m3, normal and subnormal
        far = ~((value - y.float()).abs() <= step)  # also where it is not a number
        off = ~((scale - wanted).abs() <= 1e-6 * wanted)
        name = f"{str(dtype).removeprefix('torch.')}, {act=}, {out=}"
        cases.append({"case": name, "codes off": float(far.float().mean()), "scales off": float(off.float().mean())})
    return {"cases": cases}


def _compile(module: ModuleType, targets: list[str]) -> dict:
    import re

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fusionlib.observe.codegen import TARGETS as KNOWN

    constants = {"GROUPS": 32, "GROUP": 128, "ROUND_ACTIVATION": True, "ROUND_OUTPUT": True, "ROWS": 16}
    pointers = {"gate_ptr": "*bf16", "up_ptr": "*bf16", "codes_ptr": "*fp8e4nv", "scale_ptr": "*fp32"}
    kernel = module.silu_and_mul_quant_kernel
    kinds = pointers | dict.fromkeys(constants, "constexpr") | {"floor": "fp32"}
    signature = {name: kinds.get(name, "i32") for name in kernel.arg_names}
    names = list(signature)
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(n),): [["tt.divisibility", 16]] for n in (*pointers, "gate_stride", "up_stride")},
    )
    found = {}
    for target in targets:
        options = {"num_warps": 8 if target.startswith("sm") else 4, "enable_fp_fusion": False}
        asm = triton.compile(source, target=GPUTarget(*KNOWN[target]), options=options).asm
        text = asm["ptx"] if "ptx" in asm else asm["amdgcn"]
        found[target] = {
            "lines": len(text.splitlines()),
            "16-byte loads": len(
                re.findall(r"ld\.global[\w.]*\.v4\.b32|global_load_dwordx4|buffer_load_dwordx4", text)
            ),
            "FP8 conversions": len(re.findall(r"cvt\.rn\.satfinite\.e4m3x2|v_cvt_\w*pk_fp8_f32", text)),
        }
    return found


if __name__ == "__main__":
    candidate = _load(sys.argv[1])
    print(json.dumps(_interpret(candidate) if sys.argv[2] == "interpret" else _compile(candidate, sys.argv[3:])))
