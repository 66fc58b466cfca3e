"""Runs Triton's interpreter in a separate process, because a process either interprets or compiles kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

import fusionlib
from fusionlib.spec import GatedNorm, GroupQuant

LIMIT_S = 300  # a few dozen programs take seconds


class InterpreterError(RuntimeError):
    """The interpreter's process failed; the message contains its output."""


def ask(
    job: str,
    x: torch.Tensor,
    gate: torch.Tensor,
    weight: torch.Tensor,
    norm: GatedNorm,
    quant: GroupQuant,
    **options: Any,
) -> Any:
    """Run `job` of `fusionlab.versions.interpreted` on the tensors, with their strides, and return its JSON answer.

    Raises:
        InterpreterError: if that process fails or takes more than `LIMIT_S` seconds.
    """
    tensors = {"x": x.detach(), "gate": gate.detach(), "weight": weight.detach()}  # .cpu() would lose the strides
    specs = {
        name: {field.name: getattr(spec, field.name) for field in fields(spec)}
        for name, spec in (("norm", norm), ("quant", quant))
    }
    specs["norm"]["rounding"] = sorted(norm.rounding)
    # This package's folder first, so that the process imports the same fusionlib.
    paths = [str(Path(fusionlib.__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "request.pt"), Path(folder, "answer.json")
        torch.save({"job": job, **tensors, **specs, **options}, request)
        command = [sys.executable, "-m", "fusionlab.versions.interpreted", str(request), str(answer)]
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)
        except subprocess.TimeoutExpired as error:
            raise InterpreterError(f"the interpreter took more than {LIMIT_S} s; choose fewer tokens") from error
        if done.returncode:
            raise InterpreterError(f"the interpreter's process ended with {done.returncode}: {done.stderr[-2000:]}")
        told = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in told:
        raise InterpreterError(told["error"])
    return told["result"]
