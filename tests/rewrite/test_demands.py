"""`expect`, `strict` and `check()`: what was asked for is done, or an error says what was done instead."""

import pytest
import torch
from torch._inductor.utils import fresh_cache

from fusionlib import GroupQuant, reference
from fusionlib.match import OpaqueQuant, register_quant_op
from fusionlib.match.opaque import readers_kept
from fusionlib.rewrite import FusionError, FusionPass
from tests.rewrite.test_fusion_pass import NOT_OURS, PATH, compiled
from tests.spellings import NormSpelling, inputs, run_rewritten


@pytest.fixture
def unregistered():
    """A path whose quantisation is an op that nobody registered."""
    with readers_kept(), torch.library._scoped_library("fusionlib_demands", "DEF") as lib:
        lib.define("quant(Tensor y) -> (Tensor, Tensor)")
        lib.impl("quant", lambda y: reference.group_quant(y, GroupQuant()), "CompositeExplicitAutograd")
        torch.library.register_fake(
            "fusionlib_demands::quant", lambda y: reference.group_quant(y, GroupQuant()), lib=lib
        )
        yield lambda x, z, w: torch.ops.fusionlib_demands.quant(NormSpelling()(x, z, w).flatten(1))


def nothing(x, z, w):
    return x.float() * w, z


@pytest.mark.parametrize("demand", [{"strict": True}, {"expect": 1}, {"expect": 1, "strict": True}], ids=str)
def test_an_op_that_nobody_registered_does_not_pass_in_silence(unregistered, demand):
    with pytest.raises(Exception, match="unknown_quant_op") as raised:
        run_rewritten(unregistered, *inputs(), fusion=FusionPass(("cpu",), **demand))
    assert "fusionlib_demands::quant" in str(raised.value) and "register_quant_op" in str(raised.value)


def test_the_way_out_is_one(unregistered):
    register_quant_op("fusionlib_demands::quant", lambda a: OpaqueQuant(a["y"], GroupQuant()))
    fusion = FusionPass(("cpu",), expect=1, strict=True)
    run_rewritten(unregistered, *inputs(), fusion=fusion)
    fusion.check()


def test_a_graph_without_a_site_is_let_through_and_found_at_the_end():
    fusion = FusionPass(("cpu",), expect=1, strict=True)
    run_rewritten(nothing, *inputs(), fusion=fusion)
    with pytest.raises(FusionError, match="1 graphs came without a quantisation"):
        fusion.check()
    run_rewritten(PATH, *inputs(), fusion=fusion)
    fusion.check()


def test_a_pass_that_was_never_called():
    for fusion in (FusionPass(("cpu",)), FusionPass(("cpu",), expect=3), FusionPass(("cpu",), strict=True)):
        with pytest.raises(FusionError, match="in the options"):
            fusion.check()


def test_nothing_is_what_was_expected():
    fusion = FusionPass(("cpu",), expect=0)
    fusion.check()
    run_rewritten(nothing, *inputs(), fusion=fusion)
    run_rewritten(NOT_OURS, *inputs(), fusion=fusion)
    fusion.check()


def test_a_site_that_is_refused_is_one():
    fusion = FusionPass(("cpu",))
    run_rewritten(NOT_OURS, *inputs(), fusion=fusion)
    fusion.check()


def test_what_a_warm_cache_brings_counts():
    with fresh_cache():
        tensors = inputs()
        for _ in range(2):
            fusion = FusionPass(("cpu",), expect=1, strict=True)
            compiled(PATH, fusion, *tensors)
            fusion.check()
        assert [record.cached for record in fusion.report().compiles] == [True]


@pytest.mark.parametrize("expect", [-1, 1.0, "1"])
def test_a_number_that_is_none(expect):
    with pytest.raises(ValueError, match="expect="):
        FusionPass(expect=expect)
