"""What a reader gets of a call: written arguments with their shapes and strides, in every form that a call has."""

import logging
from unittest import mock

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from fusionlib import FusionPass, GroupQuant, explain, group_quant
from fusionlib.fusions import BUILT_IN
from fusionlib.match import OpaqueQuant, Written, match_graph, register_quant_op
from fusionlib.match.opaque import readers_kept
from tests.spellings import FP8, NormSpelling, inputs, run_rewritten

NAME = "fusionlib_calls::quant_"


@pytest.fixture
def quant_():
    """An op of another project that writes codes and scales into arguments, one of which may be left out."""
    with readers_kept(), torch.library._scoped_library("fusionlib_calls", "DEF") as lib:
        lib.define("quant_(Tensor y, Tensor(a!) codes, Tensor(b!)? scale, int group=128) -> ()")

        def write(y, codes, scale, group=128):
            made = group_quant(y, GroupQuant(group))
            codes.copy_(made[0])
            if scale is not None:
                scale.copy_(made[1])

        lib.impl("quant_", write, "CompositeExplicitAutograd")
        torch.library.register_fake(NAME, lambda *a: None, lib=lib)
        yield torch.ops.fusionlib_calls.quant_


def noting(read):
    """A reader that notes what it is given, and takes the layout from the strides."""

    def reader(arguments):
        read.append(arguments)
        layout = "row_major" if arguments.fake("scale").stride(-1) == 1 else "column_major_padded"
        return OpaqueQuant(arguments["y"], GroupQuant(arguments["group"], scale_layout=layout), "codes", "scale")

    return reader


ROOMS = {
    "whole": (lambda tokens: torch.empty(tokens, 4), (4, 1)),
    "transposed": (lambda tokens: torch.empty(4, 8).t()[:tokens], (1, 8)),
    "cut": (lambda tokens: torch.zeros(tokens + 2, 4)[:tokens], (4, 1)),
}


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("second", [False, True], ids=["auto_functionalized", "auto_functionalized_v2"])
def test_a_written_argument_comes_with_its_strides(quant_, room, second):
    read, (allocate, strides) = [], ROOMS[room]
    register_quant_op(NAME, noting(read))

    def fn(x, z, w):
        y = NormSpelling()(x, z, w).flatten(1)
        codes, scale = torch.empty_like(y, dtype=FP8), allocate(y.shape[0])
        quant_(y, codes, scale)
        return codes, scale

    with torch._inductor.config.patch(enable_auto_functionalized_v2=second):
        run_rewritten(fn, *inputs())
    (arguments,) = read
    written = arguments["scale"]
    assert isinstance(written, Written) and isinstance(arguments["codes"], Written)
    assert tuple(written.fake.shape) == (6, 4) and written.fake.stride() == strides
    assert arguments.fake("codes").dtype is FP8 and arguments["group"] == 128 and arguments.op is quant_.default


def test_a_call_in_place_is_read_and_refused(quant_):
    """Nobody functionalised the graph: the reader sees the buffers, but no value of the graph holds what is written."""
    read = []
    register_quant_op(NAME, noting(read))

    def fn(x, z, w):
        y = NormSpelling()(x, z, w).flatten(1)
        codes, scale = torch.empty_like(y, dtype=FP8), torch.empty(y.shape[0], 4)
        quant_(y, codes, scale)
        return codes, scale

    graph = make_fx(fn, tracing_mode="fake")(*inputs()).graph
    (site,) = match_graph(graph, BUILT_IN)
    assert site.reason.code == "opaque_quant" and site.found == "a call that writes in place"
    assert (
        read[0].fake("scale").stride() == (4, 1) and read[0].node("scale").target is torch.ops.aten.empty.memory_format
    )


def test_an_argument_that_is_left_out(quant_):
    read = []

    def reader(arguments):
        read.append(arguments)
        return OpaqueQuant(arguments["y"], GroupQuant(), "codes", "scale")

    register_quant_op(NAME, reader)

    def fn(x, z, w):
        y = NormSpelling()(x, z, w).flatten(1)
        codes = torch.empty_like(y, dtype=FP8)
        quant_(y, codes, None)
        return codes

    got, report, _ = run_rewritten(fn, *(tensors := inputs()))
    assert read[0]["scale"] is None and read[0].given("scale") is None
    assert torch.equal(got.float(), fn(*tensors).float()), str(report)


@pytest.mark.parametrize("second", [False, True], ids=["auto_functionalized", "auto_functionalized_v2"])
def test_an_op_that_writes_into_a_list_is_no_quantisation(second):
    with torch.library._scoped_library("fusionlib_lists", "DEF") as lib:
        lib.define("fill_(Tensor y, Tensor(a!)[] rooms) -> ()")
        lib.impl("fill_", lambda y, rooms: [room.copy_(y) for room in rooms] and None, "CompositeExplicitAutograd")
        torch.library.register_fake("fusionlib_lists::fill_", lambda *a: None, lib=lib)

        def fn(x):
            rooms = [torch.empty_like(x), torch.empty_like(x)]
            torch.ops.fusionlib_lists.fill_(x, rooms)
            return rooms[0] + rooms[1]

        with torch._inductor.config.patch(enable_auto_functionalized_v2=second):
            got, report, _ = run_rewritten(fn, x := torch.randn(3))
    assert not list(report) and torch.equal(got, 2 * x)


@pytest.mark.parametrize("second", [False, True], ids=["auto_functionalized", "auto_functionalized_v2"])
def test_an_argument_whose_name_starts_another_ones(second):
    """`output` is written whole, `output_lse` is a view: the keys of the second are none of the first."""
    with torch.library._scoped_library("fusionlib_starts", "DEF") as lib:
        lib.define("merge(Tensor x, Tensor(a!) output, Tensor(b!) output_lse) -> ()")

        def merge(x, output, output_lse):
            output.copy_(x)
            output_lse.copy_(x[:, 0])

        lib.impl("merge", merge, "CompositeExplicitAutograd")
        torch.library.register_fake("fusionlib_starts::merge", lambda *a: None, lib=lib)

        def fn(x):
            output, sums = torch.empty_like(x), torch.empty(2, x.shape[0])
            torch.ops.fusionlib_starts.merge(x, output, sums[1])
            return output, sums[1]

        with torch._inductor.config.patch(enable_auto_functionalized_v2=second):
            got, report, _ = run_rewritten(fn, x := torch.randn(3, 4))
    assert not list(report) and torch.equal(got[0], x) and torch.equal(got[1], x[:, 0])


def test_a_call_that_cannot_be_looked_at_breaks_no_compile():
    def broken(node):
        if node.target is torch.ops.aten.neg.default:
            raise KeyError("planted")
        return None

    with mock.patch("fusionlib.match.matcher.product_input", broken):
        got, report, _ = run_rewritten(lambda x: -x, x := torch.randn(3))
    assert torch.equal(got, -x)
    assert [site.code for site in report] == ["internal_error"] and "planted" in report.refused[0].found


def test_the_error_of_a_reader_names_it_and_its_op(quant_, caplog):
    def mistaken(arguments):
        return arguments["no such"]

    register_quant_op(torch.ops.fusionlib.group_quant.default, mistaken)
    with caplog.at_level(logging.ERROR, "fusionlib"):
        (site,) = explain(
            lambda x, z, w: group_quant(NormSpelling()(x, z, w).flatten(1), GroupQuant()), *inputs(), devices="cpu"
        )
    assert site.code == "reader_failed" and "mistaken" in site.expected and "fusionlib::group_quant" in site.expected
    assert "KeyError" in site.found and "mistaken" in caplog.text and "Traceback" in caplog.text


def test_an_answer_of_another_kind_names_the_reader(quant_):
    register_quant_op(torch.ops.fusionlib.group_quant.default, lambda a: GroupQuant())
    (site,) = explain(
        lambda x, z, w: group_quant(NormSpelling()(x, z, w).flatten(1), GroupQuant()), *inputs(), devices="cpu"
    )
    assert site.code == "reader_failed" and "OpaqueQuant or OpaqueCast" in site.expected


def test_a_readers_own_reason_stays(quant_):
    def reader(arguments):
        return OpaqueQuant(arguments["y"], GroupQuant(-1))

    register_quant_op(torch.ops.fusionlib.group_quant.default, reader)
    fusion = FusionPass("cpu")
    _, report, _ = run_rewritten(
        lambda *a: group_quant(NormSpelling()(*a).flatten(1), GroupQuant()), *inputs(), fusion=fusion
    )
    (site,) = report
    assert site.code == "opaque_quant" and "fusionlib::group_quant: group_size" in site.found
