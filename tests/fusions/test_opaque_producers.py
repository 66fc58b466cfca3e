"""Norms that hide their arithmetic: those with a reader fuse and equal eager, the others stay unclaimed."""

import sys
from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from fusionlib import FusionPass, GatedNorm, GroupQuant, RMSNorm, explain, group_quant, reference
from fusionlib.fusions import GatedNormQuant, OpaqueProducer, register_producer_kernel, register_producer_op
from fusionlib.fusions.producer_ops import producers_kept, registered_producers
from fusionlib.match import Stop
from fusionlib.pattern.norm_op import define_norm_op, rms_norm_gated
from fusionlib.rewrite.cache_key import readers_hash
from tests.engines.standins import FP8, defined, normed, rows_of
from tests.match.test_triton_kernels import seen
from tests.spellings import QuantSpelling, inputs, run_rewritten
from tests.support import same
from tests.triton_graphs import launches_traced

NATIVE = QuantSpelling()
HIDDEN = 512


def rows(dtype=torch.bfloat16, count=2):
    """x, a second tensor [6, 512], and a weight [512]."""
    tensors = [torch.randn(6, HIDDEN).to(dtype) for _ in range(count)]
    return *tensors, (torch.rand(HIDDEN) + 0.5).to(dtype)


def fuses_and_equals(fn, *tensors, by, dynamic=False):
    got, report, graphs = run_rewritten(fn, *tensors, dynamic=dynamic)
    assert report.fused_by == {by: 1} and not report.refused, str(report)
    want = fn(*tensors)
    assert len(got) == len(want) and all(map(same, got, want))
    return graphs[0]


# The door.


def read_own(arguments):
    """fusionlib's own opaque gated norm, as an engine's would be read."""
    names = ("norm_size", "eps", "activation", "norm_before_gate", "weight_offset")
    spec = GatedNorm(*(arguments[name] for name in names))
    gated = {"x": arguments["x"], "gate": arguments["gate"]}
    return OpaqueProducer(spec, gated, {"weight": arguments["weight"], "bias": None})


@pytest.fixture
def own():
    define_norm_op()
    with producers_kept():
        yield "fusionlib::rms_norm_gated"


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic tokens"])
@pytest.mark.parametrize("quant", [NATIVE, lambda y: group_quant(y, GroupQuant())], ids=["native", "opaque"])
def test_a_registered_gated_norm_fuses(own, quant, dynamic):
    register_producer_op(own, read_own)

    def fn(x, z, w):
        torch._check(x.shape[0] == z.shape[0])  # nothing else says so where the arithmetic is hidden
        return quant(rms_norm_gated(x, z, w, GatedNorm.vllm()))

    graph = fuses_and_equals(fn, *inputs(), by="gated_norm", dynamic=dynamic)
    assert not any("rms_norm_gated.default" in str(node.target) for node in graph.nodes)


def test_its_value_may_be_used_elsewhere_too(own):
    register_producer_op(own, read_own)

    def fn(x, z, w):
        y = rms_norm_gated(x, z, w, GatedNorm.vllm())
        return *NATIVE(y), y.float().sum(-1)

    fuses_and_equals(fn, *inputs(), by="gated_norm")


def test_without_a_reader_it_is_unclaimed(own):
    (site,) = explain(lambda *a: NATIVE(rms_norm_gated(*a, GatedNorm.vllm())), *inputs(), devices="cpu")
    assert site.unclaimed and "fusionlib.rms_norm_gated" in site.found


def refused_by(reader, own):
    register_producer_op(own, reader)
    (site,) = explain(lambda *a: NATIVE(rms_norm_gated(*a, GatedNorm.vllm())), *inputs(), devices="cpu")
    return site


def test_what_a_reader_refuses_is_refused(own):
    def reader(arguments):
        raise Stop("opaque_producer", arguments.call, "another device", "this one")

    site = refused_by(reader, own)
    assert site.code == "opaque_producer" and site.found == "this one"


def test_a_reader_that_fails_is_named(own):
    site = refused_by(lambda arguments: arguments["none such"], own)
    assert site.code == "reader_failed" and own in site.expected and "<lambda>" in site.expected


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda read: OpaqueProducer(GatedNorm(128, rounding=frozenset()), read.rows, read.vectors), "opaque_producer"),
        (lambda read: OpaqueProducer(GatedNorm(96), read.rows, read.vectors), "mean_axis"),
        (
            lambda read: replace(read, rows={**read.rows, "gate": read.vectors["weight"]}),
            "opaque_producer",
        ),
    ],
    ids=["not rounded", "a norm that does not fit", "a gate with fewer elements"],
)
def test_what_a_reader_says_must_fit(own, change, code):
    assert refused_by(lambda arguments: change(read_own(arguments)), own).code == code


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda read: {"rows": {"x": read.rows["x"]}}, "gate"),
        (lambda read: {"vectors": {"bias": None}}, "weight"),
        (lambda read: {"rows": {}}, "gate"),
        (lambda read: {"vectors": {**read.vectors, "weight": 1.0}}, "1.0"),
    ],
    ids=["no gate", "no weight", "no rows", "a float"],
)
def test_a_reader_that_leaves_out_a_tensor_is_named(own, change, says):
    site = refused_by(lambda arguments: replace(read := read_own(arguments), **change(read)), own)
    assert site.code == "reader_failed" and says in site.found and own in site.expected


def test_a_refused_norm_counts_for_its_own_fusion():
    def fn(x, w):
        return NATIVE(torch.ops.vllm_ir.rms_norm(x, w, 1e-6, 256))

    with defined("vllm_ir::rms_norm"):
        x, w = rows(count=1)
        (site,) = explain(fn, x, w, devices="cpu")
        assert site.fusion == "rms_norm" and site.code == "opaque_producer"
        alone = FusionPass("cpu", fusions=(GatedNormQuant(),), strict=True)
        assert keeps(fn, x, w, fusion=alone).unclaimed


def test_a_reader_is_in_the_key_of_the_caches(own):
    hashes = [readers_hash()]
    for eps in (1e-6, 1e-5, 1e-6):
        register_producer_op(own, lambda a, eps=eps: OpaqueProducer(GatedNorm(128, eps), {"x": a["x"]}))
        hashes.append(readers_hash())
    assert hashes[1] == hashes[3] and len(set(hashes)) == 3 and None not in hashes
    before = FusionPass().uuid()
    register_producer_op(own, read_own, version="2")
    assert FusionPass().uuid() != before and own in registered_producers()


# Engines'.


def test_vllms_ir_norm_fuses_before_its_c_quantisation():
    """The norm of vLLM's IR and the functionalised op behind it, as its passes leave them."""

    def fn(x, w):
        y = torch.ops.vllm_ir.rms_norm(x, w, 1e-6)
        codes, scale = torch.empty_like(y, dtype=FP8), rows_of(y.shape[0], HIDDEN // 128, "column_major")
        torch.ops._C.per_token_group_fp8_quant(y, codes, scale, 128, 1e-10, -448.0, 448.0, False, False, False)
        return codes, scale

    with defined("vllm_ir::rms_norm"), defined("_C::per_token_group_fp8_quant"):
        fuses_and_equals(fn, *rows(count=1), by="rms_norm")


@pytest.mark.parametrize("weight", ["none", "float32"])
def test_vllms_ir_norm_with_another_weight(weight):
    x, w = rows(count=1)
    given = {"none": None, "float32": w.float()}[weight]
    with defined("vllm_ir::rms_norm"):
        fuses_and_equals(lambda x: NATIVE(torch.ops.vllm_ir.rms_norm(x, given, 1e-6)), x, by="rms_norm")


def keeps(fn, *tensors, fusion=None):
    """The one site of `fn`, which is not fused and computes what it did."""
    got, report, _ = run_rewritten(fn, *tensors, **({} if fusion is None else {"fusion": fusion}))
    (site,) = report
    assert not site.fused and all(map(same, got, fn(*tensors)))
    return site


def test_vllms_ir_norm_in_a_version_that_returns_the_weights_dtype():
    """Rounded to x's dtype, then multiplied by a float32 weight, and left so."""

    def compute(x, weight, epsilon, variance_size=None):
        return normed(x, epsilon).to(x.dtype) * weight

    x, w = rows(count=1)
    with defined("vllm_ir::rms_norm", compute=compute):
        fuses_and_equals(lambda x, w: NATIVE(torch.ops.vllm_ir.rms_norm(x, w, 1e-6)), x, w.float(), by="rms_norm")


def test_vllms_ir_norm_of_float32_is_rounded_to_the_weights_dtype():
    x, w = rows(count=1)
    with defined("vllm_ir::rms_norm"):
        site = keeps(lambda x, w: NATIVE(torch.ops.vllm_ir.rms_norm(x, w, 1e-6)), x.float(), w)
    assert site.code == "rounding" and "bfloat16" in site.found


@pytest.mark.parametrize("size", [(HIDDEN, 1), (1,)])
def test_a_weight_that_is_none_of_the_last_dimension(size):
    """[hidden, 1] times hidden tokens is one weight for each token, and [1] one for all."""
    x, w = torch.randn(HIDDEN, HIDDEN).bfloat16(), torch.rand(size).bfloat16()
    with defined("vllm_ir::rms_norm"):
        site = keeps(lambda x, w: NATIVE(torch.ops.vllm_ir.rms_norm(x, w, 1e-6)), x, w)
    assert site.code == "weight_shape"


def c_norm(x, w):
    y = torch.empty_like(x)
    torch.ops._C.rms_norm(y, x, w, 1e-6)
    return NATIVE(y)


def c_add_norm(x, residual, w):
    x, residual = x.clone(), residual.clone()
    torch.ops._C.fused_add_rms_norm(x, residual, w, 1e-6)
    return *NATIVE(x), residual


@pytest.mark.parametrize("wide", ["input", "weight"])
def test_vllms_c_norms_take_all_tensors_for_the_inputs_dtype(wide):
    x, residual, w = rows()
    x, w = (t.float() if name == wide else t for name, t in (("input", x), ("weight", w)))

    with defined("_C::rms_norm"), defined("_C::fused_add_rms_norm"):
        assert keeps(c_norm, x, w).code == "rounding"
        assert keeps(c_add_norm, x, residual.to(x.dtype), w).code == "rounding"
        assert keeps(c_add_norm, x, residual.half(), w.to(x.dtype)).code == "rounding"


def test_vllms_ir_norm_with_a_residual_returns_the_sum():
    def fn(x, residual, w):
        y, total = torch.ops.vllm_ir.fused_add_rms_norm(x, residual, w, 1e-6)
        return *NATIVE(y), total

    with defined("vllm_ir::fused_add_rms_norm"):
        fuses_and_equals(fn, *rows(), by="rms_norm")


@pytest.mark.parametrize(("group", "first"), [(None, True), (128, True), (128, False)])
def test_vllms_ir_gated_norm(group, first):
    def fn(x, z, w):
        return NATIVE(torch.ops.vllm_ir.rms_norm_gated(x, z, w, 1e-6, group, first))

    with defined("vllm_ir::rms_norm_gated"):
        fuses_and_equals(fn, *rows(), by="gated_norm")


def test_vllms_ir_norm_of_a_part_is_refused():
    with defined("vllm_ir::rms_norm"):
        x, w = rows(count=1)
        (site,) = explain(lambda x, w: NATIVE(torch.ops.vllm_ir.rms_norm(x, w, 1e-6, 256)), x, w, devices="cpu")
    assert site.code == "opaque_producer" and "variance_size=256" in site.found


@pytest.mark.parametrize("second", [False, True], ids=["auto_functionalized", "auto_functionalized_v2"])
def test_vllms_c_norms_write_into_arguments(second):
    with (
        torch._inductor.config.patch(enable_auto_functionalized_v2=second),
        defined("_C::rms_norm"),
        defined("_C::fused_add_rms_norm"),
    ):
        fuses_and_equals(c_norm, *rows(count=1), by="rms_norm")
        fuses_and_equals(c_add_norm, *rows(), by="rms_norm")


@triton.jit
def layer_norm_gated_fwd_kernel(
    x, g, y, w, b, residual, residual_out, mean, rstd, eps, T, D, BT: tl.constexpr, BD: tl.constexpr, NB: tl.constexpr,
    ACTIVATION: tl.constexpr, IS_RMS_NORM: tl.constexpr, HAS_RESIDUAL: tl.constexpr, STORE_RESIDUAL_OUT: tl.constexpr,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The parameters of flash-linear-attention's; what it writes is all that tracing looks at."""
    row, columns = tl.program_id(0), tl.arange(0, BD)
    value = tl.load(x + row * D + columns).to(tl.float32) * tl.load(g + row * D + columns).to(tl.float32)
    tl.store(y + row * D + columns, value * tl.load(w + columns).to(tl.float32))
    tl.store(rstd + row, tl.sum(value, 0) + eps)


@pytest.fixture
def fla(monkeypatch):
    """The stand-in by the kernel's own module and name."""
    module = "fla.modules.fused_norm_gate"
    monkeypatch.setattr(layer_norm_gated_fwd_kernel.fn, "__module__", module)
    monkeypatch.setitem(sys.modules, module, sys.modules[__name__])


def fla_norm(kernel=layer_norm_gated_fwd_kernel, room=torch.empty_like, residual=False, size=128, **changes):
    """A launch of `kernel` on rows of 128 elements, whose value is quantised."""
    flags = {"ACTIVATION": "swish", "IS_RMS_NORM": True, "HAS_RESIDUAL": residual, "STORE_RESIDUAL_OUT": False}
    flags |= {"HAS_WEIGHT": True, "HAS_BIAS": False, **changes}
    flags = {name: flag for name, flag in flags.items() if flag is not ...}

    def fn(x, z, w):
        x, z = (t.reshape(-1, 128) if t.dim() > 2 else t for t in (x, z))
        y, rstd = room(x), torch.empty(x.shape[0])
        kernel[(x.shape[0],)](
            x, z, y, w, None, x if residual else None, None, None, rstd, 1e-5, T=x.shape[0], D=size, BT=1, BD=128,
            NB=1, **flags,
        )  # fmt: skip
        return NATIVE(y.reshape(-1, HIDDEN))

    return fn


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [
        ({"IS_RMS_NORM": False}, "layer_norm", "subtracts the mean"),
        ({"residual": True}, "opaque_producer", "residual="),
        ({"residual": True, "HAS_RESIDUAL": False}, "opaque_producer", "residual="),
        ({"HAS_RESIDUAL": True}, "opaque_producer", "HAS_RESIDUAL"),
        ({"size": 64}, "mean_axis", "shape [24, 128]"),
        ({"ACTIVATION": "relu"}, "activation", "relu"),
        ({"room": lambda x: torch.empty(128, 24, dtype=x.dtype).t()}, "opaque_producer", "strides [1, 24]"),
    ],
)
def test_what_flash_linear_attentions_kernel_cannot_have_fused(fla, how, code, says):
    site = seen(fla_norm(**how), *inputs())
    assert site.code == code and says in site.found, str(site)


@pytest.mark.parametrize("strided", [0, 1])
def test_flash_linear_attentions_kernel_reads_in_the_order_of_memory(fla, strided):
    """Columns of a wider tensor are other elements than the kernel's row * D + column."""
    x, z, w = inputs()
    tensors = [x.reshape(-1, 128), z.reshape(-1, 128)]
    tensors[strided] = torch.cat([tensors[strided]] * 2, 1)[:, :128]
    site = seen(fla_norm(room=lambda x: torch.empty(24, 128, dtype=x.dtype)), *tensors, w)
    assert site.code == "opaque_producer" and "strides [256, 1]" in site.found


@pytest.mark.parametrize("residual", [False, True])
def test_flash_linear_attentions_flags_by_heuristics_below_the_tuning(fla, residual):
    """They are constants of each configuration there, and of none of the launch's arguments."""
    flags = triton.heuristics({"HAS_RESIDUAL": lambda given: given["residual"] is not None})
    tuning = triton.autotune([triton.Config({}, num_warps=n) for n in (1, 2)], key=["D"])
    site = seen(fla_norm(tuning(flags(layer_norm_gated_fwd_kernel)), residual=residual, HAS_RESIDUAL=...), *inputs())
    assert site.fused is not residual and site.code == ("opaque_producer" if residual else "")


@pytest.mark.parametrize(("activation", "kind"), [("swish", "silu"), ("sigmoid", "sigmoid")])
def test_the_kernel_of_flash_linear_attention(fla, activation, kind):
    """Here the launch is replaced, and what it stands for is the reference."""
    fn = fla_norm(ACTIVATION=activation)
    with launches_traced():
        got, report, _ = run_rewritten(fn, *(tensors := inputs()))
    assert report.fused_by == {"gated_norm": 1}, str(report)
    want = reference.group_quant(reference.rms_norm_gated(*tensors, GatedNorm(128, 1e-5, kind)), GroupQuant())
    assert all(map(same, got, want))


def test_a_kernel_with_a_reader_of_its_own(monkeypatch):
    def reader(arguments):
        spec = RMSNorm(arguments["D"], arguments["eps"], rounding=frozenset({"output"}))
        return OpaqueProducer(spec, {"x": arguments.node("x"), "residual": None}, {"weight": arguments.node("w")}, "y")

    def fn(x, w):
        y, rstd = torch.empty_like(x), torch.empty(x.shape[0])
        layer_norm_gated_fwd_kernel[(x.shape[0],)](
            x, x, y, w, None, None, None, None, rstd, 1e-6, T=x.shape[0], D=HIDDEN, BT=1, BD=HIDDEN, NB=1,
            ACTIVATION="none", IS_RMS_NORM=True, HAS_RESIDUAL=False, STORE_RESIDUAL_OUT=False, HAS_WEIGHT=True,
            HAS_BIAS=False,
        )  # fmt: skip
        return NATIVE(y)

    with producers_kept(), launches_traced():
        register_producer_kernel(layer_norm_gated_fwd_kernel, reader)
        got, report, _ = run_rewritten(fn, *(tensors := rows(count=1)))
    assert report.fused_by == {"rms_norm": 1}, str(report)
    norm = RMSNorm(HIDDEN, rounding=frozenset({"output"}))
    assert all(map(same, got, reference.group_quant(reference.rms_norm(*tensors, norm)[0], GroupQuant())))


def test_the_spec_that_a_reader_was_registered_with_is_in_the_key():
    def read(arguments):
        raise NotImplementedError

    keys = set()
    with producers_kept():
        for spec in (None, RMSNorm, GatedNorm):
            register_producer_op("mine::norm", read, version="1", spec=spec)
            keys.add(FusionPass("cpu").uuid())
    assert len(keys) == 3
