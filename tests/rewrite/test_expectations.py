"""`expect=` counts the fused sites of a whole compile: its branches, loops and parts, each once, cached or not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
import torch._dynamo.config as dynamo_config
from torch._dynamo.exc import TensorifyScalarRestartAnalysis
from torch._inductor.utils import fresh_cache

from fusionlib.explanation import boxed, inductor_until
from fusionlib.fusions import BUILT_IN, GatedNormQuant
from fusionlib.rewrite import FusionError, FusionPass
from fusionlib.testing.roundings import roundings_kept
from tests.rewrite.test_fusion_pass import NOT_OURS, PATH
from tests.spellings import QuantSpelling, inputs, run_rewritten


@pytest.fixture(autouse=True)
def apart() -> Iterator[None]:
    """Each test compiles as if nothing had been compiled before."""
    torch._dynamo.reset()
    with fresh_cache(), torch.no_grad(), roundings_kept():
        yield
    torch._dynamo.reset()


def passing(expect, **options) -> FusionPass:
    return FusionPass(("cpu",), expect=expect, **options)


def compiled(fn: Callable, fusion: FusionPass, **options) -> Callable:
    return torch.compile(fn, options={"post_grad_custom_pre_pass": fusion}, **options)


def one(x, z, w):
    return PATH(x, z, w)


def another(x, z, w):
    return PATH(x + 1, z, w)


def two(x, z, w):
    return *PATH(x, z, w), *PATH(x + 1, z, w)


def unclaimed(x, z, w):
    return QuantSpelling()(torch.tanh(x).flatten(1))


def nothing(x, z, w):
    return x.float() * w, z


# One graph.


@pytest.mark.parametrize("by_name", [False, True], ids=["in all", "by name"])
@pytest.mark.parametrize("expected", [0, 1, 2, 3])
def test_a_function_of_two_sites(expected, by_name):
    fusion = passing({"gated_norm": expected} if by_name else expected)
    name = "gated_norm " * by_name
    if expected == 2:
        run_rewritten(two, *inputs(), fusion=fusion)
        fusion.check()
        return
    with pytest.raises(Exception, match=f"expected {expected} fused {name}sites, got 2") as raised:
        run_rewritten(two, *inputs(), fusion=fusion)
    assert "2 fused, 0 refused in 1 graph" in str(raised.value)  # the report, with it


def test_a_refused_site_is_none_that_is_fused():
    def fn(x, z, w):
        return *PATH(x, z, w), NOT_OURS(x, z, w)

    run_rewritten(fn, *inputs(), fusion=passing(1))
    with pytest.raises(Exception, match="expected 2 fused sites, got 1"):
        run_rewritten(fn, *inputs(), fusion=passing(2))
    with pytest.raises(Exception, match="expected 1 fused sites, got 0"):
        run_rewritten(NOT_OURS, *inputs(), fusion=passing(1))


def test_a_fusion_that_is_not_named_may_fuse_what_it_likes():
    class Other(GatedNormQuant):
        name = "other"

    fusions = Other(), *BUILT_IN
    run_rewritten(two, *inputs(), fusion=passing({"gated_norm": 0}, fusions=fusions))
    run_rewritten(two, *inputs(), fusion=passing({"other": 2, "gated_norm": 0}, fusions=fusions))
    with pytest.raises(Exception, match="expected 1 fused gated_norm sites, got 0"):
        run_rewritten(two, *inputs(), fusion=passing({"other": 2, "gated_norm": 1}, fusions=fusions))


# Subgraphs.


def conditional(x, z, w):
    """A site in each branch, and one outside."""
    inside = torch.cond(x.sum() > 0, lambda x, z, w: PATH(x, z, w), lambda x, z, w: PATH(x * 2, z, w), (x, z, w))
    return *inside, *PATH(x + 1, z, w)


def loop(x, z, w):
    """A site that runs twice, and one outside."""
    from torch._higher_order_ops.while_loop import while_loop

    def body(i, x, scale):
        codes, scale = PATH(x, z, w)
        return i + 1, (codes.float() * scale.repeat_interleave(128, 1)).view(x.shape).to(x.dtype), scale.clone()

    inside = while_loop(lambda i, x, scale: i < 2, body, (torch.tensor(0), x, torch.zeros(6, 4)))
    return *inside, *PATH(x + 1, z, w)


def mapped(x, z, w):
    """A site for each of several tensors, and one outside."""
    from torch._higher_order_ops.map import map as map_over

    def each(x, z, w):
        codes, scale = PATH(x, z, w)
        return codes.float(), scale

    return *map_over(each, torch.stack([x, x * 2]), z, w), *PATH(x + 1, z, w)


def only_inside(x, z, w):
    """No site outside: the outermost graph, the last that the pass gets, has none at all."""
    return torch.cond(x.sum() > 0, lambda x, z, w: PATH(x, z, w), lambda x, z, w: PATH(x * 2, z, w), (x, z, w))


@torch.compiler.nested_compile_region
def inside(x, z, w):
    return PATH(x, z, w)


def region(x, z, w):
    """A site in a region that is entered twice and compiled once, and one outside."""
    return *inside(x, z, w), *inside(x + 1, z, w), *PATH(x + 2, z, w)


SITES = {conditional: 3, loop: 2, mapped: 2, region: 2}


@pytest.mark.parametrize("fn", SITES, ids=lambda fn: fn.__name__)
def test_the_sites_of_subgraphs_count_with_those_around_them(fn):
    tensors, sites = inputs(), SITES[fn]
    with dynamo_config.patch(capture_scalar_outputs=True):  # without it Inductor has no code for a map
        fusion = passing(sites, strict=True)
        compiled(fn, fusion, fullgraph=True)(*tensors)
        fusion.check()
        assert len(fusion.report().fused) == sites and len(fusion.report().compiles) == sites
        for expected in (sites - 1, sites + 1):
            for expect, name in ((expected, ""), ({"gated_norm": expected}, "gated_norm ")):
                torch._dynamo.reset()
                with pytest.raises(Exception, match=f"expected {expected} fused {name}sites, got {sites}"):
                    compiled(fn, passing(expect), fullgraph=True)(*tensors)


def test_too_few_in_branches_alone_are_found_at_the_end():
    fusion = passing(3)
    compiled(only_inside, fusion)(*inputs())
    with pytest.raises(FusionError, match="expected 3 fused sites, got 2"):
        fusion.check()
    torch._dynamo.reset()
    with pytest.raises(Exception, match="expected 1 fused sites, got 2"):
        compiled(only_inside, passing(1))(*inputs())


def test_a_warm_cache_counts_subgraphs_the_same():
    """Of a region: Inductor keeps no condition, loop or map in its caches."""
    tensors = inputs()
    for cached in (False, True):
        fusion = passing({"gated_norm": 2}, strict=True)
        compiled(region, fusion)(*tensors)
        fusion.check()
        assert [record.cached for record in fusion.report().compiles] == [cached] * 2
        torch._dynamo.reset()


# Graph breaks.


def broken(x, z, w):
    """A site in each part."""
    codes, scale = PATH(x, z, w)
    torch._dynamo.graph_break()
    return codes, scale, *PATH(x + 1, z, w)


def helper(x, z, w):
    return PATH(x + 2, z, w)


def broken_twice(x, z, w):
    """A site in two parts, and one in a function that is called between them and cut itself."""
    first = broken(x, z, w)
    torch._dynamo.graph_break()
    return *first, *helper(x, z, w)


def test_the_parts_of_a_broken_model_count_together():
    for fn, sites in ((broken, 2), (broken_twice, 3)):
        fusion = passing(sites, strict=True)
        compiled(fn, fusion)(*inputs())
        fusion.check()
        torch._dynamo.reset()


def test_too_many_in_the_parts_are_found_at_the_first_part_that_is_one_too_many():
    fusion = passing(1)
    with pytest.raises(Exception, match="expected 1 fused sites, got 2") as raised:
        compiled(broken, fusion)(*inputs())
    assert "2 fused, 0 refused in 2 graphs" in str(raised.value)
    assert len(fusion.report().fused) == 1


def test_too_few_in_the_parts_are_found_at_the_end():
    """Each part could be followed by another."""
    fusion = passing(3)
    compiled(broken, fusion)(*inputs())
    with pytest.raises(FusionError, match="expected 3 fused sites, got 2"):
        fusion.check()


def test_parts_found_too_many_with_one_from_the_cache():
    tensors = inputs()

    def first(x, z, w):  # the first part of both functions has the same graph
        codes, scale = PATH(x, z, w)
        torch._dynamo.graph_break()
        return codes, scale.sum()

    compiled(first, passing(1))(*tensors)
    torch._dynamo.reset()
    fusion = passing(1)
    with pytest.raises(Exception, match=r"expected 1 fused sites, got 2\n2 fused, 0 refused in 2 graphs \(1 from the"):
        compiled(broken, fusion)(*tensors)


class Layers(torch.nn.Module):
    """Two sites in a loop that breaks: Dynamo compiles no part of `forward` itself, and each layer apart."""

    def forward(self, x, z, w):
        results = []
        for layer in (one, another):
            results.append(layer(x, z, w))
            torch._dynamo.graph_break()
        return results


def in_layers(x, z, w):
    return Layers()(x, z, w)


@pytest.mark.parametrize("make", [lambda: Layers(), lambda: in_layers], ids=["module", "function"])
def test_what_dynamo_compiles_inside_of_a_model_is_a_part_of_it(make):
    fusion = passing(2)
    compiled(make(), fusion)(*inputs())
    fusion.check()
    torch._dynamo.reset()
    with pytest.raises(Exception, match="expected 1 fused sites, got 2"):
        compiled(make(), passing(1))(*inputs())


def either(x, z, w):
    """A site in each of two branches of Python; the condition is a graph break."""
    if x.sum() > 0:
        return PATH(x, z, w)
    return PATH(x + 1, z, w)


def test_a_part_that_another_call_enters_counts_too():
    x, z, w = inputs()
    call = compiled(either, passing(1))
    call(x.abs(), z, w)
    with pytest.raises(Exception, match="expected 1 fused sites, got 2"):
        call(-x.abs(), z, w)


# Other models.


def breaks(x):
    y = x + 1
    torch._dynamo.graph_break()
    return y * 2


def test_a_break_in_something_else_joins_no_models():
    """It hides too few fused sites in the next model until the end, and in no later one."""
    tensors, fusion = inputs(), passing(1)
    torch.compile(breaks, backend="eager")(tensors[0])
    compiled(one, fusion)(*tensors)
    compiled(another, fusion)(*tensors)
    fusion.check()
    with pytest.raises(Exception, match="expected 1 fused sites, got 0"):
        compiled(NOT_OURS, fusion)(*tensors)
    torch._dynamo.reset()
    fusion = passing(2)
    torch.compile(breaks, backend="eager")(tensors[0])
    compiled(one, fusion)(*tensors)
    with pytest.raises(FusionError, match="expected 2 fused sites, got 1"):
        fusion.check()


def test_two_models_that_are_cut_count_apart():
    fusion = passing(2)
    compiled(broken, fusion)(*inputs())
    compiled(Layers(), fusion)(*inputs())
    fusion.check()
    assert len(fusion.report().fused) == 4


def test_decorated_models_are_told_apart():
    def decorated(fn):
        @functools.wraps(fn)
        def wrapper(*args):
            return fn(*args)

        return wrapper

    fusion = passing(2)
    for fn in (broken, in_layers):
        compiled(decorated(fn), fusion)(*inputs())
    fusion.check()


def test_a_part_that_fuses_too_many_by_itself_is_found_at_once():
    def fn(x, z, w):
        torch._dynamo.graph_break()
        return two(x, z, w)

    with pytest.raises(Exception, match="expected 1 fused sites, got 2"):
        compiled(fn, passing(1))(*inputs())


# The same again.


@pytest.mark.parametrize(("fn", "sites"), [(one, 1), (broken, 2)], ids=["whole", "broken"])
def test_a_recompile_does_not_count_twice(fn, sites):
    fusion = passing(sites)
    call = compiled(fn, fusion, dynamic=False)
    for tokens in (6, 5):
        call(*inputs(tokens))
    fusion.check()
    assert len(fusion.report().compiles) == 2 * sites


@pytest.mark.parametrize(("fn", "sites"), [(one, 1), (broken, 2)], ids=["whole", "broken"])
def test_a_compile_after_a_reset_does_not_count_twice(fn, sites):
    """A reset of Dynamo numbers its frames anew; a cache answers what was compiled before."""
    fusion = passing(sites)
    for tokens in (6, 6, 5):
        compiled(fn, fusion)(*inputs(tokens))
        torch._dynamo.reset()
    fusion.check()
    assert [record.cached for record in fusion.report().compiles] == [
        cached for cached in (False, True, False) for _ in range(sites)
    ]


def test_functions_that_are_compiled_apart_count_apart():
    """Also where a reset between them gives both the same frame."""
    for reset in (False, True):
        fusion = passing(1)
        for fn in (one, another):
            compiled(fn, fusion)(*inputs())
            if reset:
                torch._dynamo.reset()
        fusion.check()
        compiled(two, passing(2))(*inputs())
        with pytest.raises(Exception, match="expected 1 fused sites, got 2"):
            compiled(two, fusion)(*inputs())
        torch._dynamo.reset()


def test_a_warm_cache_counts_the_same():
    tensors = inputs()
    for cached in (False, True):
        good, bad = passing(2), passing(3)
        for fusion in (good, bad):
            compiled(broken, fusion)(*tensors)
            assert [record.cached for record in fusion.report().compiles] == [cached] * 2
            torch._dynamo.reset()
        good.check()
        with pytest.raises(FusionError, match="expected 3 fused sites, got 2"):
            bad.check()


# Nothing.


@pytest.mark.parametrize("expect", [None, 1, {"gated_norm": 1}, {}], ids=str)
def test_nothing_seen_at_all_is_never_what_was_expected(expect):
    fusion = passing(expect)
    with pytest.raises(FusionError, match="no site in any graph that a fusion starts from: 0 sites are unclaimed, 0 g"):
        fusion.check()
    run_rewritten(nothing, *inputs(), fusion=fusion)
    with pytest.raises(FusionError, match="1 graphs came without a quantisation"):
        fusion.check()


def test_sites_that_no_fusion_starts_from_are_not_enough_and_are_named():
    fusion = passing(1)
    run_rewritten(unclaimed, *inputs(), fusion=fusion)  # a graph of another layer is let through
    with pytest.raises(FusionError, match="1 sites are unclaimed") as raised:
        fusion.check()
    for words in ("no fusion starts from %tanh = aten.tanh.default", "a fusion would save", "test_expectations.py:"):
        assert words in str(raised.value)
    run_rewritten(one, *inputs(), fusion=fusion)
    fusion.check()


@pytest.mark.parametrize("expect", [0, {"gated_norm": 0}], ids=str)
def test_no_site_can_be_what_is_expected(expect):
    fusion = passing(expect)
    fusion.check()
    for fn in (nothing, unclaimed, NOT_OURS):
        run_rewritten(fn, *inputs(), fusion=fusion)
    fusion.check()
    with pytest.raises(Exception, match=r"expected 0 fused (gated_norm )?sites, got 1"):
        run_rewritten(one, *inputs(), fusion=fusion)


# What is no number of sites.


@pytest.mark.parametrize("wrong", [-1, 1.0, True, False, "1", [1]], ids=repr)
def test_what_is_no_number_of_sites_is_turned_down_in_words(wrong):
    with pytest.raises(ValueError, match="a number of fused sites, 0 or more, a dict of such numbers by the names"):
        FusionPass(expect=wrong)
    with pytest.raises(ValueError, match="a number of fused sites, 0 or more, a dict of such numbers by the names"):
        FusionPass(expect={"gated_norm": wrong})


def test_none_is_no_number_for_a_name():
    with pytest.raises(ValueError, match="must be a number of fused sites"):
        FusionPass(expect={"gated_norm": None})


def test_a_name_that_no_fusion_of_the_pass_has_is_turned_down_with_those_that_it_has():
    with pytest.raises(ValueError, match=r"this pass has no fusion 'gated'; it has \['gated_norm', 'rms_norm', "):
        FusionPass(expect={"gated": 1})
    with pytest.raises(ValueError, match=r"no fusion 'gated_norm'; it has \[\]"):
        FusionPass(expect={"gated_norm": 1}, fusions=())


def test_a_dict_that_is_changed_afterwards_changes_nothing():
    expect = {"gated_norm": 2}
    fusion = passing(expect)
    key = fusion.uuid()
    expect["gated_norm"] = 1
    run_rewritten(two, *inputs(), fusion=fusion)
    assert fusion.uuid() == key != passing(expect).uuid()


# What Dynamo gave up.


class Again:
    """A backend that compiles `giving_up` times in vain: it asks Dynamo to trace the frame again."""

    def __init__(self, fusion: FusionPass, giving_up: int) -> None:
        self.fusion, self.left, self.graphs = fusion, giving_up, 0

    def __call__(self, module, tensors):
        def inner_compile(module, tensors, **_):
            self.graphs += 1
            self.fusion(module.graph)
            if self.left:
                self.left -= 1
                raise TensorifyScalarRestartAnalysis(restart_reason="asked for")
            module.recompile()
            return boxed(module)

        return inductor_until(inner_compile)(module, tensors)


@pytest.mark.parametrize("giving_up", [1, 2])
def test_a_graph_that_was_thrown_away_counts_no_more(giving_up):
    fusion, tensors = passing(1), inputs()
    backend = Again(fusion, giving_up)
    got = torch.compile(one, backend=backend)(*tensors)
    assert backend.graphs == giving_up + 1 and len(fusion.report().fused) == 1
    assert len(fusion.report().compiles) == 1
    fusion.check()
    assert all(map(torch.equal, (each.float() for each in got), (each.float() for each in one(*tensors))))


def test_what_other_compiles_made_is_kept_when_one_begins_again():
    fusion, tensors = passing(1), inputs()
    torch.compile(one, backend=Again(fusion, 0))(*tensors)
    torch.compile(another, backend=Again(fusion, 1))(*tensors)
    assert len(fusion.report().fused) == 2
    fusion.check()
