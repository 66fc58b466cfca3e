"""The exercises of notebook 03: what fires, what does not and why, and how to fix it.

Answers are judged by running the matchers on them. The functions that a reader is asked about are here, so that the
judge and the page use the same code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fusionlab.exercises.exercise import Exercise
from fusionlab.exercises.worked.compare import same_bits
from fusionlab.scoreboard import FOUND
from fusionlab.spellings import HEAD_DIM, HEADS, SPELLINGS, TOKENS, make_inputs, written_norm
from fusionlib import reference
from fusionlib.explanation import explain
from fusionlib.pattern import HeadShape, TracedPass
from fusionlib.spec import GatedNorm, GroupQuant
from fusionlib.testing.roundings import roundings_kept

Outputs = tuple[Tensor, ...]  # codes and scale, and whatever else a path returns
Path = Callable[[Tensor, Tensor, Tensor], Outputs]

#: Single changes to the pattern's own spelling, each with its row of the scoreboard.
CHANGES = {
    "commuted": "commuted products",
    "x * x": "x * x",
    "eps": "eps 1e-5",
    "fp32 weight": "float32 weight",
    "fp16 inputs": "fp16 activations",
    "4-D input": "batch and sequence",
    "strided gate": "strided gate",
    "two consumers": "two quantisations of one norm",
}


def traced_finds(search: TracedPass, fn: Callable, *tensors: Tensor) -> int:
    """How many sites a traced pass replaces in the graph of `fn(*tensors)`; nothing is run."""
    before = search.fired
    explain(fn, *tensors, devices=(), watch=lambda module, _: search(module.graph))
    return search.fired - before


@functools.cache
def stock_pass() -> TracedPass:
    """The traced patterns for the spellings' sizes, with vLLM's norm and quantisation."""
    shape = HeadShape(HEADS, GatedNorm.vllm(HEAD_DIM))
    return TracedPass([shape], [GroupQuant.vllm(HEAD_DIM)], devices=("cpu",))


@functools.cache
def run_change(name: str) -> bool:
    """Whether the traced pattern fires on one of `CHANGES`."""
    (spelling,) = (spelling for spelling in SPELLINGS if spelling.name == CHANGES[name])
    with torch.no_grad():
        fn, tensors = spelling.build()
        return traced_finds(stock_pass(), fn, *tensors) > 0


def _judge_changes(answer: Any) -> str | None:
    if not isinstance(answer, Mapping) or set(answer) != set(CHANGES):
        return f"answer with a dict of True or False for each of {', '.join(CHANGES)}."
    if not all(isinstance(value, bool) for value in answer.values()):
        return "every value must be True (it fires) or False (it does not)."
    right = sum(answer[name] == run_change(name) for name in CHANGES)
    return None if right == len(CHANGES) else f"{right} of {len(CHANGES)} are right."


WHICH_FIRE = Exercise(
    "exercises.WHICH_FIRE",
    "For each change: does the traced pattern still fire? Answer with a dict of True or False.",
    _judge_changes,
    {name: row in FOUND for name, row in CHANGES.items()},
    (
        dict.fromkeys(CHANGES, False),
        dict.fromkeys(CHANGES, True),
        {"commuted": False},
        dict.fromkeys(CHANGES, "yes"),
        "none of them",
    ),
    (
        "The pattern is a graph. Which of the changes alter nodes or their arguments, and which only the tensors?",
        "A cast to the dtype that a tensor has already leaves no node. A cast to another one does.",
    ),
    "What lies outside of the nodes, such as strides or the dtype of what goes in, is not compared.",
    seconds=120.0,
)


# Near misses: each differs in one thing from what can be fused.


def gated_norm(x: Tensor, gate: Tensor, weight: Tensor) -> Tensor:
    """x and gate [tokens, heads, head_dim], normed over the last dimension and rounded once."""
    value = x.float()
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6)
    return (value * weight.float() * functional.silu(gate.float())).to(x.dtype)


def quantised(y: Tensor) -> Outputs:
    """y [tokens, hidden] by groups of 128."""
    return reference.group_quant(y, GroupQuant.vllm())


def one_scale(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    """One scale for the whole tensor."""
    y = gated_norm(x, gate, weight).flatten(1).float()
    scale = y.abs().amax().clamp(min=1e-10) / 448.0
    return (y / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale


def centred(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    """The mean is subtracted before the squares are taken."""
    value = x.float() - x.float().mean(-1, keepdim=True)
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6)
    y = (value * weight.float() * functional.silu(gate.float())).to(x.dtype)
    return quantised(y.flatten(1))


def other_amax(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    """The scale is made from the value before its rounding to bf16, the codes from the one after."""
    value = x.float()
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6)
    value = value * weight.float() * functional.silu(gate.float())
    scale = value.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 448.0
    y = value.to(x.dtype).float()
    return (y / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale


def silu_in_bf16(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    """z * sigmoid(z), both steps in bf16."""
    value = x.float()
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6)
    y = (value * weight.float() * (gate * torch.sigmoid(gate)).float()).to(x.dtype)
    return quantised(y.flatten(1))


def root_kept(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    """The reciprocal root is returned as well."""
    value = x.float()
    root = torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6)
    y = (value * root * weight.float() * functional.silu(gate.float())).to(x.dtype)
    return *quantised(y.flatten(1)), root


def summed(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    """The mean is written as a sum and a division, and the value is divided by the root."""
    value = x.float()
    value = value / torch.sqrt((value * value).sum(-1, keepdim=True) / x.shape[-1] + 1e-6)
    y = (functional.silu(gate.float()) * value * weight.float()).to(x.dtype)
    return quantised(y.flatten(1))


NEAR_MISSES: dict[str, Path] = {
    fn.__name__: fn for fn in (one_scale, centred, other_amax, silu_in_bf16, root_kept, summed)
}
FUSES = "fuses"


@functools.cache
def outcome(name: str) -> str:
    """What the semantic matcher says of one of `NEAR_MISSES`: "fuses", the code of a refusal, or "unclaimed"."""
    with torch.no_grad(), roundings_kept():
        (site,) = explain(NEAR_MISSES[name], *make_inputs(), devices="cpu")
    return FUSES if site.fused else site.code if site.refused else site.outcome


def _judge_outcomes(answer: Any) -> str | None:
    if not isinstance(answer, Mapping) or set(answer) != set(NEAR_MISSES):
        return f"answer with a dict that has a code, or {FUSES!r}, for each of {', '.join(NEAR_MISSES)}."
    right = sum(answer[name] == outcome(name) for name in NEAR_MISSES)
    return None if right == len(NEAR_MISSES) else f"{right} of {len(NEAR_MISSES)} are right."


WHY_REFUSED = Exercise(
    "exercises.WHY_REFUSED",
    f"For each function: {FUSES!r}, or the code with which it is refused.",
    _judge_outcomes,
    {
        "one_scale": "per_tensor_dynamic",
        "centred": "layer_norm",
        "other_amax": "amax_source",
        "silu_in_bf16": "rounding",
        "root_kept": "intermediate_used",
        "summed": FUSES,
    },
    (
        dict.fromkeys(NEAR_MISSES, FUSES),
        dict.fromkeys(NEAR_MISSES, "rounding"),
        {"one_scale": "per_tensor_dynamic"},
        ["per_tensor_dynamic"],
    ),
    (
        "Two of them differ only in where something is rounded.",
        "Which of them compute the very thing that the fused op computes, and return nothing else?",
    ),
    "The same values fuse however they are written; other values, or values that somebody else needs, do not.",
    seconds=120.0,
)


# To be written by the reader.


def refused_twice(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    """A path that is refused, and refused again once the first reason is gone."""
    value = x.float()
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6)
    y = (value * weight.float() * (gate * torch.sigmoid(gate)).float()).to(x.dtype)
    groups = y.float()
    amax = groups.abs().amax(-1, keepdim=True).clamp(min=1e-10)
    codes = (groups * (448.0 / amax)).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    return codes.flatten(1), (amax / 448.0).squeeze(-1)


def _fixed(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    value = x.float()
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6)
    z = gate.float()
    y = (value * weight.float() * (z * torch.sigmoid(z))).to(x.dtype)
    groups = y.float()
    scale = groups.abs().amax(-1, keepdim=True).clamp(min=1e-10) / 448.0
    codes = (groups / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    return codes.flatten(1), scale.squeeze(-1)


def _fixed_gate_only(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    groups = gated_norm(x, gate, weight).float()
    amax = groups.abs().amax(-1, keepdim=True).clamp(min=1e-10)
    codes = (groups * (448.0 / amax)).clamp(-448.0, 448.0).to(torch.float8_e4m3fn)
    return codes.flatten(1), (amax / 448.0).squeeze(-1)


def _fixed_quotient_only(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    value = x.float()
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6)
    y = (value * weight.float() * (gate * torch.sigmoid(gate)).float()).to(x.dtype)
    return quantised(y.flatten(1))


def _other_gate(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    value = x.float()
    value = value * torch.rsqrt(value.pow(2).mean(-1, keepdim=True) + 1e-6)
    return quantised((value * weight.float() * torch.sigmoid(gate.float())).to(x.dtype).flatten(1))


def _as_the_pattern(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    return quantised(written_norm(x, gate, weight).flatten(1))


def _squared_by_product(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    return quantised(written_norm(x, gate, weight, square=lambda v: v * v).flatten(1))


def _not_quantised(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    return gated_norm(x, gate, weight).flatten(1), x.new_ones(x.shape[0], HEADS)


def _other_eps(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    return quantised(written_norm(x, gate, weight, eps=1e-2).flatten(1))


def _other_floor(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    return reference.group_quant(written_norm(x, gate, weight).flatten(1), GroupQuant(HEAD_DIM, floor=1e-4))


def _without_a_floor(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    return reference.group_quant(written_norm(x, gate, weight).flatten(1), GroupQuant(HEAD_DIM, floor=None))


def _empties_its_inputs(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    outputs = tuple(result.clone() for result in _fixed(x, gate, weight))
    x.zero_(), gate.zero_()
    return outputs


def _one_row(x: Tensor, gate: Tensor, weight: Tensor) -> Outputs:
    """Hard-codes the number of rows of the judge's first inputs."""
    return _fixed(x.reshape(TOKENS, HEADS, HEAD_DIM), gate, weight)


def _inputs() -> dict[str, tuple[Tensor, ...]]:
    """Inputs that exercise every part of the computation, by name."""
    x, gate, weight = make_inputs()
    zeros, holes = gate.clone(), x.clone()
    zeros[1], holes[0, 0, 3], holes[1, 1, 5] = 0.0, float("nan"), float("inf")
    return {
        "ordinary values": (x, gate, weight),
        "other numbers of tokens": make_inputs((TOKENS + 3, HEADS, HEAD_DIM)),
        "an x so small that eps matters": (x * 1e-3, gate, weight),
        "a weight so small that the floor matters": (x, gate, weight * 1e-6),
        "a gate with zeros": (x, zeros, weight),
        "an x with what is not a number": (holes, gate, weight),
    }


def _examine(fn: Any) -> str | None:
    """Why `fn` is not this computation, fused; None if it is."""
    if not callable(fn):
        return "answer with a function of x, gate and weight."
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, tensors in _inputs().items():
            want, given = quantised(gated_norm(*tensors).flatten(1)), tuple(tensor.clone() for tensor in tensors)
            wrong = _wrong_value(fn(*given), want)
            if wrong is None and not all(map(same_bits, given, tensors)):
                wrong = "it writes into its inputs."
            if wrong is not None:
                return wrong if name == "ordinary values" else f"for {name}: {wrong}"
        with roundings_kept():
            report = explain(fn, *make_inputs(), devices="cpu")
    if report.refused:
        site = report.refused[0]
        return f"it is refused with {site.code} at {site.line}: expected {site.expected}; found {site.found}."
    if report.unclaimed:
        site = report.unclaimed[0]
        return f"no fusion starts from what is quantised at {site.line}: {site.found}."
    if len(report.fused) != 1:
        return f"{len(report.fused)} sites were fused where there should be one; is there a cast to FP8 in it?"
    return None


def _wrong_value(outputs: Any, want: Outputs) -> str | None:
    if not isinstance(outputs, tuple) or len(outputs) != 2:
        return "it must return codes and scale, and nothing else."
    (codes, scale), (want_codes, want_scale) = outputs, want
    if codes.dtype is not want_codes.dtype or codes.shape != want_codes.shape or scale.shape != want_scale.shape:
        return f"it must return float8_e4m3fn codes {list(want_codes.shape)} and a scale {list(want_scale.shape)}."
    quant = GroupQuant.vllm()
    got, right = (reference.dequantise(c, s.float(), quant) for c, s in ((codes, scale), (want_codes, want_scale)))
    # The answer chooses where it rounds, so a code may be one step away: 2^-3 of the value, or the step next to zero.
    # A scale rounded to bf16 adds 2^-8, and so does rounding the largest value.
    step = want_scale.repeat_interleave(HEAD_DIM, 1) * 2.0**-9
    near = (got - right).abs() <= (2.0**-3 + 2.0**-8) * right.abs() + 2 * step
    near_scale = (scale.float() - want_scale).abs() <= 2.0**-6 * want_scale
    if not (near | (got.isnan() & right.isnan())).all():
        return "it fuses or not, but it computes something else: the values differ by more than a rounding can move."
    if not (near_scale | (scale == want_scale) | (scale.isnan() & want_scale.isnan())).all():
        return "it fuses or not, but its scales are others than those of the path."
    return None


FIX_IT = Exercise(
    "exercises.FIX_IT",
    "Change refused_twice until the semantic matcher fuses it; what it computes may change by roundings only.",
    _examine,
    _fixed,
    (
        refused_twice,
        _fixed_gate_only,
        _fixed_quotient_only,
        _other_gate,
        _other_eps,
        _other_floor,
        _without_a_floor,
        _empties_its_inputs,
        _one_row,
        _not_quantised,
        one_scale,
        448.0,
    ),
    (
        "Run fusionlib.explain on it: the report says what was expected. Fix that and run it again.",
        "scale is a rounded quotient, and so is 448 / amax: a product with the one is no division by the other.",
        "How many times is z * sigmoid(z) rounded when z is bf16? And when z is float32?",
    ),
    "Divide by the scale where the codes are made, and take the gate to float32 before z * sigmoid(z). Both changes "
    "move a last bit here and there: the matcher refused because that change is yours to make.",
    seconds=120.0,
)


@functools.cache
def _known_graphs() -> frozenset[tuple[str, ...]]:
    """The operations of every listed spelling's graph."""
    found = set()
    for spelling in SPELLINGS:
        fn, tensors = spelling.build()
        found.add(_operations(fn, tensors))
    return frozenset(found)


def _operations(fn: Callable, tensors: tuple[Tensor, ...]) -> tuple[str, ...]:
    """The operations that compute something in the graph of `fn`, in order; reshapes do not count."""
    graphs: list[tuple[str, ...]] = []

    def keep(module: torch.fx.GraphModule, _: object) -> None:
        nodes = (str(node.target) for node in module.graph.nodes if node.op == "call_function")
        graphs.append(tuple(n for n in nodes if not any(view in n for view in ("view", "reshape", "squeeze"))))

    explain(fn, *tensors, devices=(), watch=keep)
    return graphs[-1] if graphs else ()


def _judge_new(fn: Any) -> str | None:
    wrong = _examine(fn)
    if wrong is not None:
        return wrong
    with torch.no_grad():
        tensors = make_inputs()
        if traced_finds(stock_pass(), fn, *tensors):
            return "the traced pattern finds it too, so it is the pattern's own spelling."
        if _operations(fn, tensors) in _known_graphs():
            return "its graph has the same operations as one of the listed spellings; write it in another way."
    return None


NEW_SPELLING = Exercise(
    "exercises.NEW_SPELLING",
    "Write the path from x, gate and weight to codes and scale in a way that no row of the scoreboard has, and that "
    "the semantic matcher fuses.",
    _judge_new,
    summed,
    (_as_the_pattern, _squared_by_product, _other_eps, _other_floor, one_scale, refused_twice, _not_quantised),
    (
        "There is more than one way to write a mean, a root, a sigmoid, a square and a product of four factors.",
        "sum / n; x / sqrt(...); 1 / (1 + exp(-z)); the weight times the gate first.",
    ),
    "The matcher keeps no list of spellings: it reads what each node computes. Here the mean is a sum over n, and the "
    "value is divided by the root.",
    seconds=240.0,
)
