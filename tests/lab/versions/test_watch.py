"""What the recorder saw, against addresses and values worked out with torch."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed on this platform")

from fusionlab.versions import VERSIONS
from fusionlab.versions.subprocess_interpreter import InterpreterError
from fusionlab.versions.watch import Step, watch
from fusionlib import GatedNorm, GroupQuant, reference
from tests.support import grouped_gate

NORM, QUANT = GatedNorm(128, rounding=()), GroupQuant.vllm()
TOKENS, HEADS = 5, 4


def offsets(tensor: torch.Tensor, rows: list[int]) -> list[int]:
    """Offsets of the elements of rows from the tensor's first element."""
    places = torch.arange(tensor.untyped_storage().nbytes() // tensor.element_size())
    strided = places.as_strided(tensor.shape, tensor.stride())
    return sorted(strided.reshape(-1, 128)[rows].flatten().tolist())


def touched(access) -> list[int]:
    return [first + i for first, length in access.runs for i in range(length)]


@pytest.fixture(scope="module")
def inputs():
    torch.manual_seed(7)
    x = torch.randn(TOKENS, HEADS, 128)
    return x, grouped_gate(TOKENS, 2, 2, 128, torch.float32), torch.rand(128) + 0.5


@pytest.fixture(scope="module")
def strided(inputs):
    """Version 6, sixteen rows per program: 20 rows are two programs, the second with four rows."""
    return watch(VERSIONS[5], *inputs, NORM, QUANT, program=1)


def test_the_addresses_of_every_program(strided, inputs):
    x, gate, _ = inputs
    assert strided.programs == 2
    for program, rows in ((0, list(range(16))), (1, [16, 17, 18, 19])):
        found = {access.argument: access for access in strided.of(program)}
        assert [access.argument for access in strided.of(program)] == ["x", "gate", "weight", "codes", "scale"]
        assert touched(found["x"]) == offsets(x, rows)
        assert touched(found["gate"]) == offsets(gate, rows)
        assert touched(found["weight"]) == list(range(128))
        assert touched(found["codes"]) == offsets(x, rows)
        assert touched(found["scale"]) == rows
        assert [found[name].kind for name in ("x", "codes")] == ["load", "store"]
        assert [found[name].element_bytes for name in ("x", "codes", "scale")] == [4, 1, 4]


def test_runs_are_merged_where_memory_follows_itself(strided):
    gate = next(access for access in strided.of(1) if access.argument == "gate")
    assert gate.runs == ((4 * 1536, 256), (4 * 1536 + 768, 256))
    assert (gate.first, gate.elements) == (6144, 512)


def test_the_values_of_the_program(strided, inputs):
    x, gate, weight = inputs
    y = reference.rms_norm_gated(x, gate, weight, NORM).view(-1, 128)[16:]
    amax = y.abs().amax(-1)
    assert strided.last("row").tensor().tolist() == list(range(16, 32))
    torch.testing.assert_close(strided.last("amax").tensor()[:4], amax, rtol=1e-6, atol=0)
    torch.testing.assert_close(strided.last("scale").tensor()[:4], amax / 448, rtol=1e-6, atol=0)
    mean = x.view(-1, 128)[16:].pow(2).mean(-1)
    torch.testing.assert_close(strided.last("mean").tensor()[:4, 0], mean, rtol=1e-6, atol=0)
    torch.testing.assert_close(strided.last("y").tensor()[:4], y, rtol=1e-5, atol=1e-6)
    assert strided.last("amax").tensor()[4:].tolist() == pytest.approx([1e-10] * 12)  # rows that do not exist
    step = strided.last("mean")
    assert "tl.sum(value * value" in step.source and step.function == "fused_kernel"
    with pytest.raises(KeyError, match=r"no variable 'speed'; there are .*amax"):
        strided.last("speed")


def test_a_variable_that_is_written_twice_has_two_steps(strided):
    assert len([step for step in strided.steps if step.name == "value"]) == 3
    lines = [step.line for step in strided.steps]
    assert lines == sorted(lines)


def test_the_librarys_kernel_with_a_launch_of_ones_own(inputs):
    x, gate, weight = (tensor.bfloat16() for tensor in inputs)
    gate = grouped_gate(TOKENS, 2, 2, 128, torch.bfloat16)
    view = watch(VERSIONS[6], x, gate, weight, GatedNorm.qwen3_next(), QUANT, program=2, rows=4)
    assert view.programs == 5
    found = {access.argument: access for access in view.of()}
    assert touched(found["gate"]) == offsets(gate, [8, 9, 10, 11])
    assert view.last("x").dtype == "bf16"
    torch.testing.assert_close(view.last("x").tensor().view(4, 128), x.view(-1, 128)[8:12].float(), rtol=0, atol=0)
    every = [place for access in view.accesses if access.argument == "x" for place in touched(access)]
    assert sorted(every) == list(range(x.numel()))  # each element once, by one program
    assert 0 < view.unlike_the_reference < view.codes  # bf16 in the interpreter is truncated


def test_both_kernels_of_version_1_and_its_copy_of_the_gate(inputs):
    view = watch(VERSIONS[0], *inputs, NORM, QUANT, program=3)
    assert [(a.kernel, a.argument) for a in view.of()][:4] == [
        ("norm_kernel", "x"),
        ("norm_kernel", "gate"),
        ("norm_kernel", "weight"),
        ("norm_kernel", "normed"),
    ]
    gate = next(access for access in view.of() if access.argument == "gate")
    assert gate.runs == ((384, 128),)  # of the copy, which is contiguous


def test_a_program_that_does_not_exist_is_named(inputs):
    with pytest.raises(InterpreterError, match="program=2 does not exist; choose 0 to 1"):
        watch(VERSIONS[5], *inputs, NORM, QUANT, program=2)


def test_a_value_that_was_not_kept_says_so():
    with pytest.raises(ValueError, match="was not kept"):
        Step(1, "", "f", "p", "pointer<fp32>", (4,), None).tensor()
