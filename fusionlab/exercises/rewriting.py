"""Exercises about graphs: reading one, its bytes, changing it, and the uuid of a pass (notebooks 02 and 04)."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from fusionlab.exercises import elsewhere
from fusionlab.exercises.exercise import Exercise

aten = torch.ops.aten


def _traced(fn: Callable) -> fx.GraphModule:
    return make_fx(fn)(torch.linspace(-2.0, 2.0, 6).view(2, 3))


# Reading: who uses the results of an operation?


def _readers(graph: fx.Graph, target: object) -> list[str]:
    return [user.name for node in graph.nodes if node.target is target for user in node.users]


def _inputs_instead(graph: fx.Graph, target: object) -> list[str]:
    return [source.name for node in graph.nodes if node.target is target for source in node.all_input_nodes]


def _only_the_next(graph: fx.Graph, target: object) -> list[str]:
    return [node.next.name for node in graph.nodes if node.target is target]


def _of_the_first_call(graph: fx.Graph, target: object) -> list[str]:
    calls = [node for node in graph.nodes if node.target is target]
    return [user.name for node in calls[:1] for user in node.users]


def _without_the_output(graph: fx.Graph, target: object) -> list[str]:
    return [
        n.name for n in graph.nodes if n.op == "call_function" and any(a.target is target for a in n.all_input_nodes)
    ]


_READ = (
    (lambda x: x.exp().sin(), aten.exp.default),
    (lambda x: x.exp(), aten.exp.default),
    (lambda x: (y := x.exp(), y * y.sin(), x.cos().exp() + y), aten.exp.default),
    (lambda x: (x.exp() + 1, x.exp().sin()), aten.exp.default),
    (lambda x: (y := x.neg(), y.sin(), y.cos()), aten.neg.default),
    (lambda x: x.sin(), aten.exp.default),
)


def _judge_readers(answer: Callable) -> str | None:
    if not callable(answer):
        return f"{answer!r:.60} is not a function; it must take a graph and a target"
    for fn, target in _READ:
        graph = _traced(fn).graph
        expected, found = _readers(graph, target), answer(graph, target)
        if not isinstance(found, list | tuple | set | frozenset):
            return f"it returns {found!r:.60}, which is no list of names"
        if set(found) != set(expected):
            return f"in the graph {_spelled(graph)} asked for the readers of {target} it says {list(found)}"
    return None


def _spelled(graph: fx.Graph) -> str:
    calls = [f"{n.name} = {n.target}({', '.join(map(str, n.args))})" for n in graph.nodes if n.op.startswith("call_")]
    return "; ".join(calls)


readers = Exercise(
    name="exercises.readers",
    question="Write readers(graph, target): the names of all nodes that read a result of a call of `target`.",
    judge=_judge_readers,
    solution=_readers,
    traps=(_inputs_instead, _only_the_next, _of_the_first_call, _without_the_output, lambda graph, target: []),
    hints=(
        "Go through graph.nodes and look for node.target.",
        "A node knows who reads it: node.users. A node that is read twice has two of them.",
    ),
    explanation="node.users holds the readers, node.all_input_nodes what is read; the output is a reader as well.",
)


# Counting: bytes per element of a fused kernel.


def _judge_bytes(answer: float) -> str | None:
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        return f"{answer!r:.60} is not a number"
    expected = 2 + 4 + 1 + 4 / 128
    if abs(answer - expected) < 5e-3:
        return None
    return f"{answer} bytes per element are {'more' if answer > expected else 'fewer'} than this kernel must move"


fused_bytes = Exercise(
    name="exercises.fused_bytes",
    question=(
        "x is bf16, the gate is fp32, and there is one fp32 scale for 128 FP8 codes. How many bytes per element must a "
        "kernel move that does norm, gate and quantisation in one? Leave out the weight: many tokens share it."
    ),
    judge=_judge_bytes,
    solution=7.03125,
    traps=(5.03125, 7.0, 11.03, 9.03, "7.03"),
    hints=("List what is read, then what is written.", "A scale has 4 bytes, and 128 elements share it."),
    explanation="2 of x, 4 of the gate, 1 of the code and 4/128 of the scale. The normed value is never in memory.",
)


# Changing: two negations cancel.


def _drop_double_negation(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.target is aten.neg.default and node.args[0].target is aten.neg.default:
            node.replace_all_uses_with(node.args[0].args[0])
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _forgets_to_erase(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.target is aten.neg.default and node.args[0].target is aten.neg.default:
            node.replace_all_uses_with(node.args[0].args[0])


def _erases_what_others_read(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.target is aten.neg.default and node.args[0].target is aten.neg.default:
            inner = node.args[0]
            node.replace_all_uses_with(inner.args[0])
            graph.erase_node(node)
            graph.erase_node(inner)


def _drops_every_negation(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.target is aten.neg.default:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _leaves_every_second_pair(graph: fx.Graph) -> None:
    skip = False
    for node in list(graph.nodes):
        if node.target is aten.neg.default and node.args[0].target is aten.neg.default:
            if not skip:
                node.replace_all_uses_with(node.args[0].args[0])
                graph.erase_node(node)
            skip = not skip
    graph.eliminate_dead_code()


def _changes_the_first_pair(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if node.target is aten.neg.default and node.args[0].target is aten.neg.default:
            node.replace_all_uses_with(node.args[0].args[0])
            graph.erase_node(node)
            break
    graph.eliminate_dead_code()


def _negates_in_place(graph: fx.Graph) -> None:
    """Right values, but written into the input."""
    for node in list(graph.nodes):
        if node.target is aten.neg.default and node.args[0].target is aten.neg.default:
            node.target, node.args[0].target = aten.neg_.default, aten.neg_.default


def _drawn(seed: int) -> Callable:
    """A program of a dozen operations, most of them negations; some intermediate values are returned as well."""
    draw = random.Random(seed)
    steps = [(draw.choice(("neg", "neg", "neg", "sin")), draw.random() < 0.3) for _ in range(12)]

    def program(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        kept = []
        for name, keep in steps:
            x = getattr(x, name)()
            if keep:
                kept.append(x.cos())
        return *kept, x

    return program


_CHANGE = (
    lambda x: x.neg().neg().sin(),
    lambda x: x.neg().sin(),
    lambda x: (y := x.neg(), y.neg().sin()),
    lambda x: x.sin().neg().neg().exp().neg().neg(),
    lambda x: x.neg().neg(),
    lambda x: x.neg().neg().neg(),
    lambda x: x.neg().neg().neg().neg().sin().neg().neg().neg().neg().neg(),
    lambda x: (x.neg().neg().sin(), x.cos().neg().neg().exp(), x.exp().neg().neg()),
    *map(_drawn, range(8)),
)


def _judge_change(answer: Callable) -> str | None:
    if not callable(answer):
        return "answer with a function of a graph, which changes it in place"
    for fn in _CHANGE:
        x = torch.linspace(-2.0, 2.0, 6).view(2, 3)
        right, module = _traced(fn), _traced(fn)
        given, kept, expected = _spelled(module.graph), x.clone(), right(x.clone())
        _drop_double_negation(right.graph)
        answer(module.graph)
        module.graph.lint()
        module.recompile()
        if not _same(module(x), expected):
            return f"the graph “{given}” computes something else afterwards"
        if not torch.equal(x, kept):
            return f"the graph “{given}” writes into its input afterwards"
        left, needed = _negations(module.graph), _negations(right.graph)
        if left != needed:
            return f"of the graph “{given}” {left} negations are left, and {needed} are needed"
        if len(module.graph.nodes) != len(right.graph.nodes):
            left, needed = len(module.graph.nodes), len(right.graph.nodes)
            return f"of the graph “{given}” {left} nodes are left, and {needed} are needed"
    return None


def _negations(graph: fx.Graph) -> int:
    return sum(node.target is aten.neg.default for node in graph.nodes)


def _same(a: object, b: object) -> bool:
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    return torch.equal(a, b)


double_negation = Exercise(
    name="exercises.double_negation",
    question=(
        "Write a pass: edit(graph) replaces aten.neg of aten.neg of x by x, in place, and leaves no dead node. The "
        "inner negation may have other readers."
    ),
    judge=_judge_change,
    solution=_drop_double_negation,
    traps=(
        _forgets_to_erase,
        _erases_what_others_read,
        _drops_every_negation,
        _leaves_every_second_pair,
        _changes_the_first_pair,
        _negates_in_place,
        lambda graph: None,
    ),
    hints=(
        "node.replace_all_uses_with(other) moves the readers; graph.erase_node(node) works once there are none.",
        "Erase the outer one, and let graph.eliminate_dead_code() decide about the inner one.",
        "Iterate over list(graph.nodes): you change the graph while you look at it.",
    ),
    explanation="Readers first, then the node; and what is still read stays.",
)


# The uuid of a pass.


def _uuid(source: str, factor: float) -> str:
    return hashlib.sha256(f"{source}\0{factor!r}".encode()).hexdigest()


def _in_place(source: str, factor: float) -> str:
    """An address differs in the next process."""
    return f"{source}{factor!r}{id(aten)}"


def _by_a_set(source: str, factor: float) -> str:
    return "".join({source, repr(factor), "a", "b", "c", "d", "e"})


_BODY = "def edit(graph):\n" + "    graph.lint()\n" * 40
_ASKED = (
    ("source", (_BODY + "    return 1", 2.0)),
    ("source", ("\n" + _BODY, 2.0)),
    ("option", (_BODY, 3.0)),
    ("option", (_BODY, math.nextafter(2.0, 3.0))),
    ("option", (_BODY, -2.0)),
)


def _judge_uuid(answer: Callable) -> str | None:
    if not callable(answer):
        return "answer with a function of source and factor"
    first = answer(_BODY, 2.0)
    if not isinstance(first, str | bytes):
        return f"it returns {type(first).__name__}; a uuid is a text or bytes"
    if answer("".join(list(_BODY)), 2.0) != first:  # equal text at another address
        return "asked twice for the same pass it gives two answers, so nothing would ever be found in the cache"
    for what, changed in _ASKED:
        if answer(*changed) == first:
            return f"the {what} changed and the uuid did not: the cache would hand out the old artefact"
    try:
        here, there = elsewhere.results(answer, _BODY, 2.0)
    except elsewhere.ElsewhereError as error:
        return f"in another process it failed: {error}"
    return None if here == there else "the same pass has another uuid in another process: the cache would find nothing"


stable_uuid = Exercise(
    name="exercises.stable_uuid",
    question="Write uuid(source, factor) for a pass with this source text and this number as its only option.",
    judge=_judge_uuid,
    solution=_uuid,
    traps=(
        lambda source, factor: "v1",
        lambda source, factor: hashlib.sha256(source.encode()).hexdigest(),
        lambda source, factor: f"{factor}",
        lambda source, factor: str(hash((source, factor))),
        lambda source, factor: str(hash(f"{source}{factor!r}")),
        lambda source, factor: f"{id(source)}{factor}",
        lambda source, factor: f"{source[:200]}{factor}",
        lambda source, factor: source + str(abs(factor)),
        _in_place,
        _by_a_set,
        lambda source, factor: hashlib.sha256(f"{source}{factor:.3f}".encode()).hexdigest(),
    ),
    hints=("Everything that can change what the pass does belongs in.", "hashlib gives the same in every process."),
    explanation="The source and every option, hashed by something that every process agrees on.",
    seconds=240.0,
)
