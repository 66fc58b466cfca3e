"""Must not fuse: a refused graph computes what it did before, and what looks alike is refused too."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from fusionlab.reason_examples import EXAMPLES
from fusionlib import GroupQuant, op
from fusionlib.match import REASONS, OpaqueQuant, register_quant_op
from fusionlib.match.opaque import readers_kept
from fusionlib.rewrite import FusionPass
from tests.spellings import FP8, NormSpelling, QuantSpelling, inputs, run_rewritten

NORM, QUANT = NormSpelling(), QuantSpelling()


def normed(x, z, w):
    return NORM(x, z, w).flatten(1)


def quantised(y, amax, limit=448.0, clamp=448.0):
    scale = amax.clamp(min=1e-10) / limit
    return (y / scale).clamp(-clamp, clamp).to(FP8), scale


def with_quant(quant):
    return lambda x, z, w: quant(normed(x, z, w).float().view(x.shape[0], -1, 128))


def with_norm(norm):
    return lambda x, z, w: QUANT(norm(x, z, w).flatten(1))


def amax(v):
    return v.abs().amax(-1, keepdim=True)


def rms(v, dim=-1):
    return v * torch.rsqrt(v.pow(2).mean(dim, keepdim=True) + 1e-6)


def refusal(fn, *tensors, code, **options):
    """fn is refused with `code`, and its outputs are those of eager."""
    got, report, _ = run_rewritten(fn, *tensors, **options)
    sites = list(report)
    assert sites and {site.code for site in sites} == {code}, str(report)
    site = sites[0]
    assert site.sentence and site.fix and site.expected and site.found and site.line
    want = fn(*tensors)
    pairs = zip(got, want, strict=True) if isinstance(want, tuple) else [(got, want)]
    for a, b in pairs:
        a, b = (torch.as_tensor(value).float().nan_to_num() for value in (a, b))
        assert torch.equal(a, b)
    return site


def test_a_floor_below_what_a_scale_can_be():
    """Under it a scale's reciprocal is no normal number; the op refuses such a spec, and so does the pass."""

    def tiny(y, floor):
        scale = amax(y).clamp(min=floor) / 448.0
        return (y / scale).clamp(-448.0, 448.0).to(FP8), scale

    site = refusal(with_quant(lambda y: tiny(y, 1e-38)), *inputs(), code="floor")
    assert "from 1e-30" in site.expected and "1e-38" in site.found
    _, report, _ = run_rewritten(with_quant(lambda y: tiny(y, 1e-30)), *inputs())
    assert len(report.fused) == 1


COMPUTATIONS = [code for code, example in EXAMPLES.items() if inspect.signature(example).parameters]


@pytest.mark.parametrize("code", COMPUTATIONS)
def test_a_refused_example_computes_what_it_did(code):
    refusal(EXAMPLES[code], *inputs(), code=code)


MISREADINGS = {
    "divided by the reciprocal root": with_norm(
        lambda x, z, w: x.float() / torch.rsqrt(x.float().pow(2).mean(-1, True) + 1e-6) * w * F.silu(z.float())
    ),
    "multiplied with the root": with_norm(
        lambda x, z, w: x.float() * torch.sqrt(x.float().pow(2).mean(-1, True) + 1e-6) * w * F.silu(z.float())
    ),
    "divided by the root and multiplied with it": with_norm(
        lambda x, z, w: (v := torch.sqrt(x.float().pow(2).mean(-1, True) + 1e-6)) * (x.float() / v) * w * F.silu(z)
    ),
    "the weight divides": with_norm(lambda x, z, w: rms(x.float()) / w * F.silu(z.float())),
    "a bias behind the gate": with_norm(lambda x, z, w: rms(x.float()) * w * F.silu(z.float()) + w),
    "negated": with_norm(lambda x, z, w: -(rms(x.float()) * w * F.silu(z.float()))),
    "two gates": with_norm(lambda x, z, w: rms(x.float()) * w * F.silu(z.float()) * F.silu(x.float())),
    "two weights": with_norm(lambda x, z, w: rms(x.float()) * w * w * F.silu(z.float())),
    "half a product": with_norm(lambda x, z, w: rms(x.float()) * w * F.silu(z.float()) * 0.5),
    "mean of cubes": with_norm(
        lambda x, z, w: x * torch.rsqrt(x.float().pow(3).mean(-1, True) + 1e-6) * w * F.silu(z.float())
    ),
    "eps on the outside": with_norm(
        lambda x, z, w: x * (torch.rsqrt(x.float().pow(2).mean(-1, True)) + 1e-6) * w * F.silu(z.float())
    ),
    "gate of other heads": with_norm(lambda x, z, w: rms(x.float()) * w * F.silu(z.float().flip(1)).exp()),
    "transposed heads": lambda x, z, w: QUANT(NORM(x, z, w).transpose(1, 2).reshape(6, 512)),
    "one value against many scales": lambda x, z, w: quantised(
        NORM(x, z, w)[:, :1].float(), amax(NORM(x, z, w).float())
    ),
    "minimum instead of maximum": with_quant(lambda v: quantised(v, v.abs().amin(-1, keepdim=True))),
    "maximum without magnitude": with_quant(lambda v: quantised(v, v.amax(-1, keepdim=True))),
    "root of a root": with_norm(
        lambda x, z, w: x * torch.rsqrt(torch.sqrt(x.float().pow(2).mean(-1, True) + 1e-6)) * w * F.silu(z.float())
    ),
    "power of a root": with_norm(
        lambda x, z, w: x * torch.sqrt(x.float().pow(2).mean(-1, True) + 1e-6).pow(-0.5) * w * F.silu(z.float())
    ),
    "mean over zero": with_norm(
        lambda x, z, w: x * torch.rsqrt(x.float().pow(2).mean(-1, True) / 0.0 + 1e-6) * w * F.silu(z.float())
    ),
    "where the maximum stands": with_quant(lambda v: quantised(v, v.abs().max(-1, keepdim=True)[1])),
    "no clamp and no floor": with_quant(lambda v: (v / (amax(v) / 448.0)).to(FP8)),
    "copies of a group by a literal": with_quant(
        lambda v: quantised(v := v[:, None] * torch.ones(1, 3, 1, 1), amax(v))
    ),
    "scale added to": with_quant(lambda v: quantised(v, amax(v) + 1e-3)),
    "quotient added to": with_quant(lambda v: ((v / (amax(v) / 448.0)) + 0.5).clamp(-448, 448).to(FP8)),
}


@pytest.mark.parametrize("name", MISREADINGS)
def test_look_alikes_are_refused(name):
    fn, tensors = MISREADINGS[name], inputs()
    _, report, _ = run_rewritten(fn, *tensors)
    (site,) = report
    assert not site.fused and site.code != "internal_error", str(report)


BIASES = {
    "behind the gate": ("bias", lambda x, z, w: rms(x.float()) * w * F.silu(z.float()) + w),
    "before the weight": ("bias", lambda x, z, w: (rms(x.float()) + w) * w * F.silu(z.float())),
    "twice": ("bias", lambda x, z, w: ((rms(x.float()) * w + w) + w) * F.silu(z.float())),
    "added in 16 bits": ("rounding", lambda x, z, w: (rms(x.float()).to(x.dtype) * w + w) * F.silu(z.float())),
}


@pytest.mark.parametrize("where", BIASES)
def test_a_bias_where_the_fused_computation_has_none(where):
    code, norm = BIASES[where]
    refusal(lambda x, z, w: QUANT(norm(x, z, w).to(x.dtype).flatten(1)), *inputs(), code=code)


BLOCKS = {
    "two dimensions": lambda v: v.abs().amax((0, 2)).repeat_interleave(128),
    "kept dimensions": lambda v: v.abs().amax((0, 2), keepdim=True).expand(6, 4, 128).reshape(6, 512),
    "a maximum of maxima": lambda v: v.abs().amax(-1).amax(0).repeat_interleave(128),
    "repeated both ways": lambda v: v[None].abs().amax((1, 3)).repeat_interleave(6, 0).repeat_interleave(128, 1),
}


@pytest.mark.parametrize("how", BLOCKS)
def test_a_block_of_several_rows_however_it_is_repeated(how):
    def fn(x, z, w):
        y = normed(x, z, w).float()
        scale = BLOCKS[how](y.view(6, 4, 128)) / 448.0
        return (y / scale).clamp(-448.0, 448.0).to(FP8), scale

    refusal(fn, *inputs(), code="block_group")


def test_device():
    refusal(lambda x, z, w: QUANT(normed(x, z, w)), *inputs(), code="device", fusion=FusionPass())


def test_epsilon_only_known_at_run_time():
    def fn(x, z, w, eps):
        v = x.float()
        y = v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + eps) * w.float() * F.silu(z.float())
        return QUANT(y.to(x.dtype).flatten(1))

    refusal(fn, *inputs(), torch.tensor(1e-6), code="scalar_not_literal")


def test_group_size_only_known_at_run_time():
    def fn(x, z, w):
        y = NORM(x, z, w).flatten(1).float()
        return quantised(y, amax(y))

    x, z, _ = inputs()
    torch._dynamo.mark_dynamic(x, 1)
    torch._dynamo.mark_dynamic(z, 1)
    refusal(fn, x, z, torch.rand(128), code="symbolic_group")


def test_training():
    x, z, w = inputs()

    def fn(x, z, w):
        return QUANT(normed(x, z, w))

    with torch.enable_grad():
        fusion = FusionPass(("cpu",))
        torch._dynamo.reset()
        compiled = torch.compile(fn, options={"post_grad_custom_pre_pass": fusion})
        compiled(x, z, w.requires_grad_())[1].sum().backward()
    assert w.grad is not None and {site.code for site in fusion.report()} == {"training"}


@pytest.fixture
def library():
    """An op of another project: writes its results into arguments."""
    with readers_kept(), torch.library._scoped_library("fusionlib_test", "DEF") as lib:
        lib.define("quant_(Tensor y, Tensor(a!) codes, Tensor(b!) scale, int group) -> ()")
        lib.impl("quant_", _write_quant, "CompositeExplicitAutograd")
        torch.library.register_fake("fusionlib_test::quant_", lambda *a: None, lib=lib)
        yield torch.ops.fusionlib_test.quant_


def _write_quant(y, codes, scale, group):
    values = op.group_quant(y, GroupQuant(group))
    codes.copy_(values[0])
    scale.copy_(values[1])


def into_buffers(quant_):
    def fn(x, z, w):
        y = normed(x, z, w)
        codes, scale = torch.empty_like(y, dtype=FP8), y.new_empty(y.shape[0], 4, dtype=torch.float32)
        quant_(y, codes, scale, 128)
        return codes, scale

    return fn


def test_a_mutating_op_is_read_through_auto_functionalized(library):
    register_quant_op(
        library.default, lambda a: OpaqueQuant(a["y"], GroupQuant(a["group"]), codes="codes", scale="scale")
    )
    fn, tensors = into_buffers(library), inputs()
    got, report, _ = run_rewritten(fn, *tensors)
    assert len(report.fused) == 1, str(report)
    assert all(torch.equal(a.float(), b.float()) for a, b in zip(got, fn(*tensors), strict=True))


def test_an_op_that_writes_into_a_part_of_a_tensor_is_refused(library):
    register_quant_op(
        library.default, lambda a: OpaqueQuant(a["y"], GroupQuant(a["group"]), codes="codes", scale="scale")
    )

    def fn(x, z, w):
        y = normed(x, z, w)
        codes, scale = torch.empty_like(y, dtype=FP8), y.new_empty(12, 8, dtype=torch.float32)[:6, :4]
        library(y, codes, scale, 128)
        return codes, scale

    site = refusal(fn, *inputs(), code="opaque_quant")  # rows of 8, where the fused op writes rows of 4
    assert "strides [4, 1]" in site.expected


def test_a_reader_that_promises_another_layout_is_refused(library):
    spec = GroupQuant(scale_layout="column_major")
    register_quant_op(library.default, lambda a: OpaqueQuant(a["y"], spec, codes="codes", scale="scale"))
    assert "strides" in refusal(into_buffers(library), *inputs(), code="opaque_quant").expected


def test_what_is_no_op_cannot_be_registered():
    with pytest.raises(TypeError, match="ns::name"):
        register_quant_op("quant", lambda a: OpaqueQuant(a["y"], GroupQuant()))


def test_opaque_arguments_without_a_spec(library):
    register_quant_op(
        library.default, lambda a: OpaqueQuant(a["y"], GroupQuant(-a["group"]), codes="codes", scale="scale")
    )
    fn = into_buffers(library)
    _, report, _ = run_rewritten(fn, *inputs())
    assert [site.code for site in report] == ["opaque_quant"]


def test_unsupported_weight_dtype():
    site = refusal(lambda x, z, w: QUANT(normed(x, z, w)), *inputs()[:2], torch.rand(256)[::2], code="unsupported")
    assert "contiguous" in site.found


def test_a_failure_inside_is_a_refusal(monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("fusionlib.fusions.gated_norm.read_gated_norm", broken)
    site = refusal(lambda x, z, w: QUANT(normed(x, z, w)), *inputs(), code="internal_error")
    assert "planted" in site.found


def test_reasons_are_explained():
    for code, reason in REASONS.items():
        assert reason.code == code and reason.sentence.endswith(".") and reason.fix.endswith(".")
