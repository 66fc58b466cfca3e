"""The light has our kernel's loads and stores, moves every byte, and computes nothing: shown without a GPU."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed on this platform")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fusionlab.observe.bench.cases import SHAPES, Case
from fusionlab.observe.bench.dependent import dependent_problem, producer_kernel
from fusionlab.observe.bench.light import compile_light, launch_light
from fusionlab.observe.census import census
from fusionlab.observe.codegen import TARGETS, Listing, compile_fused
from fusionlib import GroupQuant
from fusionlib.kernels import constants as kernel_constants
from fusionlib.kernels.act_and_mul import act_and_mul_group_quant_kernel
from fusionlib.kernels.config import LaunchConfig
from fusionlib.kernels.rms_norm import rms_norm_group_quant_kernel
from fusionlib.kernels.row_layout import RowLayout

#: shape, rows, warps
LAUNCHES = [("32x128", 1, 1), ("32x128", 8, 8), ("32x128", 16, 8), ("mamba2", 1, 4), ("per_token", 1, 8)]


@pytest.mark.parametrize("target", ["sm_90", "gfx950"])
@pytest.mark.parametrize(("name", "rows", "warps"), LAUNCHES)
def test_same_loads_and_stores_as_ours_and_next_to_no_arithmetic(target, name, rows, warps):
    shape = SHAPES[name]
    quant = GroupQuant(shape.group_size)
    ours = census(compile_fused(target, shape.producer.spec, quant, hidden=shape.hidden, rows=rows, num_warps=warps))
    config, weight = LaunchConfig(rows, warps), shape.producer.vector
    run = shape.producer.run(quant)
    light = census(compile_light(target, run, quant, config, shape.hidden, weight_elements=weight))
    assert (light.loads, light.stores) == (ours.loads, ours.stores)
    assert light.fp8_conversions == light.shuffles == light.divisions == light.reciprocals == 0
    assert light.fused_multiply_adds == 0 and light.spills == 0
    assert light.instructions < 0.6 * ours.instructions  # most of them addresses


def compiled(target, kernel, constants, pointers):
    """One of our kernels, compiled as `compile_fused` compiles the gated norm's: inputs contiguous and aligned."""
    signature = {
        name: "constexpr" if name in constants else pointers.get(name, "fp32" if name in ("eps", "floor") else "i32")
        for name in kernel.arg_names
    }
    names = list(signature)
    aligned = [name for name in names if name in pointers or ("stride" in name and "scale" not in name)]
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    options = {"num_warps": CONFIG.num_warps, "enable_fp_fusion": kernel_constants.may_contract(constants)}
    made = triton.compile(source, target=GPUTarget(*TARGETS[target]), options=options)
    text = {name: stage for name, stage in made.asm.items() if isinstance(stage, str)}
    return Listing(target, text, made.asm["cubin" if "cubin" in made.asm else "hsaco"])


CONFIG = LaunchConfig(1, 8)
ROWS = dict.fromkeys(("x_ptr", "gate_ptr", "residual_ptr", "weight_ptr", "token_factor_ptr", "sum_ptr"), "*bf16")
POINTERS = ROWS | {"codes_ptr": "*fp8e4nv", "scale_ptr": "*fp32", "normed_ptr": "*fp8e4nv", "value_ptr": "*fp8e4nv"}


@pytest.mark.parametrize("name", ["norm_4096", "add_norm_2048", "add_norm_5120", "silu_5632"])
def test_the_other_producers_lights_have_their_loads_and_stores(name):
    target, quant, producer = "sm_90", GroupQuant(), SHAPES[name].producer
    contiguous = RowLayout(producer.hidden, producer.hidden, 0, producer.hidden, 0)
    options = {"config": CONFIG, "units": CONFIG.rows, "ptx": True}
    if producer.name == "rms_norm":
        constants = kernel_constants.rms_norm_constants(
            producer.spec, quant, producer.hidden, contiguous, contiguous if producer.residual else None,
            weight_elements=producer.vector, store_normed=False, store_sum=producer.residual, **options,
        )  # fmt: skip
        ours = census(compiled(target, rms_norm_group_quant_kernel, constants, POINTERS))
    else:
        constants = kernel_constants.act_and_mul_constants(
            producer.spec, quant, producer.hidden, contiguous, contiguous, store_value=False, **options
        )
        ours = census(compiled(target, act_and_mul_group_quant_kernel, constants, POINTERS))
    light = compile_light(
        target, producer.run(quant), quant, CONFIG, producer.hidden, rows=producer.rows,
        weight_elements=producer.vector, store_sum=bool(producer.further), pieces=producer.pieces,
    )  # fmt: skip
    light = census(light)
    assert light.loads == ours.loads
    # Scales are a hundredth of the bytes; ours stores them from the layout in which the reduction left them.
    stores, our_stores = dict(light.stores), dict(ours.stores)
    assert stores.pop(4) <= our_stores.pop(4) and stores == our_stores
    assert light.fp8_conversions == light.shuffles == light.fused_multiply_adds == 0
    assert light.instructions < 0.6 * ours.instructions


def test_the_wait_is_there_when_asked_for_and_only_then():
    config = LaunchConfig(8, 8)
    waiting = compile_light("sm_90", 128, GroupQuant(), config, wait=True).assembly
    assert waiting.count("griddepcontrol.wait") == 1
    assert waiting.index("griddepcontrol.wait") < waiting.index("ld.global")
    assert "griddepcontrol" not in compile_light("sm_90", 128, GroupQuant(), config).assembly


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
    assert len(re.findall(r"^ok ", done.stdout, re.MULTILINE)) == 17 + 2 * 13


def test_what_it_does_not_measure_is_refused():
    inputs = Case(SHAPES["32x128"], 1).inputs("cpu", 0)
    (*rows, weight), config = inputs, LaunchConfig(8, 8)
    outputs = torch.empty(1, 4096, dtype=torch.uint8), torch.empty(1, 32)
    with pytest.raises(ValueError, match=r"an input is torch\.float32"):
        launch_light((rows[0].float(), rows[1]), weight, 128, GroupQuant(), outputs, config)
    scattered = torch.empty(1, 8, 8, 8, 128, dtype=torch.bfloat16)[:, ::2, ::2, ::4]
    with pytest.raises(ValueError, match="more than two levels"):
        launch_light((scattered,), None, 128, GroupQuant(), outputs, config)
    packed = GroupQuant.deepgemm(blackwell=True)
    with pytest.raises(ValueError, match="packed_int32"):
        launch_light(rows, weight, 128, packed, outputs, config)


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about a machine without a GPU")
def test_a_dependent_launch_needs_a_gpu():
    assert "needs a GPU" in dependent_problem()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "gate"),
    [(name, gate) for name, shape in SHAPES.items() for gate in shape.producer.layouts],
)
def test_every_byte_is_moved_on_a_gpu(name, gate):
    from fusionlab.observe.bench.run import light_problem
    from fusionlab.observe.bench.variants import light_call

    case = Case(SHAPES[name], 77, gate)
    inputs = case.inputs("cuda", 0)
    assert light_problem(light_call(case)(*inputs), inputs) is None


@pytest.mark.gpu
def test_a_dependent_launch_reads_what_the_producer_wrote():
    from fusionlab.observe.bench.dependent import launch_producer
    from fusionlab.observe.bench.run import light_problem
    from fusionlab.observe.bench.variants import light_call

    if problem := dependent_problem():
        pytest.skip(problem)
    case = Case(SHAPES["32x128"], 256)
    inputs = case.inputs("cuda", 0)
    source, light = inputs[0].clone(), light_call(case, dependent=True)
    for _ in range(20):
        inputs[0].zero_()
        launch_producer(source, inputs[0], signal=True)
        outputs = light(*inputs)
        assert torch.equal(inputs[0], source) and light_problem(outputs, inputs) is None
