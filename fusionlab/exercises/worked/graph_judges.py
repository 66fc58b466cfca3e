"""The judges of the capstone's graph work: reading a site, replacing it, and the pass around both.

The expected result is computed first, by the function itself on its own copy of the inputs; the rewritten graph must
leave its inputs unchanged. The inserted op marks its results, so that they cannot be mistaken for the old ones.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx

from fusionlab.exercises.worked import captured, compare, uuid_judge
from fusionlab.exercises.worked import silu_and_mul as worked
from fusionlab.exercises.worked.captured import MUST_NOT, NOT_FOR_ONE_CALL, REPLACED, SPELLINGS, halves
from fusionlab.exercises.worked.judges import no_function
from fusionlab.exercises.worked.ops import mark, marked_op
from fusionlab.exercises.worked.silu_and_mul import Found, Refused, SiluAndMul
from fusionlib.commands.failure import in_a_line
from fusionlib.match import QuantRead
from fusionlib.match.activation import read_activation
from fusionlib.match.graph import describe, dtype, operands, peel_exact, shape
from fusionlib.match.quant import is_fp8_cast, read_fp8_cast
from fusionlib.match.result import Trail
from fusionlib.match.sizes import same_shape
from fusionlib.testing.run_edited import run_edited

Outputs = tuple[torch.Tensor, ...]

# Step 5: reading.


@functools.cache
def _graph(name: str) -> fx.Graph:
    fn = SPELLINGS[name][0] if name in SPELLINGS else MUST_NOT[name]
    return captured.capture(fn, *halves())


def _quant(graph: fx.Graph) -> QuantRead:
    (anchor,) = [node for node in graph.nodes if is_fp8_cast(node)]
    return read_fp8_cast(anchor, Trail())


def read(answer: Any) -> str | None:
    """read_silu_and_mul(y): every spelling with its spec and inputs; Refused for every near miss."""
    if wrong := no_function(answer):
        return wrong
    for name in (*SPELLINGS, *MUST_NOT):
        graph = _graph(name)
        before = str(graph)
        wrong = _judge_spelling(answer, name) if name in SPELLINGS else _judge_neighbour(answer, name)
        if str(graph) != before:
            _graph.cache_clear()
            return f"{name}: it changes the graph that it reads."
        if wrong:
            return wrong
    return None


def _judge_spelling(answer: Callable, name: str) -> str | None:
    y = _quant(_graph(name)).y
    want = worked.read_silu_and_mul(y)
    try:
        got = answer(y)
    except Refused as reason:
        return f"{name} is refused ({reason}), and it is the computation."
    if not isinstance(got, Found):
        return f"for {name} it returns {got!r}; return Found(gate, up, spec) or raise Refused."
    for what, found, right in (("gate", got.gate, want.gate), ("up", got.up, want.up)):
        if not isinstance(found, fx.Node) or peel_exact(found) is not right:
            return f"for {name} it takes {describe(found)} for {what}; it is {describe(right)}."
        if dtype(found) != dtype(right) or not same_shape(shape(found), shape(right)):
            return f"for {name} its {what} is {describe(found)}; the op takes {describe(right)} as it comes."
    if got.spec != SiluAndMul(*SPELLINGS[name][1]):
        return f"for {name} it reads {got.spec}, and so it would round elsewhere than the graph."
    return None


def _judge_neighbour(answer: Callable, name: str) -> str | None:
    try:
        answer(_quant(_graph(name)).y)
    except Refused:
        return None
    return f"{name}: it is read as if it were the computation. Rewriting it would change the model."


# Step 6: replacing.


def replace(answer: Any) -> str | None:
    """replace(graph, quant, found, op): in every spelling and size, also with a symbolic number of tokens."""
    if wrong := no_function(answer):
        return wrong
    cases = {name: (fn, 6, 256) for name, (fn, _) in SPELLINGS.items()} | REPLACED
    for name, (fn, tokens, hidden) in cases.items():
        if wrong := _judge_replaced(answer, name, fn, halves(tokens, hidden, seed=1)):
            return wrong
    fn = SPELLINGS["F.silu(gate) * up"][0]
    wrong = _judge_replaced(answer, "an open number of tokens", fn, halves(10, 256, seed=1), dynamic=(0, 1))
    return wrong or _judge_layout(answer)


def _judge_replaced(
    answer: Callable, name: str, fn: Callable, inputs: Outputs, dynamic: Sequence[int] = ()
) -> str | None:
    found: dict[str, Any] = {}

    def edit(graph: fx.Graph) -> None:
        quant = _quant(graph)
        answer(graph, quant, worked.read_silu_and_mul(quant.y), marked_op())
        graph.lint()
        found.update(_inventory(graph))

    outcome = _run(edit, fn, inputs, dynamic)
    if isinstance(outcome, str):
        return f"{name}: {outcome}"
    got, want = outcome
    if wrong := _not_marked(got, want):
        return f"{name}: {wrong}"
    if found["calls"] != 1:
        return f"{name}: the graph calls the op {found['calls']} times; one call makes codes and scale."
    if found["old"]:
        return f"{name}: the old computation is still in the graph ({', '.join(found['old'][:3])}): it is dead."
    return None


def _inventory(graph: fx.Graph) -> dict[str, Any]:
    names = ("amax", "abs", "exp", "clamp")
    old = [node.name for node in graph.nodes if node.op == "call_function" and node.name.startswith(names)]
    return {"calls": sum(node.target is marked_op() for node in graph.nodes), "old": old}


def _run(
    edit: Callable[[fx.Graph], object], fn: Callable, inputs: Outputs, dynamic: Sequence[int] = (), grad: bool = False
) -> str | tuple[Outputs, Outputs]:
    """(result of the edited function, result of the function itself), or what went wrong."""
    want = tuple(result.detach() for result in fn(*inputs))
    kept = [tensor.detach().clone() for tensor in inputs]
    given = [_copy(tensor) for tensor in inputs]
    try:
        with _quiet():
            got = run_edited(edit, fn, *given, dynamic=dynamic, grad=grad)
    except Exception as error:
        return f"it raised {in_a_line(error)}"
    if not all(compare.same_bits(tensor.detach(), before) for tensor, before in zip(given, kept, strict=True)):
        return "the inputs are others afterwards: something writes into them."
    return tuple(result.detach() for result in got), want


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress what the compiler logs about an edit that breaks it; the judge says so in a sentence."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides that requires gradients if `tensor` does."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    return copy.copy_(tensor.detach()).requires_grad_(tensor.requires_grad)


def _not_marked(got: Outputs, want: Outputs) -> str | None:
    """Why `got` is not what the marked op makes of `want`."""
    for what, new, old in zip(("codes", "scale", "value made of the scale"), got, want, strict=False):
        if compare.same_result(new, mark(old)):
            continue
        if compare.same_bits(new, old):
            return f"what comes out as {what} is not the op's: somebody still uses the old one."
        if new.shape != old.shape or compare.strides_that_count(new) != compare.strides_that_count(old):
            was = f"{list(old.shape)} with strides {old.stride()}"
            return f"what comes out as {what} is {list(new.shape)} with strides {new.stride()}, and was {was}."
        return f"what comes out as {what} is not what the function computes."
    return None


def _judge_layout(answer: Callable) -> str | None:
    """Results whose layout would differ from what they replace: refused and left alone, or converted to that layout."""
    refused = []

    def edit(graph: fx.Graph) -> None:
        quant = _quant(graph)
        gate, up = (peel_exact(operand) for operand in operands(_product(quant.y)))
        gate = read_activation(gate).gate
        try:
            answer(graph, quant, Found(gate, up, SiluAndMul()), marked_op())
        except Refused as reason:
            refused.append(reason)
        graph.lint()

    outcome = _run(edit, captured.in_columns, halves(seed=1))
    if isinstance(outcome, str):
        return f"inputs that lie column by column: {outcome}"
    got, want = outcome
    if refused and compare.same_results(got, want):
        return None
    if wrong := _not_marked(got, want):
        about = "raise Refused before anything is changed, or make the layout the same"
        return f"inputs that lie column by column: {wrong} What replaces must lie as what it replaces: {about}."
    return None


def _product(y: fx.Node) -> fx.Node:
    product = peel_exact(y)
    return peel_exact(product.args[0]) if product.name.startswith("convert_element_type") else product


# Step 7: the pass.


def the_pass(answer: Any) -> str | None:
    """SiluAndMulPass(op): sites, results, graphs that must be left alone, gradients, and the uuid."""
    if not isinstance(answer, type):
        return f"{answer!r} is no class."
    judges = (uuid_judge.here, _judge_sites, _judge_left_alone, uuid_judge.elsewhere)  # the quick ones come first
    return next(filter(None, (judge(answer) for judge in judges)), None)


def _per_tensor(up: torch.Tensor) -> torch.Tensor:
    return (up.float() / (up.float().abs().amax() / 448.0)).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)


def _two_sites(gate: torch.Tensor, up: torch.Tensor) -> Outputs:
    return *SPELLINGS["F.silu(gate) * up"][0](gate, up), _per_tensor(up)


def _three_sites(gate: torch.Tensor, up: torch.Tensor) -> Outputs:
    first = captured.quant(torch.nn.functional.silu(gate) * up, 64, floor=1e-4)
    second = captured.quant(torch.nn.functional.silu(up.float()) * gate.float())
    return _per_tensor(gate), *first, *second


def _kinds(fusion: Any) -> list[str] | str:
    """What `fusion` says about its sites, or what is wrong with how it says it."""
    sites = getattr(fusion, "sites", None)
    if not isinstance(sites, list | tuple) or not all(isinstance(site, str) for site in sites):
        return f"its sites are {sites!r:.60}; make it a list with a line of text for each."
    kinds = [next((kind for kind in ("fused", "refused") if site.startswith(kind)), None) for site in sites]
    if None in kinds:
        return f"a line of sites begins with neither fused nor refused: {sites[kinds.index(None)]!r:.60}"
    return kinds


def _judge_sites(answer: type) -> str | None:
    """Sites of several kinds in one graph: each has its line, and fused ones come from the op."""
    marks = {_two_sites: (True, True, False), _three_sites: (False, True, True, True, True)}
    for fn, marked in marks.items():
        fusion = answer(marked_op())
        outcome = _run(fusion, fn, halves(6, 256, seed=2))
        if isinstance(outcome, str):
            return f"in a compile with a site of another kind: {outcome}"
        got, want = outcome
        want = tuple(mark(result) if from_op else result for result, from_op in zip(want, marked, strict=True))
        kinds, expected = _kinds(fusion), ["fused"] * (sum(marked) // 2) + ["refused"]
        if isinstance(kinds, str):
            return kinds
        if sorted(kinds) != expected:
            return f"of {len(expected)} sites, one of them per tensor, it reports {sorted(kinds)}; none may be silent."
        if not compare.same_results(got, want):
            return "the compiled function gives other results, or not the results of the op that the pass was given."
    return None


def _train(gate: torch.Tensor, up: torch.Tensor) -> Outputs:
    """A site that would fuse if no gradients were taken."""
    return *captured.quant((torch.nn.functional.silu(gate) * up).detach()), gate.square().sum()


def _judge_left_alone(answer: type) -> str | None:
    """Graphs in which nothing may be fused: no site, near misses, sites that one call cannot replace, gradients."""
    cases: dict[str, Callable] = {"a graph without a site": captured.no_site} | NOT_FOR_ONE_CALL
    cases |= {name: MUST_NOT[name] for name in ("gelu in place of silu", "three dimensions")}
    cases["gradients are taken of this graph"] = _train
    for what, fn in cases.items():
        fusion, grad = answer(marked_op()), fn is _train
        gate, up = halves(6, 256, seed=2)
        outcome = _run(fusion, fn, (gate.clone().requires_grad_() if grad else gate, up), grad=grad)
        if isinstance(outcome, str):
            return f"{what}: {outcome}"
        kinds, expected = _kinds(fusion), [] if fn is captured.no_site else ["refused"]
        if isinstance(kinds, str):
            return kinds
        if "fused" in kinds:
            return f"{what}, and it fused; one call cannot do that."
        if kinds != expected:
            return f"{what}: it reports {kinds or 'nothing'}; each site has one line, and where there is none no line."
        if not compare.same_results(*outcome):
            return f"{what}: it gives other results, though nothing was to be changed."
    return None
