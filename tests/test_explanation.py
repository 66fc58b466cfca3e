"""explain says what the pass does: the same sites in the same graphs, whatever the sizes, subgraphs and breaks."""

import inspect
import logging

import pytest
import torch
import torch._dynamo.config as dynamo_config
from torch._inductor.utils import fresh_cache

from fusionlib import explain
from fusionlib.devices import KERNEL_DEVICES
from fusionlib.match.opaque import readers_kept
from fusionlib.pattern import TracedPass
from fusionlib.rewrite import FusionPass
from fusionlib.testing.roundings import roundings_kept
from tests.spellings import NormSpelling, QuantSpelling, inputs, site

PATH = site(NormSpelling(), QuantSpelling())
STATIC = site(NormSpelling(), lambda y: (y.float() / 0.1).to(torch.float8_e4m3fn))


def masked(x, z, w):
    keep = x.float().abs().sum((1, 2)) > 0
    return PATH(x[keep], z[keep], w)


def an_item(x, z, w):
    tokens = (w > 0).sum().item() % 3 + 2
    torch._check(tokens >= 2)
    torch._check(tokens <= x.shape[0])
    return PATH(x.narrow(0, 0, tokens), z.narrow(0, 0, tokens), w)


def returns_a_number(x, z, w):
    return *PATH(x, z, w), w.float().sum().item()


def conditional(x, z, w):
    return torch.cond(x.sum() > 0, lambda x, z, w: PATH(x, z, w), lambda x, z, w: PATH(x * 2, z, w), (x, z, w))


def conditional_in_conditional(x, z, w):
    def outer(x, z, w):
        return torch.cond(z.sum() > 0, lambda x, z, w: PATH(x, z, w), lambda x, z, w: PATH(x, z * 2, w), (x, z, w))

    return torch.cond(x.sum() > 0, outer, lambda x, z, w: PATH(x * 2, z, w), (x, z, w))


def loop(x, z, w):
    from torch._higher_order_ops.while_loop import while_loop

    def body(i, x, scale):
        codes, scale = PATH(x, z, w)
        return i + 1, (codes.float() * scale.repeat_interleave(128, 1)).view(x.shape).to(x.dtype), scale.clone()

    return while_loop(lambda i, x, scale: i < 2, body, (torch.tensor(0), x, torch.zeros(6, 4)))


def nested_region(x, z, w):
    @torch.compiler.nested_compile_region
    def region(x, z, w):
        return PATH(x, z, w)

    return *region(x, z, w), *region(x + 1, z, w)


def scanned(x, z, w):
    from torch._higher_order_ops.scan import scan

    def step(carry, each):
        codes, scale = PATH(each, z, w)
        return carry + scale, (codes.float().sum(), scale)

    return scan(step, torch.zeros(6, 4), torch.stack([x, x * 2]))


def mapped(x, z, w):
    from torch._higher_order_ops.map import map as map_over

    def each(x, z, w):
        codes, scale = PATH(x, z, w)
        return codes.float(), scale

    return map_over(each, torch.stack([x, x * 2]), z, w)


def broken(x, z, w):
    codes, scale = PATH(x, z, w)
    torch._dynamo.graph_break()
    return codes, scale, *STATIC(x, z, w)[:1]


CASES = {
    fn.__name__: fn
    for fn in (
        masked,
        an_item,
        returns_a_number,
        conditional_in_conditional,
        loop,
        nested_region,
        scanned,
        mapped,
        broken,
    )
}
#: How many sites the pass sees in each.
SITES = dict.fromkeys(CASES, 1) | {"conditional_in_conditional": 3, "broken": 2}


@pytest.mark.parametrize("name", CASES)
def test_it_says_what_the_pass_does(name):
    tensors = inputs()
    with (
        fresh_cache(),
        torch.no_grad(),
        dynamo_config.patch(capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True),
    ):
        said = explain(CASES[name], *tensors, devices="cpu")
        fusion = FusionPass(("cpu",))
        torch._dynamo.reset()
        torch.compile(CASES[name], options={"post_grad_custom_pre_pass": fusion})(*tensors)
    assert said == fusion.report()
    assert len(list(said)) == SITES[name]


def test_it_asks_about_the_devices_of_the_pass():
    """Unasked both rewrite on GPUs only, and say so in the same words."""
    said, fusion = explain(PATH, *inputs()), FusionPass()
    with fresh_cache(), torch.no_grad():
        torch._dynamo.reset()
        torch.compile(PATH, options={"post_grad_custom_pre_pass": fusion})(*inputs())
    assert said == fusion.report()
    assert [site.code for site in said] == ["device"]
    defaults = [inspect.signature(make).parameters["devices"].default for make in (explain, FusionPass, TracedPass)]
    assert defaults == [KERNEL_DEVICES] * 3


def test_behind_a_break_are_true_values():
    def fn(x, z, w):
        codes, scale = PATH(x, z, w)
        torch._dynamo.graph_break()
        if not float(scale.sum()) > 0:
            raise ValueError("zeros were fed")
        return codes, PATH(x, z, w)[1]

    assert len(explain(fn, *inputs(), devices="cpu").fused) == 1


def test_a_function_runs_once_and_what_it_writes_is_written():
    cache, tensors = torch.zeros(6, 4), inputs()

    def fn(x, z, w):
        codes, scale = PATH(x, z, w)
        cache.add_(scale)
        return codes

    with roundings_kept():
        explain(fn, *tensors, devices="cpu")
    assert torch.equal(cache, PATH(*tensors)[1])


def test_an_error_of_the_function_is_the_functions():
    def fn(x, z, w):
        rows = torch.full((2,), 99)
        return PATH(x[rows], z[rows], w)

    with pytest.raises(IndexError):
        explain(fn, *inputs(), devices="cpu")


def test_an_op_without_a_kernel_ends_it_with_a_warning(caplog):
    with readers_kept(), torch.library._scoped_library("fusionlib_test", "DEF") as lib:
        lib.define("nowhere(Tensor x) -> Tensor")
        torch.library.register_fake("fusionlib_test::nowhere", torch.empty_like, lib=lib)

        def fn(x, z, w):
            codes, scale = PATH(torch.ops.fusionlib_test.nowhere(x), z, w)
            torch._dynamo.graph_break()
            return codes, scale, PATH(x, z, w)

        with caplog.at_level(logging.WARNING, "fusionlib"):
            report = explain(fn, *inputs(), devices="cpu")
    assert len(report.fused) == 1
    assert any("saw 1 graph" in record.getMessage() and "nowhere" in record.getMessage() for record in caplog.records)


def test_watchers_see_every_graph_as_the_pass_left_it():
    seen = []
    explain(
        conditional,
        *inputs(),
        watch=lambda module, record: seen.append((module, record, str(module.graph))),
        devices="cpu",
    )
    assert [len(record.sites) for _, record, _ in seen] == [1, 1, 0]
    assert all(str(module.graph) == text for module, _, text in seen)  # and it stays that way
    assert all("fusionlib" in text for _, record, text in seen if record.sites)


def test_graphs_come_in_inductors_order():
    """As `post_grad_custom_pre_pass` itself gets them."""
    tensors, told, given = inputs(), [], []
    explain(
        conditional_in_conditional, *tensors, watch=lambda module, _: told.append(shape_of(module.graph)), devices=()
    )
    torch._dynamo.reset()
    with fresh_cache(), torch.no_grad():
        options = {"post_grad_custom_pre_pass": lambda graph: given.append(shape_of(graph))}
        torch.compile(conditional_in_conditional, options=options)(*tensors)
    assert told == given and len(told) == 5


def shape_of(graph):
    return [(node.op, str(node.target)) for node in graph.nodes if node.op != "get_attr"]
