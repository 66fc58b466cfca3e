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
    producer = case.producer
    outputs = poisoned_outputs(tokens, case.shape.hidden, case.quant, "cpu")
    outputs = *outputs, *(torch.zeros(tokens, case.shape.hidden).bfloat16() for _ in range(producer.further))
    vector = (*inputs[producer.rows :], None)[0]
    launch_light(
        inputs[: producer.rows],
        vector,
        producer.run(case.quant),
        case.quant,
        outputs,
        LaunchConfig(rows, 4),
        pieces=producer.pieces,
    )
    problem = light_problem(outputs, inputs)
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
    others = [name for name, shape in SHAPES.items() if shape.producer.name != "gated_norm"]
    for name in others:
        rows = 4 if SHAPES[name].producer.name == "act_and_mul" else 1
        for context in ("alone", "chain"):
            try:
                check(name, 3, SHAPES[name].producer.layouts[0], context, rows)
                print(f"ok {name} {context}")
            except Exception as error:
                failures += 1
                print(f"FAILED {name} {context}: {error!r}")
    source = torch.randn(3, 1500).bfloat16()  # not a multiple of the block
    target = torch.zeros_like(source)
    launch_producer(source, target)
    print("ok producer" if torch.equal(source, target) else "FAILED producer")
    sys.exit(failures)
