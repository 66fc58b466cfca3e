"""The judges of the capstone's graph work: reading a site, replacing it, and the pass around both."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import fx

from fusionlib.exercises.worked import captured
from fusionlib.exercises.worked import silu_and_mul as worked
from fusionlib.exercises.worked.captured import MUST_NOT, SPELLINGS, halves
from fusionlib.exercises.worked.judges import no_function
from fusionlib.exercises.worked.silu_and_mul import Found, Refused, SiluAndMul
from fusionlib.match import QuantRead
from fusionlib.match.graph import describe, peel_exact
from fusionlib.match.quant import is_fp8_cast, read_fp8_cast
from fusionlib.match.result import Trail
from fusionlib.observe.failure import in_a_line
from fusionlib.rewrite.run import run_edited


@functools.cache
def _graph(name: str) -> fx.Graph:
    fn = SPELLINGS[name][0] if name in SPELLINGS else MUST_NOT[name]
    return captured.capture(fn, *halves())


def _quant(graph: fx.Graph) -> QuantRead:
    (anchor,) = [node for node in graph.nodes if is_fp8_cast(node)]
    return read_fp8_cast(anchor, Trail())


def read(answer: Any) -> str | None:
    """read_silu_and_mul(y): every spelling with its spec and inputs; Refused for every neighbour."""
    if wrong := no_function(answer):
        return wrong
    for name, (_, points) in SPELLINGS.items():
        y = _quant(_graph(name)).y
        want = worked.read_silu_and_mul(y)
        try:
            got = answer(y)
        except Refused as reason:
            return f"{name} is refused ({reason}), and it is the computation."
        if not isinstance(got, Found):
            return f"for {name} it returns {got!r}; return Found(gate, up, spec) or raise Refused."
        if peel_exact(got.gate) is not want.gate or peel_exact(got.up) is not want.up:
            return f"for {name} it takes {describe(got.gate)} for the gate; silu is of {describe(want.gate)}."
        if got.spec != SiluAndMul(*points):
            return f"for {name} it reads {got.spec}, and so it would round elsewhere than the graph."
    for name in MUST_NOT:
        try:
            answer(_quant(_graph(name)).y)
        except Refused:
            continue
        return f"{name}: it is read as if it were the computation. Rewriting it would change the model."
    return None


def _poisoned(gate, up, act, out, group, floor):
    codes, scale = worked.fake(gate, up, act, out, group, floor)
    return torch.full_like(codes.view(torch.uint8), 0x7E).view(codes.dtype), torch.full_like(scale, 7.0)


@functools.cache
def _op(poisoned: bool) -> torch._ops.OpOverload:
    return worked.define_op(_poisoned if poisoned else worked.quantise, worked.fake)


def _same(got: Any, want: Any) -> bool:
    equal = (torch.equal(a.view(torch.uint8), b.view(torch.uint8)) and a.shape == b.shape
             for a, b in zip(got, want, strict=True))  # fmt: skip
    return all(equal)


def _with_views(gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """The scale is used in two shapes, one of them before the codes are made."""
    y = (torch.nn.functional.silu(gate) * up).view(gate.shape[0], -1, captured.GROUP).float()
    scale = y.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 448.0
    doubled = scale.squeeze(-1) * 2.0
    return (y / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale, doubled


def replace(answer: Any) -> str | None:
    """replace(graph, quant, found, op): a poisoned op, whose results must come out, and then the right one."""
    if wrong := no_function(answer):
        return wrong
    cases = {name: fn for name, (fn, _) in SPELLINGS.items()} | {"a scale that is used in two shapes": _with_views}
    for name, fn in cases.items():
        gate, up = halves(seed=1)
        for poisoned in (True, False):
            left: list[str] = []

            def edit(graph: fx.Graph, poisoned=poisoned, left=left) -> None:
                quant = _quant(graph)
                answer(graph, quant, worked.read_silu_and_mul(quant.y), _op(poisoned))
                graph.lint()
                names = ("amax", "abs", "exp", "clamp")
                left += [n.name for n in graph.nodes if n.op == "call_function" and n.name.startswith(names)]

            try:
                got = run_edited(edit, fn, gate, up)
            except Exception as error:
                return f"{name}: it raised {in_a_line(error)}"
            if poisoned:
                codes, scale = got[0].view(torch.uint8), got[1]
                if not bool((codes == 0x7E).all()) or not bool((scale == 7.0).all()):
                    what = "codes" if not bool((codes == 0x7E).all()) else "scale"
                    return f"{name}: the {what} that come out are not the op's: somebody still uses the old ones."
                if left:
                    return f"{name}: the old computation is still in the graph ({', '.join(left[:3])}): it is dead."
            elif not _same(got, fn(gate, up)):
                return f"{name}: the rewritten graph gives other results than the function."
    return None


def _two_sites(gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, ...]:
    per_tensor = (up.float() / (up.float().abs().amax() / 448.0)).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    return *SPELLINGS["F.silu(gate) * up"][0](gate, up), per_tensor


def the_pass(answer: Any) -> str | None:
    """SiluAndMulPass(op): sites, results, a graph with gradients, and the uuid."""
    if not isinstance(answer, type):
        return f"{answer!r} is no class."
    gate, up = halves(seed=2)
    fusion = answer(_op(False))
    try:
        got = run_edited(fusion, _two_sites, gate, up)
    except Exception as error:
        return f"it broke a compile with a site of another kind in it: {in_a_line(error)}"
    kinds = sorted(site.split()[0] for site in fusion.sites)
    if kinds != ["fused", "refused"]:
        return (
            f"of two sites, one of them per tensor, it reports {kinds}; each site is fused or refused, none is silent."
        )
    if not _same(got, _two_sites(gate, up)):
        return "the compiled function gives other results."
    for what, fn in _NOT_FOR_ONE_CALL.items():
        refusing = answer(_op(False))
        run_edited(refusing, fn, gate, up)
        if any(site.startswith("fused") for site in refusing.sites):
            return f"{what}, and it fused; one call cannot do that."
    trained = answer(_op(False))
    run_edited(trained, _train, gate.clone().requires_grad_(), up, grad=True)
    if any(site.startswith("fused") for site in trained.sites):
        return "it fused in a graph that gradients are taken of, where values are saved for the backward pass."
    return _judge_uuid(answer)


def _with_its_value(gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = torch.nn.functional.silu(gate) * up
    return *captured.quant(y), y


def _in_another_format(gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return captured.quant(torch.nn.functional.silu(gate) * up, dtype=torch.float8_e5m2)


#: Sites that `check_site` refuses, by what is said of a pass that does not.
_NOT_FOR_ONE_CALL = {
    "the product is returned as well": _with_its_value,
    "the codes have another format": _in_another_format,
}


def _train(gate: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A site that is whole but for the gradients taken beside it."""
    return *captured.quant((torch.nn.functional.silu(gate) * up).detach()), gate.square().sum()


def _judge_uuid(answer: Any) -> str | None:
    first, twin, other = answer(_op(False)), answer(_op(False)), answer(_op(True))
    if not isinstance(first.uuid(), str | bytes):
        return f"uuid() is {first.uuid()!r}: without a key the compile cache cannot be used."
    if first.uuid() != twin.uuid():
        return "two equal passes have different uuids: every compile would be a cold one."
    if first.uuid() == other.uuid():
        return "a pass with another op has the same uuid: the cache would hand out the old artefact."
    if first.uuid() == answer(_op(False), worked.read_silu_and_mul, lambda *parts: None).uuid():
        return "a pass with another way to replace has the same uuid: after an edit the old artefact would be used."
    return None
