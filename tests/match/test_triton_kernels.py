"""Quantisations that are Triton kernels of the model: registered ones fuse, others are named."""

import pytest
import torch
import triton
import triton.language as tl

from fusionlib import FusionPass, GroupQuant, reference
from fusionlib.engines.kernel_text import expression, stored
from fusionlib.match import OpaqueQuant, Written, register_quant_kernel
from fusionlib.match.opaque import readers_kept, registered
from fusionlib.testing.run_edited import run_edited
from tests.spellings import FP8, NormSpelling, inputs, run_rewritten
from tests.support import same
from tests.triton_graphs import launches_traced


@triton.jit
def blocks_kernel(values, codes, scales, floor, BLOCK: tl.constexpr):
    """One program for each block, with a floor."""
    block = tl.program_id(0)
    at = block * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values + at).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value)), floor) / 448.0
    tl.store(codes + at, (value / scale).to(codes.dtype.element_ty))
    tl.store(scales + block, scale)


@triton.jit
def act_quant_kernel(x_ptr, y_ptr, s_ptr, BLOCK_SIZE: tl.constexpr):
    """DeepSeek's computation in other words."""
    block = tl.program_id(axis=0)
    where = block * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
    values = tl.load(x_ptr + where).to(tl.float32)
    largest = tl.max(tl.abs(values))
    tl.store(s_ptr + block, largest / 448.0)
    tl.store(y_ptr + where, (values / (largest / 448.0)).to(y_ptr.dtype.element_ty))


def with_a_floor():
    """Another kernel of the same name and signature, as copies of it have it."""

    @triton.jit
    def act_quant_kernel(x_ptr, y_ptr, s_ptr, BLOCK_SIZE: tl.constexpr):
        block = tl.program_id(axis=0)
        where = block * BLOCK_SIZE + tl.arange(0, BLOCK_SIZE)
        values = tl.load(x_ptr + where).to(tl.float32)
        scale = tl.maximum(tl.max(tl.abs(values)), 1e-4) / 448.0
        tl.store(s_ptr + block, scale)
        tl.store(y_ptr + where, (values / scale).to(y_ptr.dtype.element_ty))

    return act_quant_kernel


def value(x, z, w):
    return NormSpelling()(x, z, w).flatten(1)


def room(y, size=128):
    return torch.empty_like(y, dtype=FP8), y.new_empty(*y.shape[:-1], y.shape[-1] // size, dtype=torch.float32)


def by_blocks(x, z, w):
    y = value(x, z, w)
    codes, scales = room(y)
    blocks_kernel[(y.numel() // 128,)](y, codes, scales, 1e-10, BLOCK=128)
    return codes, scales


def as_deepseek(kernel, shape=(-1, 512), programs=None, room=room):
    def fn(x, z, w):
        y = value(x, z, w).view(shape)
        codes, scales = room(y)
        kernel[(programs or y.numel() // 128,)](y, codes, scales, BLOCK_SIZE=128)
        return codes, scales

    return fn


def read_blocks(arguments):
    spec = GroupQuant(arguments["BLOCK"], floor=arguments["floor"])
    return OpaqueQuant(arguments.node("values"), spec, "codes", "scales")


def fuses(fn, quant, shape=(-1, 512), known=True, **how):
    """The fused graph's results are those of the reference; the kernel itself needs a GPU."""
    with launches_traced(known):
        got, report, graphs = run_rewritten(fn, *(tensors := inputs()), **how)
    assert len(report.fused) == 1 and not report.refused, str(report)
    codes, scales = reference.group_quant(value(*tensors), quant)
    codes = codes.view(shape)
    assert same(got[0], codes) and same(got[1], scales.view(*codes.shape[:-1], -1))
    assert not any("triton" in str(node.target) for node in graphs[0].nodes)


def seen(fn, *tensors, known=True):
    """What the pass says of a graph that cannot run here."""
    fusion, sites = FusionPass("cpu"), []

    def stop(graph):
        sites.extend(fusion.rewrite(graph).sites)
        raise RuntimeError("seen")

    with launches_traced(known), pytest.raises(Exception, match="seen"):
        run_edited(stop, fn, *tensors)
    (site,) = sites
    return site


@pytest.mark.parametrize("known", [True, False], ids=["writes known", "writes unknown"])
@pytest.mark.parametrize("how", ["function", "module and name", "name"])
def test_a_registered_kernel_fuses(how, known):
    target = {"function": blocks_kernel, "module and name": f"{__name__}.blocks_kernel", "name": "blocks_kernel"}[how]
    with readers_kept():
        register_quant_kernel(target, read_blocks)
        fuses(by_blocks, GroupQuant(), known=known)
    assert not any("blocks_kernel" in name for name in registered())


def test_a_kernel_inside_of_a_triton_op_and_below_autotune():
    tuned = triton.autotune([triton.Config({}, num_warps=1)], key=[])(blocks_kernel)

    @torch.library.triton_op("fusionlib_kernels::quant", mutates_args={})
    def quant(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        codes, scales = room(y)
        torch.library.wrap_triton(tuned)[(y.numel() // 128,)](y, codes, scales, 1e-10, BLOCK=128)
        return codes, scales

    with readers_kept():
        register_quant_kernel(tuned, read_blocks)
        fuses(lambda *a: quant(value(*a)), GroupQuant())


def test_a_reader_gets_the_kernel_and_what_it_writes():
    read = []

    def reader(arguments):
        read.append(arguments)
        return read_blocks(arguments)

    with readers_kept():
        register_quant_kernel(blocks_kernel, reader)
        fuses(by_blocks, GroupQuant())
    (arguments,) = read
    assert isinstance(arguments["codes"], Written) and arguments.fake("scales").stride() == (4, 1)
    assert not isinstance(arguments["values"], Written) and arguments["floor"] == 1e-10 and arguments.op is None
    assert arguments.kernel is blocks_kernel


@pytest.mark.parametrize("known", [True, False], ids=["writes known", "writes unknown"])
def test_an_unregistered_kernel_is_named(known):
    site = seen(by_blocks, *inputs(), known=known)
    assert site.code == "unknown_quant_op" and f"the Triton kernel {__name__}.blocks_kernel" in site.found
    assert "register_quant_kernel" in site.fix and "bfloat16 [6, 512]" in site.found


@pytest.mark.parametrize("scales_given", [False, True], ids=["scales allocated", "scales given"])
@pytest.mark.parametrize("known", [True, False], ids=["writes known", "writes unknown"])
def test_an_unregistered_kernel_that_fills_given_room_is_named(known, scales_given):
    """Of what it writes to nothing may be an allocation of the graph: the caller keeps the room for codes."""

    def fn(x, z, w, codes, scales):
        y = value(x, z, w)
        scales = scales if scales_given else room(y)[1]
        blocks_kernel[(y.numel() // 128,)](y, codes, scales, 1e-10, BLOCK=128)
        return codes + 0, scales + 0

    tensors = inputs()
    site = seen(fn, *tensors, *room(value(*tensors)), known=known)
    assert site.code == "unknown_quant_op" and f"the Triton kernel {__name__}.blocks_kernel" in site.found
    assert "bfloat16 [6, 512]" in site.found


@triton.jit
def product_kernel(values, weight, scales, out, BLOCK: tl.constexpr):
    """As much of a product as tracing needs: it reads three tensors and writes the last."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    weighed = tl.load(weight + at).to(tl.float32) * tl.load(scales + tl.program_id(0))
    tl.store(out + at, (tl.load(values + at).to(tl.float32) * weighed).to(out.dtype.element_ty))


@pytest.mark.parametrize("known", [True, False], ids=["writes known", "writes unknown"])
@pytest.mark.parametrize("out_features", [6, 256])
def test_a_product_with_a_weight_is_none(known, out_features):
    """Also where the weight is as large as the value."""
    weight, scales = torch.randn(out_features, 512).to(FP8), torch.ones(4)

    def fn(x, z, w, weight, scales):
        y = value(x, z, w)
        out = y.new_empty(len(y), len(weight))
        product_kernel[(4,)](y, weight, scales, out, BLOCK=128)
        return out

    site = seen(fn, *inputs(), weight, scales, known=known)
    assert site.unclaimed and "quantises it inside" in str(site)


def test_a_reader_of_a_kernel_is_in_the_key_of_the_caches():
    keys = [FusionPass().uuid()]
    for floor in (1e-10, 1e-4, 1e-10):
        with readers_kept():
            register_quant_kernel("some.kernel", lambda a, f=floor: OpaqueQuant(a["x"], GroupQuant(floor=f), "c", "s"))
            keys.append(FusionPass().uuid())
    assert keys[1] == keys[3] and len(set(keys)) == 3 and None not in keys


def test_what_is_no_kernel_cannot_be_registered():
    for wrong in ("ns::op", "", 3, test_what_is_no_kernel_cannot_be_registered):
        with pytest.raises(TypeError, match="must be a Triton kernel"):
            register_quant_kernel(wrong, read_blocks)


# DeepSeek's.


@pytest.mark.parametrize("shape", [(-1, 512), (2, 3, 512)], ids=["rows", "batches of rows"])
def test_deepseeks_kernel_is_known_by_its_name(shape):
    fuses(as_deepseek(act_quant_kernel, shape), GroupQuant(floor=None), shape)


def test_deepseeks_kernel_with_tokens_open():
    fuses(as_deepseek(act_quant_kernel), GroupQuant(floor=None), dynamic=True)


def test_a_kernel_of_the_same_name_with_a_floor_is_refused():
    site = seen(as_deepseek(with_a_floor()), *inputs())
    assert site.code == "opaque_quant" and "other code" in site.found


def test_a_launch_that_leaves_out_blocks_is_refused():
    site = seen(as_deepseek(act_quant_kernel, programs=20), *inputs())
    assert site.code == "opaque_quant" and "20 programs" in site.found


@pytest.mark.parametrize("kind", [torch.float8_e5m2, torch.float8_e4m3fnuz])
def test_deepseeks_kernel_divides_by_448_whatever_the_codes_are(kind):
    site = seen(as_deepseek(act_quant_kernel, room=lambda y: (torch.empty_like(y, dtype=kind), room(y)[1])), *inputs())
    assert site.code == "fp8_dtype" and str(kind) in site.found


@pytest.mark.parametrize(("name", "which"), [("y_ptr", 0), ("s_ptr", 1)])
def test_deepseeks_kernel_writes_in_the_order_of_memory(name, which):
    """Into a transposed tensor too, whose elements are then others."""

    def transposed(y):
        made = list(room(y))
        made[which] = torch.empty(made[which].shape[::-1], dtype=made[which].dtype).t()
        return made

    site = seen(as_deepseek(act_quant_kernel, room=transposed), *inputs())
    assert site.code == "opaque_quant" and f"{name} contiguous" in site.expected


@triton.jit
def defaulted_kernel(values, codes, scales, BLOCK: tl.constexpr = 128, FLOOR: tl.constexpr = 1e-10):
    """A kernel with defaults, which a launch leaves out."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(values + at).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value)), FLOOR) / 448.0
    tl.store(codes + at, (value / scale).to(codes.dtype.element_ty))
    tl.store(scales + tl.program_id(0), scale)


@pytest.mark.parametrize(
    ("configs", "constants"),
    [
        (None, {"BLOCK": 128, "FLOOR": 1e-10}),
        ([{"BLOCK": 64}, {"BLOCK": 64}], {"BLOCK": 64, "FLOOR": 1e-10}),
        ([{"BLOCK": 64, "FLOOR": 1e-4}, {"BLOCK": 64, "FLOOR": 1e-3}], {"BLOCK": 64}),
        ([{"BLOCK": 64}, {"FLOOR": 1e-4}], {}),
    ],
    ids=["defaults", "tuned alike", "tuned in one", "tuned in none"],
)
def test_a_reader_gets_the_constants_that_every_launch_has(configs, constants):
    read, kernel = [], defaulted_kernel
    if configs:
        tuned = [triton.Config(config, num_warps=warps) for warps, config in enumerate(configs, 1)]
        kernel = triton.autotune(tuned, key=[])(kernel)

    def fn(x, z, w):
        y = value(x, z, w)
        codes, scales = room(y)
        kernel[(y.numel() // 128,)](y, codes, scales)
        return codes, scales

    def reader(arguments):
        read.append({name: arguments[name] for name in ("BLOCK", "FLOOR") if name in arguments})
        return OpaqueQuant(arguments.node("values"), GroupQuant(), "codes", "scales")

    with readers_kept():
        register_quant_kernel("defaulted_kernel", reader)
        seen(fn, *inputs())
    assert read[-1] == constants


def test_what_a_kernel_stores_is_read_off_its_text():
    at = "tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)"
    loaded = f"tl.load(values + ({at})).to(tl.float32)"
    scale = f"tl.maximum(tl.max(tl.abs({loaded})), floor) / 448.0"
    assert stored(blocks_kernel) == {
        expression(f"codes + ({at})"): expression(f"({loaded} / ({scale})).to(codes.dtype.element_ty)"),
        "scales + tl.program_id(0)": expression(scale),
    }
