"""Fused, refused, unclaimed: what each site is to the fusions of a pass, and what a second fusion gets for free."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import fx
from torch._inductor.utils import fresh_cache

from fusionlib import GroupQuant, group_quant, reference
from fusionlib.fusions import BUILT_IN, Fusion, NotMine, QuantOp, Reading, Trail, places_problem, rows_problem
from fusionlib.match.graph import aten, is_call
from fusionlib.match.opaque import readers_kept
from fusionlib.rewrite import Chain, FusionError, FusionPass, Report
from tests.rewrite.test_fusion_pass import compiled
from tests.spellings import FP8, NormSpelling, QuantSpelling, agree, inputs, run_rewritten
from tests.support import same

TOKENS, HEADS, HEAD_DIM = 6, 4, 128


def normed(x: torch.Tensor) -> torch.Tensor:
    """x over the root of the sum of its squares, in float32."""
    value = x.float()
    return value * torch.rsqrt(value.pow(2).sum(-1, keepdim=True) + 1e-6)


#: What other layers quantise, of x and z [tokens, heads, head_dim] and w [head_dim]: a value of x's dtype, and the last
#: operation that computes it, on the line that it stands in.
PRODUCERS: dict[str, tuple[str, Callable]] = {
    "l2_norm": ("aten.mul.Tensor", lambda x, z, w: (normed(x) * w.float()).to(x.dtype)),
    "add_l2_norm": ("aten.mul.Tensor", lambda x, z, w: (normed(x + z) * (1 + w.float())).to(x.dtype)),
    "relu_and_mul": ("aten.mul.Tensor", lambda x, z, w: F.relu(x) * z),
    "add": ("aten.add.Tensor", lambda x, z, w: x + z),
    "tanh": ("aten.tanh.default", lambda x, z, w: torch.tanh(x)),
    "layer_norm": ("aten.add.Tensor", lambda x, z, w: F.layer_norm(x, w.shape, w, w)),
    "matmul": ("aten.mm.default", lambda x, z, w: x @ torch.outer(w, w)),
}


def static(y: torch.Tensor) -> tuple[torch.Tensor]:
    return ((y.float() / 0.1).clamp(-448, 448).to(FP8),)


def nobodys(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """An op that nobody registered; its first argument is not what it quantises."""
    return torch.ops.fusionlib_outcomes_unknown.quant(torch.ones(1), y)


#: How a value [tokens, hidden] is quantised, and the code with which a site is refused, where it is.
QUANTS: dict[str, tuple[Callable, str]] = {
    "by_group": (QuantSpelling(), ""),
    "opaque": (lambda y: group_quant(y, GroupQuant()), ""),
    "static": (static, "per_tensor_static"),
    "unregistered": (nobodys, "unknown_quant_op"),
}


@pytest.fixture(autouse=True)
def unregistered() -> Iterator[None]:
    """The op behind `nobodys`."""
    with readers_kept(), torch.library._scoped_library("fusionlib_outcomes_unknown", "DEF") as lib:
        lib.define("quant(Tensor scale, Tensor y) -> (Tensor, Tensor)")
        lib.impl("quant", lambda scale, y: reference.group_quant(y, GroupQuant()), "CompositeExplicitAutograd")
        torch.library.register_fake(
            "fusionlib_outcomes_unknown::quant", lambda scale, y: reference.group_quant(y, GroupQuant()), lib=lib
        )
        yield


def layer(producer: Callable, quant: Callable) -> Callable:
    return lambda x, z, w: quant(producer(x, z, w).flatten(1))


# Another layer's quantisation.


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("producer", PRODUCERS)
def test_another_layers_quantisation_is_unclaimed(producer, quant, dynamic):
    """Not refused, so that `strict` lets it pass; its node, its line and what a fusion would save are named."""
    (target, make), (quantise, code) = PRODUCERS[producer], QUANTS[quant]
    fusion = FusionPass(("cpu",), strict=True)
    tensors = inputs(TOKENS, HEADS, HEAD_DIM)
    _, report, (graph,) = run_rewritten(layer(make, quantise), *tensors, fusion=fusion, dynamic=dynamic)
    (site,) = report.unclaimed
    assert list(report) == [site] and (site.code, site.fusion) == (code, "")
    assert {node.name: str(node.target) for node in graph.nodes}[site.node] == target
    line = f"tests/rewrite/test_outcomes.py:{make.__code__.co_firstlineno}"
    assert site.line == line
    # Written by its layer and read by the quantisation, two bytes an element: not the four before the last cast.
    per_token = 2 * HEADS * HEAD_DIM * make(*tensors).element_size()
    saved = f"{per_token:,} bytes per token" if dynamic else f"{per_token * TOKENS:,} bytes, one write"
    assert f"a fusion would save {saved}" in site.what
    text = str(site)
    assert line in text and f"%{site.node} = {target}" in text and saved in text
    assert code in text and all(part in report._repr_html_() for part in (line, "unclaimed", saved))


@pytest.mark.parametrize("quant", QUANTS)
def test_the_same_quantisation_below_a_gated_norm_is_fused_or_refused(quant):
    quantise, code = QUANTS[quant]
    _, report, _ = run_rewritten(layer(NormSpelling(), quantise), *inputs())
    (site,) = report
    assert (site.fused, site.refused, site.code, site.fusion) == (not code, bool(code), code, "gated_norm")
    if code:
        with pytest.raises(Exception, match=code):
            run_rewritten(layer(NormSpelling(), quantise), *inputs(), fusion=FusionPass(("cpu",), strict=True))


def test_a_value_in_float32_is_counted_by_its_four_bytes():
    _, report, _ = run_rewritten(layer(lambda x, z, w: torch.tanh(x.float()), QuantSpelling()), *inputs())
    assert f"save {2 * TOKENS * HEADS * HEAD_DIM * 4:,} bytes," in report.unclaimed[0].what


def test_a_token_is_counted_whole_where_its_heads_are_rows():
    """[tokens * heads, head_dim]: the open size is four times the tokens."""

    def rows(x, z, w):
        return torch.tanh(x.reshape(-1, HEAD_DIM)).reshape(x.shape[0], -1)

    _, report, _ = run_rewritten(layer(rows, QuantSpelling()), *inputs(heads=HEADS), dynamic=True)
    assert f"save {2 * HEADS * HEAD_DIM * 2:,} bytes per token" in report.unclaimed[0].what


def model(x, z, w):
    """A gated norm and all other layers, in every quantisation, as one model has them."""
    y = NormSpelling()(x, z, w).flatten(1)
    others = [layer(make, quantise)(x, z, w)[0] for _, make in PRODUCERS.values() for quantise, _ in QUANTS.values()]
    return *QuantSpelling()(y), *others


def test_a_model_with_many_layers_is_fused_where_it_is_a_gated_norm():
    fusion, others = FusionPass(("cpu",), strict=True, expect=1), len(PRODUCERS) * len(QUANTS)
    tensors = inputs()
    got, report, _ = run_rewritten(model, *tensors, fusion=fusion)
    agree(got, model(*tensors), 128)
    assert (len(report.fused), len(report.refused), len(report.unclaimed)) == (1, 0, others)
    assert report.summary.startswith(f"1 fused, 0 refused, {others} unclaimed in 1 graph ")
    fusion.check()


# A second fusion.


@dataclass(frozen=True)
class Tanh:
    """tanh(x), rounded to x's dtype as PyTorch rounds it."""

    def output_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """That of x."""
        return dtype


def tanh_problem(x: torch.Tensor, spec: Tanh, quant: GroupQuant) -> str | None:
    return rows_problem({"x": x}, quant, x.dtype) or places_problem(x)


TANH = QuantOp(
    "fusionlib_outcomes::tanh_quant",
    "Tensor x",
    Tanh,
    value=lambda x, spec: torch.tanh(x.flatten(1)),
    problem=tanh_problem,
)


class TanhQuant(Fusion):
    """tanh before a quantisation."""

    name = "tanh"
    op = TANH

    def read(self, value: fx.Node, trail: Trail) -> Reading:
        """The tanh whose value is `value`."""
        if not is_call(value, aten.tanh.default):
            raise NotMine
        trail.add("tanh", value)
        return Reading({"x": value.args[0]}, Tanh())


def both_layers(x, z, w):
    """Two tanh and one gated norm, each with its quantisation."""
    tanh, gated = PRODUCERS["tanh"][1], NormSpelling()
    first, second = (layer(tanh, QuantSpelling())(t, z, w) for t in (x, z))
    return *layer(gated, QuantSpelling())(x, z, w), *first, *second


def ours(*fusions: Fusion, **options) -> FusionPass:
    return FusionPass(("cpu",), fusions=fusions, **options)


def check_outputs(got, *tensors) -> None:
    want = both_layers(*tensors)
    assert len(got) == len(want) == 6
    for first in range(0, len(want), 2):
        agree(got[first : first + 2], want[first : first + 2], 128)


def test_two_passes_do_not_report_each_others_sites_as_refused():
    gated, tanh = ours(*BUILT_IN, strict=True, expect=1), ours(TanhQuant(), strict=True, expect={"tanh": 2})
    tensors = inputs()
    with fresh_cache():
        got = compiled(both_layers, Chain(gated, tanh), *tensors)
    check_outputs(got, *tensors)
    for each in (gated, tanh):
        each.check()
    assert gated.report().fused_by == {"gated_norm": 1} and len(gated.report().unclaimed) == 2
    assert tanh.report().fused_by == {"tanh": 2} and not tanh.report().unclaimed  # fused before it came


@pytest.mark.parametrize("order", [(*BUILT_IN, TanhQuant()), (TanhQuant(), *BUILT_IN)], ids=["behind", "before"])
def test_one_pass_with_both_fusions_fuses_both(order):
    fusion = ours(*order, strict=True, expect={"gated_norm": 1, "tanh": 2})
    tensors = inputs()
    with fresh_cache():
        got = compiled(both_layers, fusion, *tensors)
    check_outputs(got, *tensors)
    report = fusion.report()
    assert report.fused_by == {"gated_norm": 1, "tanh": 2}
    assert report.summary.startswith("3 fused (1 gated_norm, 2 tanh), 0 refused in 1 graph")
    assert {site.fusion for site in report.fused if "Tanh()" in site.what} == {"tanh"}
    assert str(report).count("Tanh() -> float8_e4m3fn per 128") == 2
    for site in report.fused:
        texts = [text for _, _, _, text in site.nodes]
        assert any("torch.tanh(x)" in text for text in texts) == (site.fusion == "tanh")


def test_a_pass_without_any_fusion_claims_nothing():
    _, report, _ = run_rewritten(both_layers, *inputs(), fusion=ours(strict=True))
    assert (len(report.fused), len(report.refused), len(report.unclaimed)) == (0, 0, 3)


def test_a_site_that_two_fusions_take_is_that_of_the_first():
    class Other(TanhQuant):
        name = "other"

    for fusions in ((TanhQuant(), Other()), (Other(), TanhQuant())):
        _, report, _ = run_rewritten(layer(PRODUCERS["tanh"][1], QuantSpelling()), *inputs(), fusion=ours(*fusions))
        assert report.fused_by == {fusions[0].name: 1}
    with pytest.raises(ValueError, match="name of its own"):
        ours(TanhQuant(), TanhQuant())
    with pytest.raises(TypeError, match=r"subclass of fusionlib\.fusions\.Fusion"):
        ours(TanhQuant)


def test_a_second_reader_of_the_value_gets_it_from_the_call():
    def fn(x, z, w):
        y = torch.tanh(x)
        return *QuantSpelling()(y.flatten(1)), y * 2

    tensors = inputs()
    got, report, (graph,) = run_rewritten(fn, *tensors, fusion=ours(TanhQuant(), strict=True))
    want = fn(*tensors)
    assert len(report.fused) == 1 and not any(node.target is aten.tanh.default for node in graph.nodes)
    assert any(node.target is TANH.returning({"value"})[0] for node in graph.nodes) and torch.equal(got[2], want[2])
    agree(got, want, 128)


# Its op.


@pytest.mark.parametrize("return_value", [False, True])
@pytest.mark.parametrize("quant", [GroupQuant(64), GroupQuant(32, scale_layout="column_major_padded")], ids=str)
def test_the_op_of_a_fusion_is_a_good_op(quant, return_value):
    x = torch.randn(3, 2, 64)
    op = TANH.returning({"value"})[0] if return_value else TANH.plain
    torch.library.opcheck(op, (x, *scalars_of(quant)))
    want = *reference.group_quant(torch.tanh(x.flatten(1)), quant), torch.tanh(x.flatten(1))
    got = TANH(x, Tanh(), quant, also={"value"} if return_value else ())
    assert len(got) == 2 + return_value
    assert all(same(a, b) for a, b in zip(got, want, strict=False))


def scalars_of(quant: GroupQuant) -> tuple:
    """As the schema of an op has them: the fields of the spec, one by one."""
    return (
        quant.group_size, quant.dtype, quant.floor, quant.floor_on, quant.division,
        quant.scale_format, quant.scale_layout, quant.round_scale, quant.fp8_max, quant.scale_division,
        quant.nan_scale,
    )  # fmt: skip


def test_the_op_of_a_fusion_has_the_gradient_of_its_reference():
    x, quant = torch.randn(3, 2, 64), GroupQuant(64)

    def gradient(call: Callable) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        codes, scale, value = call(leaf)
        loss = codes.float().sum() + (scale * torch.linspace(1, 2, scale.numel()).view(scale.shape)).sum()
        return torch.autograd.grad(loss + value.square().sum(), leaf)[0]

    def plain(leaf: torch.Tensor) -> tuple[torch.Tensor, ...]:
        value = torch.tanh(leaf.flatten(1))
        return *reference.group_quant(value, quant), value

    want = gradient(plain)
    assert want.abs().sum() > 0
    assert torch.equal(gradient(lambda leaf: TANH(leaf, Tanh(), quant, also={"value"})), want)


def test_the_op_of_a_fusion_says_what_does_not_fit():
    with pytest.raises(ValueError, match="fusionlib: group_size=96 does not divide"):
        TANH(torch.randn(3, 128), Tanh(), GroupQuant(96))
    assert "group_size=96" in TANH.unsupported(torch.randn(3, 128), Tanh(), GroupQuant(96))
    good = torch.randn(3, 128), Tanh(), GroupQuant()
    assert TANH.unsupported(*good) is None
    assert TANH.device_problem(*good) == "fusionlib_outcomes::tanh_quant has no kernel"


# Its record, and its part in the key of the caches.


class Versioned(TanhQuant):
    """The same, which says itself when it computes something else."""

    version = "1"


def test_a_warm_cache_brings_the_counts_of_every_fusion():
    tensors = inputs()
    with fresh_cache():
        reports: list[Report] = []
        for _ in range(2):
            fusion = ours(*BUILT_IN, Versioned(), expect={"gated_norm": 1, "tanh": 2}, strict=True)
            check_outputs(compiled(both_layers, fusion, *tensors), *tensors)
            fusion.check()
            reports.append(fusion.report())
    cold, warm = reports
    assert [record.cached for report in reports for record in report.compiles] == [False, True]
    assert list(cold) == list(warm) and warm.fused_by == {"gated_norm": 1, "tanh": 2}
    assert warm.summary == "3 fused (1 gated_norm, 2 tanh), 0 refused in 1 graph (1 from the compile cache)"


def test_a_warm_cache_brings_what_is_unclaimed():
    tensors = inputs()
    with fresh_cache():
        for cached in (False, True):
            fusion = FusionPass(("cpu",))
            compiled(both_layers, fusion, *tensors)
            (record,) = fusion.report().compiles
            assert record.cached == cached and len(fusion.report().unclaimed) == 2
            assert all("a fusion would save 12,288 bytes" in site.what for site in fusion.report().unclaimed)


def reading_with(number: int) -> Fusion:
    """A fusion whose `read` computes with a number that its code holds."""

    class Read(Fusion):
        name = "read"
        op = None
        limit = 3

        def read(self, value: fx.Node, trail: Trail) -> Reading:
            if len(value.args) > number:
                raise NotMine
            return Reading({"x": value.args[0]}, None)

    return Read()


def test_the_key_of_the_caches_holds_what_a_fusion_computes_with():
    key = ours(reading_with(1)).uuid()
    assert key is not None and ours(reading_with(1)).uuid() == key
    assert ours(reading_with(2)).uuid() != key
    changed = reading_with(1)
    type(changed).limit = 4
    assert ours(changed).uuid() != key
    held = reading_with(1)
    held.depth = 5
    assert ours(held).uuid() != key
    renamed = reading_with(1)
    type(renamed).name = "another"
    assert ours(renamed).uuid() != key
    assert len({ours().uuid(), key, ours(*BUILT_IN).uuid(), ours(*BUILT_IN, reading_with(1)).uuid()}) == 4


def test_the_key_of_the_caches_holds_what_its_op_takes():
    """What it turns down decides which sites are fused; compiled code calls all else of it by its name."""

    def key(**changes: Callable) -> str | None:
        parts = {"value": lambda x, spec: torch.tanh(x.flatten(1)), "problem": tanh_problem} | changes
        fusion = TanhQuant()
        fusion.op = QuantOp("fusionlib_outcomes::tanh_quant", "Tensor x", Tanh, **parts)
        return ours(fusion).uuid()

    assert key() == key() is not None
    assert key(value=lambda x, spec: torch.tanh(x).flatten(1)) == key()
    assert key(problem=lambda x, spec, quant: "nothing fits") not in (None, key())
    assert key(kernel_problem=lambda x, spec, quant: None) not in (None, key())


def test_two_equal_instances_of_a_fusion_have_one_key():
    assert ours(TanhQuant()).uuid() == ours(TanhQuant()).uuid() is not None
    assert ours(*BUILT_IN, TanhQuant()).uuid() != ours(TanhQuant(), *BUILT_IN).uuid()  # the first has a site
    assert FusionPass().uuid() == FusionPass(fusions=list(BUILT_IN)).uuid()


def test_a_version_stands_for_what_a_fusion_computes_with(caplog):
    """Also where its code cannot be hashed: then nothing is cached without one, and a warning says what to do."""

    class Unhashable(TanhQuant):
        name = "reads_a_file"

        def read(self, value: fx.Node, trail: Trail) -> Reading:
            with open("nowhere") as file:
                return Reading({"x": value.args[0]}, file.read())

    assert ours(Unhashable()).uuid() is None
    assert "the fusion reads_a_file" in caplog.text and "`version`" in caplog.text
    fusion = Unhashable()
    fusion.version = "1"
    key = ours(fusion).uuid()
    assert key is not None
    fusion.read = None  # whatever else it holds
    assert ours(fusion).uuid() == key
    fusion.version = "2"
    assert ours(fusion).uuid() not in (None, key)


def test_an_unclaimed_site_alone_is_not_what_was_expected():
    fusion = ours(TanhQuant(), expect={"tanh": 1})
    run_rewritten(layer(NormSpelling(), QuantSpelling()), *inputs(), fusion=fusion)
    with pytest.raises(FusionError, match="1 sites are unclaimed"):
        fusion.check()
