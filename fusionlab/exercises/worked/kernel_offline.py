"""The capstone's kernel without a GPU: run by Triton's interpreter, and compiled for GPUs that are not present.

A process either interprets or compiles jitted functions, so each happens in a separate process that runs this file:
`SOURCE RESULT interpret` or `SOURCE RESULT compile TARGET...`. It writes its findings to the file RESULT, as JSON, at
the very end: the source is the reader's, and may print anything and exit at any point.
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
from typing import Any

WORKED = Path(__file__).with_name("silu_kernel.py")
TARGETS = ("sm_90", "gfx950")
TOKENS = 61  # 122 groups: the last program has a tail
SECONDS = 180.0  # per process; the slowest takes a tenth of that on two idle cores
#: dtype, round_activation, round_output of the interpreted cases.
CASES = (("float32", False, False), *(("float16", act, out) for act in (True, False) for out in (True, False)))


class OfflineError(RuntimeError):
    """The process failed or did not end; the message is its last line."""


def case_names() -> list[str]:
    """The names of `interpret`'s cases, in order."""
    return [f"{dtype}, {act=}, {out=}" for dtype, act, out in CASES]


def source_with(product: str) -> str:
    """The kernel's source with its function `product` replaced by the given source text."""
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
    """Run this file on `source` in a separate process and return what it found. Raises OfflineError."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    if arguments[0] == "interpret":
        environment["TRITON_INTERPRET"] = "1"
    package = str(Path(__file__).parents[3])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [package, environment.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        path, result, said = (Path(folder, name) for name in ("candidate.py", "result.json", "said"))
        path.write_text(source, encoding="utf-8")
        command = [
            sys.executable,
            "-m",
            __spec__.name,
            str(path),
            str(result),
            *arguments,
        ]
        with said.open("wb") as stream:  # a file rather than a pipe, which a leftover process could hold open
            try:
                code = subprocess.run(
                    command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, env=environment, timeout=SECONDS
                ).returncode
            except subprocess.TimeoutExpired:
                raise OfflineError(f"it did not end within {SECONDS:g} s; is there a loop in it?") from None
        if result.exists():
            return json.loads(result.read_text(encoding="utf-8"))
        lines = [line.strip() for line in said.read_text(errors="replace").splitlines() if line.strip()]
    last = lines[-1] if code and lines else f"its process ended with {code} before anything was found"
    raise OfflineError(last)


def interpret(source: str) -> dict:
    """Interpret the kernel over several inputs: the fractions of scales and codes that are wrong.

    The interpreter's own casts change 2 % of the codes; the worked kernel, also interpreted, has the same ones.
    """
    return run(source, "interpret")


def compile_for(source: str, *targets: str) -> dict:
    """Compile for each of `targets`: the conversions and the number of wide loads in the assembly."""
    return run(source, "compile", *(targets or TARGETS))


_FOLDERS: list[tempfile.TemporaryDirectory] = []  # kept, because Triton rereads a kernel's source when it compiles


def load(source: str) -> ModuleType:
    """The source as a module of this process, to launch its kernel on a local GPU."""
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

    from fusionlab.exercises.worked.silu_and_mul import SiluAndMul, silu_and_mul
    from fusionlib import GroupQuant, dequantise, reference

    torch.manual_seed(0)
    own = _load(str(WORKED))
    cases = []
    for name, (kind, act, out) in zip(case_names(), CASES, strict=True):
        wide = (3 * torch.randn(TOKENS, 3 * 256)).to(getattr(torch, kind))
        gate, up = wide[:, :256], wide[:, 256:512]
        gate[1, 0], gate[2, 0] = 200.0, -200.0  # an exponential of one of them is infinite
        gate[3] = 0.0  # a group that needs the floor
        gate[4, 3], up[5, 7] = torch.nan, torch.inf  # must reach the scale and the codes of their groups
        y = silu_and_mul(gate, up, SiluAndMul(act, out))
        wanted_codes, wanted = reference.group_quant(y, GroupQuant())
        (worked_codes, _), (codes, scale) = (_launch(part, gate, up, act, out) for part in (own, module))
        value, lost = (
            dequantise(*pair, GroupQuant()) for pair in ((codes, scale), (wanted_codes, wanted))
        )  # all of a group with a NaN or an infinity is lost
        step = 2.0**-3 * y.float().abs() + 2.0**-9 * wanted.repeat_interleave(128, 1)  # of e4m3, normal and subnormal
        far = torch.where(lost.isnan(), ~value.isnan(), ~((value - y.float()).abs() <= step))  # also true for NaN
        off = (scale != wanted) & ~((scale - wanted).abs() <= 1e-6 * wanted) & ~(scale.isnan() & wanted.isnan())
        other = codes.view(torch.uint8) != worked_codes.view(torch.uint8)
        found = {"codes off": far, "scales off": off, "codes not the worked kernel's": other}
        cases.append({"case": name} | {what: float(where.float().mean()) for what, where in found.items()})
    return {"cases": cases}


def _launch(module: ModuleType, gate: Any, up: Any, act: bool, out: bool) -> tuple[Any, Any]:
    """Codes and scales of `module`'s kernel, in tensors prefilled with wrong values."""
    import torch

    codes = torch.full((TOKENS, 256), 0x7E, dtype=torch.uint8).view(torch.float8_e4m3fn)
    scale = torch.full((TOKENS, 2), torch.nan)
    module.launch(gate, up, codes, scale, act, out, 128, 1e-10)
    return codes, scale


def _compile(module: ModuleType, targets: list[str]) -> dict:
    import re

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fusionlab.observe.codegen import TARGETS as KNOWN

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
    candidate, target = _load(sys.argv[1]), Path(sys.argv[2])
    outcome = _interpret(candidate) if sys.argv[3] == "interpret" else _compile(candidate, sys.argv[4:])
    target.with_suffix(".partial").write_text(json.dumps(outcome), encoding="utf-8")
    target.with_suffix(".partial").rename(target)
