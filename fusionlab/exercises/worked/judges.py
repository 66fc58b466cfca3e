"""The judges of the capstone's values: each runs an answer on its own inputs and says what went wrong.

The expected result is computed first, from the judge's own inputs; the answer gets copies, which it must not change.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from fusionlab.exercises.worked import compare, kernel_offline
from fusionlab.exercises.worked import silu_and_mul as worked
from fusionlab.exercises.worked.captured import halves
from fusionlab.exercises.worked.silu_and_mul import SiluAndMul
from fusionlib import GroupQuant, testing
from fusionlib.reference import group_quant as reference_quant

SPECS = [SiluAndMul(act, out) for act in (True, False) for out in (True, False)]


def no_function(answer: Any) -> str | None:
    """What is wrong with an answer that cannot be called."""
    return None if callable(answer) else f"{answer!r} is no function."


#: Values of gate whose result is known to the bit in every spelling; up is 2, -2 and an infinity.
_SPECIAL = (-200.0, 200.0, 0.0, -0.0, float("nan"), float("inf"), float("-inf"))


def _special(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    gate = torch.tensor(_SPECIAL, dtype=dtype).repeat(4, 1)
    return gate, torch.tensor([[2.0], [-2.0], [float("inf")], [float("nan")]], dtype=dtype).expand_as(gate).clone()


def _reference_inputs(dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Strided rows, a transposed pair, one element, values that overflow an exponential, and the special ones."""
    turned = tuple(half.t() for half in halves(24, 24, dtype, seed=1))
    return [halves(40, 256, dtype), turned, halves(1, 1, dtype, seed=2), _special(dtype)]


def _like(tensor: torch.Tensor) -> torch.Tensor:
    """A copy with the same strides."""
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(tensor)


def reference(answer: Any) -> str | None:
    """silu_and_mul(gate, up, spec): every spec and dtype, each element within what another spelling explains."""
    if wrong := no_function(answer):
        return wrong
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        for gate, up in _reference_inputs(dtype):
            for spec in SPECS:
                if wrong := _judge_reference(answer, gate, up, spec):
                    return wrong
    return None


def _judge_reference(answer: Callable, gate: torch.Tensor, up: torch.Tensor, spec: SiluAndMul) -> str | None:
    want = worked.silu_and_mul(gate, up, spec)
    bounds = compare.silu_and_mul_bounds(gate, up, spec)
    given = _like(gate), _like(up)
    got = answer(*given, spec)
    if not all(map(compare.same_bits, given, (gate, up))):
        return "it changes its inputs; whoever called it still needs them."
    if not isinstance(got, torch.Tensor) or got.shape != want.shape:
        return f"for {spec} it gives {type(got).__name__} {list(getattr(got, 'shape', []))}, not [tokens, hidden]."
    if got.dtype != want.dtype:
        return f"for {spec} and inputs in {gate.dtype} the result is {got.dtype}, not {want.dtype}."
    wrong = compare.outside(got, *bounds)
    if not wrong.any():
        return None
    for other in SPECS:
        if not compare.outside(got, *(end.to(got.dtype) for end in compare.silu_and_mul_bounds(gate, up, other))).any():
            return f"for {spec} it computes what {other} asks for: look at where it rounds."
    if not compare.outside(got, *compare.silu_and_mul_bounds(up, gate, spec)).any():
        return "gate and up are exchanged: silu is taken of the gate."
    row, column = wrong.nonzero()[0].tolist()
    example = f"gate {gate[row, column]:g} and up {up[row, column]:g} give {got[row, column]:g}"
    return (
        f"for {spec} and inputs in {gate.dtype}, {int(wrong.sum())} of {wrong.numel()} elements are wrong: {example}."
    )


def moved_bytes(answer: Any) -> str | None:
    """moved_bytes(tokens, hidden, group_size) -> (two kernels, one kernel)."""
    if wrong := no_function(answer):
        return wrong
    for tokens, hidden, group in ((1, 1024, 128), (64, 4096, 128), (1000, 512, 64), (3, 96, 32), (77, 768, 768)):
        got, want = answer(tokens, hidden, group), worked.moved_bytes(tokens, hidden, group)
        if not (isinstance(got, tuple | list) and len(got) == 2):
            return "return two numbers: the bytes of two kernels, and those of one."
        for number, right, what in zip(got, want, ("two kernels", "one kernel"), strict=True):
            if not math.isclose(number, right, rel_tol=1e-9):
                more = "too many" if number > right else "too few"
                share = number / (tokens * hidden)
                return (
                    f"{more} bytes for {what}: {share:.2f} per element of [{tokens}, {hidden}] with groups of {group}."
                )
    return None


#: What the library's kit calls two of the faults below.
_IN_THE_KIT = {
    "gate and up are exchanged": "the first two tensors are exchanged",
    "a strided gate is read as if it were contiguous": "strided rows are read as if they were contiguous",
}


#: Values that are lost on the way, as by a maximum that prefers the number or by a clamp before the scale.
_NOT_FINITE = {
    "a NaN becomes zero": {"nan": 0.0, "posinf": math.inf, "neginf": -math.inf},
    "an infinity becomes the largest number": {"nan": math.nan},
}


def _drops(changes: dict[str, float], gate, up, act, out, group, floor):
    y = worked.silu_and_mul(gate, up, SiluAndMul(act, out)).nan_to_num(**changes)
    codes, scale = reference_quant(y, GroupQuant(group, floor=floor))
    return codes.contiguous(), scale.contiguous()


def broken_op(kind: str) -> Callable:
    """An op that is wrong in one way, which a good test must notice."""

    def from_specs(gate, up, spec, quant):
        act, out = spec.round_activation, spec.round_output
        return worked.quantise(gate, up, act, out, quant.group_size, quant.floor)

    if kind in _NOT_FINITE:
        return functools.partial(_drops, _NOT_FINITE[kind])
    broken = testing.broken_op(from_specs, _IN_THE_KIT.get(kind, kind))

    def op(gate, up, act, out, group, floor):
        act = act and kind != "silu(gate) is never rounded"
        out = out and kind != "the product is never rounded"
        return broken(gate, up, SiluAndMul(act, out), GroupQuant(group, floor=floor))

    return op


BROKEN = (
    "the last row is never written", "scales are not a number", "gate and up are exchanged",
    "scales belong to the neighbouring group", "silu(gate) is never rounded", "the product is never rounded",
    "a strided gate is read as if it were contiguous", "the floor is left out", "the floor is always 1e-10",
    "groups always have 128 elements", *_NOT_FINITE,
)  # fmt: skip


@functools.cache
def _registered() -> Callable:
    return worked.define_op(worked.quantise, worked.fake)


def test_of_op(answer: Any) -> str | None:
    """check(op): silent for correct ops, whatever their name, before and after broken ones."""
    if wrong := no_function(answer):
        return wrong

    def another(gate, up, act, out, group, floor):
        return worked.quantise(gate, up, act, out, group, floor)

    survivors = []
    for kind in (None, *BROKEN, None):
        op = broken_op(kind) if kind else another
        try:
            answer(op)
            if kind is None:
                answer(_registered())
        except Exception as error:
            if kind is None:
                return f"it turns down a correct op: {type(error).__name__} {error}"
            continue
        if kind is not None:
            survivors.append(kind)
    if survivors:
        return f"{len(survivors)} of {len(BROKEN)} broken ops pass it; in one of them {survivors[0]}."
    return None


def _gates(tokens: int, hidden: int, dtype: torch.dtype) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """gate and up without data: side by side, transposed, and contiguous."""
    wide = torch.empty(tokens, 2 * hidden, dtype=dtype, device="meta")
    gate, up = wide[:, :hidden], wide[:, hidden:]
    return [(gate, up), (gate.t().contiguous().t(), up), (gate.contiguous(), up.contiguous())]


def fake(answer: Any) -> str | None:
    """fake(gate, up, ...): shape, strides, dtype and device of what the op returns, on tensors without data."""
    if wrong := no_function(answer):
        return wrong
    sizes = ((7, 512, 128), (1, 128, 128), (64, 4096, 128), (5, 192, 64), (33, 96, 32), (3, 768, 768), (0, 256, 128))
    for tokens, hidden, group in sizes:
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for gate, up in _gates(tokens, hidden, dtype):
                for act, out in ((True, True), (False, True), (True, False)):
                    if wrong := _judge_fake(answer, gate, up, act, out, group):
                        return wrong
    return _judge_symbolic(answer)


def _judge_fake(answer: Callable, gate: torch.Tensor, up: torch.Tensor, act: bool, out: bool, group: int) -> str | None:
    got = answer(gate, up, act, out, group, 1e-10)
    if not (isinstance(got, tuple | list) and len(got) == 2):
        return "return two tensors: codes and scale."
    promised = worked.fake(gate, up, act, out, group, 1e-10)
    for name, tensor, want in zip(("the codes have", "the scale has"), got, promised, strict=True):
        for what in ("dtype", "shape", "device"):
            found, right = getattr(tensor, what), getattr(want, what)
            if found != right:
                given = f"a gate {list(gate.shape)} in {gate.dtype} and groups of {group}"
                return f"{name} {what} {found}; the op returns {what} {right} for {given}."
        if compare.strides_that_count(tensor) != compare.strides_that_count(want):
            return f"{name} strides {tensor.stride()}; the op writes them contiguously, whatever the gate's are."
    return None


def _judge_symbolic(answer: Callable) -> str | None:
    """A symbolic number of tokens must stay symbolic."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

    mode = FakeTensorMode(shape_env=ShapeEnv())
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC])
    gate = mode.from_tensor(torch.empty(40, 256, dtype=torch.bfloat16), symbolic_context=context)
    with mode:
        codes, scale = answer(gate, torch.empty_like(gate), True, True, 128, 1e-10)
    if isinstance(codes.shape[0], int) or isinstance(scale.shape[0], int):
        return (
            f"with an open number of tokens, {gate.shape[0]}, it promises {codes.shape[0]} rows of codes and "
            f"{scale.shape[0]} of scales: every other number would be compiled anew."
        )
    return None


def kernel(answer: Any) -> str | None:
    """The source of `product`, run by the interpreter in a separate process."""
    if not isinstance(answer, str) or "def product(" not in answer:
        return "give the source of the function `product` as text, with its @triton.jit."
    try:
        found = kernel_offline.interpret(kernel_offline.source_with(answer))
    except (kernel_offline.OfflineError, SyntaxError) as error:
        return f"the kernel does not run: {error}"
    if [case["case"] for case in found["cases"]] != kernel_offline.case_names():
        return "not every case was run to its end."
    for case in found["cases"]:
        scales, codes = case["scales off"], case["codes not the worked kernel's"]
        if scales > 0.02 or codes > 0.005:  # another spelling of silu changes a few roundings
            return f"{case['case']}: {scales:.0%} of the scales and {codes:.0%} of the codes are off."
    return None
