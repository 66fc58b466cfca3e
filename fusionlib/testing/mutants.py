"""Mutants: a graph that fuses, with one thing changed. The pass must refuse it or give the same result.

A `Base` is a graph as the pass gets it, with inputs to run it on. `mutate` changes one thing of a copy; `verdict` runs
the copy, rewrites it and runs it again. A mutant's own graph defines the right result, so nothing here knows which
mutants the pass should take.
"""

from __future__ import annotations

import logging
import operator
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx
from torch._inductor.compile_fx import compile_fx
from torch.fx.experimental.proxy_tensor import maybe_enable_thunkify

from fusionlib.explanation import apart_from_caches
from fusionlib.fusions import BUILT_IN, Fusion
from fusionlib.rewrite import FusionPass
from fusionlib.testing.roundings import roundings_kept

aten, prims = torch.ops.aten, torch.ops.prims

UNARY = (
    aten.neg.default, aten.abs.default, aten.exp.default, aten.exp2.default, aten.sqrt.default, aten.rsqrt.default,
    aten.reciprocal.default, aten.relu.default, aten.sigmoid.default, aten.tanh.default, aten.square.default,
    aten.silu.default, aten.log.default, aten.erf.default, aten.isnan.default, aten.clone.default, aten.round.default,
)  # fmt: skip
BINARY = (
    aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.maximum.default, aten.minimum.default,
    aten.pow.Tensor_Tensor,
)  # fmt: skip
SCALAR = (
    aten.add.Scalar, aten.sub.Scalar, aten.mul.Scalar, aten.div.Scalar, aten.clamp_min.default, aten.clamp_max.default,
    aten.pow.Tensor_Scalar,
)  # fmt: skip
REDUCTIONS = (aten.amax.default, aten.amin.default, aten.mean.dim, aten.sum.dim_IntList)
COMPARISONS = (
    aten.lt.Scalar, aten.le.Scalar, aten.gt.Scalar, aten.ge.Scalar, aten.ne.Scalar, aten.eq.Scalar,
)  # fmt: skip
FAMILIES = (UNARY, BINARY, SCALAR, REDUCTIONS, COMPARISONS)
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.int32)


@dataclass(frozen=True)
class Base:
    """A graph that fuses, and what it is run on."""

    name: str
    graph: fx.Graph
    root: torch.nn.Module
    inputs: tuple


def capture(name: str, fn: Callable, *args, dynamic: bool = False) -> Base:
    """The graph of `fn(*args)` as a pass gets it, the first one if there are several."""
    found: list[Base] = []

    def inner_compile(module: fx.GraphModule, example_inputs, **_):
        graph = copied(module.graph)

        def run(inputs: list):
            values = tuple(inputs)
            inputs.clear()
            found.append(Base(name, graph, module, values))
            return module(*values)

        run._boxed_call = True
        return run

    if dynamic:
        for tensor in args[:2]:
            torch._dynamo.mark_dynamic(tensor, 0)
    with apart_from_caches(), roundings_kept(), torch.no_grad():
        torch.compile(fn, backend=lambda module, inputs: compile_fx(module, inputs, inner_compile=inner_compile))(*args)
    return found[0]


def copied(graph: fx.Graph) -> fx.Graph:
    """A copy of `graph` with the same metadata."""
    new, mapping = fx.Graph(), {}
    new.output(new.graph_copy(graph, mapping))
    for old, node in mapping.items():
        node.meta = dict(old.meta)
    return new


class _Refake(fx.Interpreter):
    """Recomputes the fake values of a graph."""

    def run_node(self, node: fx.Node):
        result = super().run_node(node)
        if node.op != "output":
            node.meta["val"] = result
        return result


def refaked(module: fx.GraphModule) -> bool:
    """Give every node of a mutant its fake value; False if the mutant is not a valid program."""
    placeholders = [node.meta["val"] for node in module.graph.nodes if node.op == "placeholder"]
    mode = next(val.fake_mode for val in placeholders if isinstance(val, torch.Tensor))
    logging.disable(logging.CRITICAL)  # torch logs each failure with its stack
    try:
        with mode, maybe_enable_thunkify():
            _Refake(module).run(*placeholders)
    except Exception:
        return False
    finally:
        logging.disable(logging.NOTSET)
    return True


# What can be changed: each yields changes to one node, as functions without arguments.


def _replaced(node: fx.Node, make: Callable[[], fx.Node]) -> Callable[[], None]:
    """Replace `node` with what `make` inserts after it."""

    def change() -> None:
        users = set(node.users)
        with node.graph.inserting_after(node):
            new = make()
        node.replace_all_uses_with(new, delete_user_cb=lambda user: user in users)

    return change


def neighbours(node: fx.Node) -> Iterator[Callable[[], None]]:
    """Swap the operation for another that takes the same arguments."""
    for family in FAMILIES:
        if node.target in family:
            yield from (lambda t=target: setattr(node, "target", t) for target in family if target is not node.target)
    if node.target in (aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor) and not isinstance(node.args[1], fx.Node):
        yield from (lambda t=t: setattr(node, "target", t) for t in SCALAR)


def arguments(node: fx.Node) -> Iterator[Callable[[], None]]:
    """Swap one argument for another: numbers, dimensions, sizes, flags, dtypes, which of several results is taken."""

    def put(index: int, new: object) -> Callable[[], None]:
        return lambda: setattr(node, "args", (*node.args[:index], new, *node.args[index + 1 :]))

    for index, arg in enumerate(node.args):
        if isinstance(arg, bool):
            yield put(index, not arg)
        elif isinstance(arg, int) and node.target is operator.getitem:
            yield from (put(index, new) for new in (0, 1) if new != arg)
        elif isinstance(arg, (int, float)):
            news = (
                -arg,
                arg * 2,
                arg / 2,
                arg + 1,
                0,
                0.0,
                1,
                -1,
                -2,
                0.5,
                -0.5,
                448.0,
                1e-40,
                float("inf"),
                arg * 1.01,
            )
            yield from (put(index, type(arg)(n) if type(arg) is int and abs(n) < 1e9 else n) for n in news if n != arg)
        elif isinstance(arg, torch.dtype):
            yield from (put(index, new) for new in DTYPES if new is not arg)
        elif isinstance(arg, (list, tuple)) and all(isinstance(n, int) for n in arg):
            sizes = list(arg)
            yield put(index, sizes[::-1])
            yield put(index, [0])
            yield put(index, [-2])
            yield put(index, [0, -1])
            yield put(index, [1, *sizes])
            yield put(index, [*sizes, 1])
            yield put(index, [-1])
            for at, size in enumerate(sizes):
                halved = [*sizes[:at], size // 2, 2, *sizes[at + 1 :]]
                yield put(index, halved)
                yield put(index, [*sizes[:at], 2, size // 2, *sizes[at + 1 :]])
                if at + 1 < len(sizes):
                    yield put(index, [*sizes[:at], size * sizes[at + 1], *sizes[at + 2 :]])


def operands(node: fx.Node, earlier: list[fx.Node]) -> Iterator[Callable[[], None]]:
    """Swap one operand for another of the same shape, or the two with each other."""
    for index, arg in enumerate(node.args):
        if not isinstance(arg, fx.Node):
            continue
        for other in earlier:
            if other is not arg and _shape(other) is not None and _shape(other) == _shape(arg):
                yield lambda i=index, o=other: node.update_arg(i, o)
    if len(node.args) == 2 and all(isinstance(arg, fx.Node) for arg in node.args):
        yield lambda: setattr(node, "args", node.args[::-1])


def dropped_or_doubled(node: fx.Node) -> Iterator[Callable[[], None]]:
    """Leave the operation out, or apply it to its own result."""
    for source in node.all_input_nodes:
        if _shape(source) is not None:
            yield lambda s=source: node.replace_all_uses_with(s)
    if node.args and isinstance(node.args[0], fx.Node):
        yield _replaced(node, lambda: node.graph.call_function(node.target, (node, *node.args[1:]), node.kwargs))


def inserted(node: fx.Node) -> Iterator[Callable[[], None]]:
    """Put something between a value and its users: a view, a transpose, a literal tensor, a rounding."""
    shape = _shape(node)
    if shape is None or not shape or not all(isinstance(size, int) for size in shape):
        return
    call = node.graph.call_function
    views = [shape[::-1], (-1, shape[-1]), (1, *shape), (*shape, 1)]
    for sizes in views:
        yield _replaced(node, lambda s=sizes: call(aten.reshape.default, (node, list(s))))
    for dim in range(len(shape)):
        yield _replaced(node, lambda d=dim: call(aten.flip.default, (node, [d])))
        yield _replaced(node, lambda d=dim: call(aten.unsqueeze.default, (node, d)))
        if dim + 1 < len(shape):
            yield _replaced(node, lambda d=dim: call(aten.transpose.int, (node, d, d + 1)))
    for target in UNARY:
        yield _replaced(node, lambda t=target: call(t, (node,)))
    for number in (0.0, 1.0, -1.0, 2.0):
        for target in (aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor):
            yield _replaced(node, lambda t=target, n=number: call(t, (node, n)))
    for dtype in DTYPES[:3]:
        yield _replaced(node, lambda d=dtype: _there_and_back(node, d))
    for sizes in ([1], list(shape), [2, *shape], [*shape[:-1], 2 * shape[-1]]):
        for number, target in ((1.0, aten.mul.Tensor), (0.0, aten.add.Tensor), (1.0, aten.div.Tensor)):
            yield _replaced(node, lambda t=target, s=sizes, n=number: _with_literal(node, t, s, n))


def _there_and_back(node: fx.Node, dtype: torch.dtype) -> fx.Node:
    call = node.graph.call_function
    there = call(prims.convert_element_type.default, (node, dtype))
    with node.graph.inserting_after(there):
        return call(prims.convert_element_type.default, (there, node.meta["val"].dtype))


def _with_literal(node: fx.Node, target, sizes: list[int], number: float) -> fx.Node:
    call = node.graph.call_function
    tensor = call(aten.full.default, (sizes, number), {"dtype": torch.float32, "device": node.meta["val"].device})
    with node.graph.inserting_after(tensor):
        return call(target, (node, tensor))


def _shape(node: fx.Node) -> tuple | None:
    val = node.meta.get("val")
    return tuple(val.shape) if isinstance(val, torch.Tensor) else None


KINDS = ("neighbour", "argument", "operand", "dropped or doubled", "inserted")


def mutate(base: Base, draw: random.Random) -> tuple[fx.GraphModule, str] | None:
    """A copy of the base with one thing changed, and what; None if the draw found nothing to change."""
    graph = copied(base.graph)
    nodes = [node for node in graph.nodes if node.op == "call_function"]
    at = draw.randrange(len(nodes))
    node, kind = nodes[at], draw.choice(KINDS)
    changes = list(
        {
            "neighbour": lambda: neighbours(node),
            "argument": lambda: arguments(node),
            "operand": lambda: operands(node, [n for n in graph.nodes if n.op == "placeholder"] + nodes[:at]),
            "dropped or doubled": lambda: dropped_or_doubled(node),
            "inserted": lambda: inserted(node),
        }[kind]()
    )
    if not changes:
        return None
    change = draw.randrange(len(changes))
    text = f"{base.name}: {kind} {change} of {len(changes)} at %{node.name} = {node.target}{node.args}"
    changes[change]()
    graph.eliminate_dead_code()
    return fx.GraphModule(base.root, graph), text


def verdict(module: fx.GraphModule, inputs: tuple, fusions: Sequence[Fusion] = BUILT_IN) -> str:
    """`refused` (or unclaimed), `equal`, `respelled` or `WRONG`; `no program` if a mutant does not run.

    `respelled` is float32 arithmetic in another order: a last bit of a scale, or one code in a thousand by one step.
    """
    if _reads_unwritten(module.graph) or not refaked(module):
        return "no program"
    try:
        want = fx.Interpreter(module).run(*inputs)
    except Exception:
        return "no program"
    record = FusionPass("cpu", fusions=fusions).rewrite(module.graph)
    if any(site.code == "internal_error" for site in record.sites):
        return "WRONG: internal error"
    if not any(site.fused for site in record.sites):
        return "refused" if record.sites else "no site"
    got = fx.Interpreter(module).run(*inputs)
    return compared(tensors_of(got), tensors_of(want))


def verdicts(bases: Sequence[Base], fusions: Sequence[Fusion], count: int, seed: int) -> Iterator[tuple[str, str]]:
    """(verdict, what was changed) of mutants drawn from `seed`, until `count` of them were programs with a site."""
    draw = random.Random(seed)
    while count > 0:
        base = draw.choice(bases)
        made = mutate(base, draw)
        if made is None:
            continue
        module, text = made
        result = verdict(module, base.inputs, fusions)
        count -= result not in ("no program", "no site")
        yield result, text


def _reads_unwritten(graph: fx.Graph) -> bool:
    """Whether a mutant reads memory that was never written and may hold anything."""
    for node in graph.nodes:
        if str(node.target).startswith("aten.empty"):
            for user in node.users:
                if user.target is not aten.copy.default or user.args[0] is not node or user.args[1] is node:
                    return True
    return False


def tensors_of(outputs) -> list[torch.Tensor]:
    """The tensors among what a graph returns."""
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return [output for output in outputs if isinstance(output, torch.Tensor)]


def compared(got: list[torch.Tensor], want: list[torch.Tensor]) -> str:
    """How results compare: in shapes, dtypes, strides and every bit, with all NaNs equal."""
    worst = "equal"
    for a, b in zip(got, want, strict=True):
        if (a.shape, a.dtype) != (b.shape, b.dtype) or not _same_strides(a, b):
            return f"WRONG: {list(a.shape)} {a.dtype} {a.stride()} for {list(b.shape)} {b.dtype} {b.stride()}"
        x, y = a.double(), b.double()
        differ = ~((x == y) & (x.signbit() == y.signbit()) | (x.isnan() & y.isnan()))
        if not differ.any():
            continue
        near = torch.isclose(
            x, y, rtol=0.13 if a.dtype.itemsize == 1 else 1e-2 if a.dtype.itemsize == 2 else 3e-7, atol=0
        )
        few = a.dtype.itemsize == 4 or differ.double().mean() <= 2e-3
        if not (near | ~differ).all() or not few:
            return f"WRONG: {int(differ.sum())} of {differ.numel()} of {a.dtype}"
        worst = "respelled"
    return worst


def _same_strides(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether strides match, ignoring those of dimensions of one element, which have no effect."""
    return all(s == t for s, t, size in zip(a.stride(), b.stride(), a.shape, strict=True) if size > 1)
