"""The light has our kernel's loads and stores, moves every byte, and computes nothing: shown without a GPU."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed on this platform")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fusionlab.observe.bench.cases import SHAPES, Case
from fusionlab.observe.bench.dependent import dependent_problem, producer_kernel
from fusionlab.observe.bench.light import compile_light, launch_light
from fusionlab.observe.census import census
from fusionlab.observe.codegen import compile_fused
from fusionlib import GroupQuant
from fusionlib.kernels.config import LaunchConfig

#: shape, rows, warps
LAUNCHES = [("32x128", 1, 1), ("32x128", 8, 8), ("32x128", 16, 8), ("mamba2", 1, 4), ("per_token", 1, 8)]


@pytest.mark.parametrize("target", ["sm_90", "gfx950"])
@pytest.mark.parametrize(("name", "rows", "warps"), LAUNCHES)
def test_same_loads_and_stores_as_ours_and_next_to_no_arithmetic(target, name, rows, warps):
    shape = SHAPES[name]
    quant = GroupQuant(shape.group_size)
    ours = census(compile_fused(target, shape.norm, quant, hidden=shape.hidden, rows=rows, num_warps=warps))
    light = census(compile_light(target, shape.norm, quant, LaunchConfig(rows, warps), shape.hidden))
    assert (light.loads, light.stores) == (ours.loads, ours.stores)
    assert light.fp8_conversions == light.shuffles == light.divisions == light.reciprocals == 0
    assert light.fused_multiply_adds == 0 and light.spills == 0
    assert light.instructions < 0.6 * ours.instructions  # most of them addresses


def test_the_wait_is_there_when_asked_for_and_only_then():
    shape, config = SHAPES["32x128"], LaunchConfig(8, 8)
    waiting = compile_light("sm_90", shape.norm, GroupQuant(), config, wait=True).assembly
    assert waiting.count("griddepcontrol.wait") == 1
    assert waiting.index("griddepcontrol.wait") < waiting.index("ld.global")
    assert "griddepcontrol" not in compile_light("sm_90", shape.norm, GroupQuant(), config).assembly


def test_the_producer_signals_before_it_works():
    import triton

    def compiled(signal):
        signature = {"source_ptr": "*i16", "target_ptr": "*i16", "elements": "i32", "BLOCK": "constexpr"}
        source = ASTSource(
            fn=producer_kernel,
            signature=signature | {"SIGNAL": "constexpr"},
            constexprs={(3,): 2048, (4,): signal},
            attrs={(0,): [["tt.divisibility", 16]], (1,): [["tt.divisibility", 16]]},
        )
        return triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]

    assert compiled(True).index("griddepcontrol.launch_dependents") < compiled(True).index("ld.global")
    assert "griddepcontrol" not in compiled(False)


def test_every_byte_is_moved_in_the_interpreter():
    root = Path(__file__).parents[4]
    command = [sys.executable, "-m", "tests.lab.observe.bench.interpreted"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    assert done.returncode == 0 and not failed, "\n".join([*failed, done.stderr[-2000:]])
    assert len(re.findall(r"^ok ", done.stdout, re.MULTILINE)) == 17


def test_what_it_does_not_measure_is_refused():
    inputs = Case(SHAPES["32x128"], 1).inputs("cpu", 0)
    norm = SHAPES["32x128"].norm
    codes, scale = torch.empty(1, 4096, dtype=torch.uint8), torch.empty(1, 32)
    with pytest.raises(ValueError, match=r"x is torch\.float32"):
        launch_light(inputs.x.float(), inputs.gate, inputs.weight, norm, GroupQuant(), codes, scale)
    packed = GroupQuant.deepgemm(blackwell=True)
    with pytest.raises(ValueError, match="packed_int32"):
        launch_light(inputs.x, inputs.gate, inputs.weight, norm, packed, codes, scale)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_a_dependent_launch_needs_a_gpu():
    assert "needs a GPU" in dependent_problem()


@pytest.mark.gpu
@pytest.mark.parametrize("gate", ["contiguous", "strided"])
@pytest.mark.parametrize("name", ["32x128", "mamba2", "per_token"])
def test_every_byte_is_moved_on_a_gpu(name, gate):
    from fusionlab.observe.bench.run import light_problem
    from fusionlab.observe.bench.variants import light_call

    case = Case(SHAPES[name], 77, gate)
    inputs = case.inputs("cuda", 0)
    assert light_problem(light_call(case)(inputs.x, inputs.gate, inputs.weight), inputs) is None


@pytest.mark.gpu
def test_a_dependent_launch_reads_what_the_producer_wrote():
    from fusionlab.observe.bench.dependent import launch_producer
    from fusionlab.observe.bench.run import light_problem
    from fusionlab.observe.bench.variants import light_call

    if problem := dependent_problem():
        pytest.skip(problem)
    case = Case(SHAPES["32x128"], 256)
    inputs = case.inputs("cuda", 0)
    source, light = inputs.x.clone(), light_call(case, dependent=True)
    for _ in range(20):
        inputs.x.zero_()
        launch_producer(source, inputs.x, signal=True)
        outputs = light(inputs.x, inputs.gate, inputs.weight)
        assert torch.equal(inputs.x, source) and light_problem(outputs, inputs) is None
