"""The light and the producer in Triton's interpreter; a script for a separate process (see tests/interpreted.py)."""

import os

os.environ["TRITON_INTERPRET"] = "1"

import sys

import torch

from fusionlab.observe.bench.cases import SHAPES, Case
from fusionlab.observe.bench.dependent import launch_producer
from fusionlab.observe.bench.light import launch_light
from fusionlab.observe.bench.run import light_problem
from fusionlib.kernels.config import LaunchConfig
from tests.support import poisoned_outputs


def check(name: str, tokens: int, gate: str, context: str, rows: int) -> None:
    """Every code is the exclusive-or of its inputs, every scale is written, whatever the layouts."""
    case = Case(SHAPES[name], tokens, gate, context)
    inputs = case.inputs("cpu", 0)
    codes, scale = poisoned_outputs(tokens, case.shape.hidden, case.quant, "cpu")
    config = LaunchConfig(rows, 4)
    launch_light(inputs.x, inputs.gate, inputs.weight, case.shape.norm, case.quant, codes, scale, config)
    problem = light_problem((codes, scale), inputs)
    assert problem is None, problem


if __name__ == "__main__":
    failures = 0
    for name, rows in (("32x128", 4), ("48x128", 32), ("mamba2", 2), ("per_token", 1)):
        for gate in ("contiguous", "strided"):
            for context in ("alone", "chain"):
                try:
                    check(name, 3, gate, context, rows)
                    print(f"ok {name} {gate} {context}")
                except Exception as error:
                    failures += 1
                    print(f"FAILED {name} {gate} {context}: {error!r}")
    source = torch.randn(3, 1500).bfloat16()  # not a multiple of the block
    target = torch.zeros_like(source)
    launch_producer(source, target)
    print("ok producer" if torch.equal(source, target) else "FAILED producer")
    sys.exit(failures)
