"""The judges of the capstone's values: each runs an answer on inputs of its own and says what went wrong."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from fusionlib.exercises.worked import captured, offline
from fusionlib.exercises.worked import silu_and_mul as worked
from fusionlib.exercises.worked.captured import halves
from fusionlib.exercises.worked.silu_and_mul import SiluAndMul

SPECS = [SiluAndMul(act, out) for act in (True, False) for out in (True, False)]
SCALARS = (captured.GROUP, 1e-10)


def no_function(answer: Any) -> str | None:
    """What is wrong with an answer that cannot be called."""
    return None if callable(answer) else f"{answer!r} is no function."


def _off(got: torch.Tensor, want: torch.Tensor) -> float:
    """The fraction of elements further away than float32 arithmetic in another order explains."""
    close = torch.isclose(got.float(), want.float(), rtol=1e-5, atol=1e-30, equal_nan=True)
    return float((~close).float().mean())


def reference(answer: Any) -> str | None:
    """silu_and_mul(gate, up, spec): all four specs, bf16 and float32, strided rows, large values."""
    if wrong := no_function(answer):
        return wrong
    for dtype in (torch.bfloat16, torch.float32):
        gate, up = halves(40, 256, dtype)
        gate[0, :4] = torch.tensor([-200.0, 200.0, 0.0, float("nan")])
        for spec in SPECS:
            got, want = answer(gate, up, spec), worked.silu_and_mul(gate, up, spec)
            if not isinstance(got, torch.Tensor) or got.shape != want.shape:
                return (
                    f"for {spec} it gives {type(got).__name__} {list(getattr(got, 'shape', []))}, not [tokens, hidden]."
                )
            if got.dtype != want.dtype:
                return f"for {spec} and inputs in {dtype} the result is {got.dtype}, not {want.dtype}."
            if (off := _off(got, want)) <= 2e-3:  # silu in another spelling may flip a rounding now and then
                continue
            others = [s for s in SPECS if s != spec and _off(got, worked.silu_and_mul(gate, up, s)) <= 2e-3]
            if others:
                return f"for {spec} it computes what {others[0]} asks for: look at where it rounds."
            if _off(got, worked.silu_and_mul(up, gate, spec)) <= 2e-3:
                return "gate and up are exchanged: silu is taken of the gate."
            return f"for {spec} and inputs in {dtype}, {off:.0%} of the elements are wrong."
    return None


def moved_bytes(answer: Any) -> str | None:
    """moved_bytes(tokens, hidden, group_size) -> (two kernels, one kernel)."""
    if wrong := no_function(answer):
        return wrong
    for tokens, hidden, group in ((1, 1024, 128), (64, 4096, 128), (1000, 512, 64)):
        got, want = answer(tokens, hidden, group), worked.moved_bytes(tokens, hidden, group)
        if not (isinstance(got, tuple | list) and len(got) == 2):
            return "return two numbers: the bytes of two kernels, and those of one."
        for number, right, what in zip(got, want, ("two kernels", "one kernel"), strict=True):
            if not math.isclose(number, right, rel_tol=1e-9):
                more = "too many" if number > right else "too few"
                share = number / (tokens * hidden)
                return (
                    f"{more} bytes for {what}: {share:.2f} an element of [{tokens}, {hidden}] with groups of {group}."
                )
    return None


def broken_op(kind: str) -> Callable:
    """An op that is wrong in one way, for a test that must notice."""

    def op(gate, up, act, out, group, floor):
        if kind == "gate and up are exchanged":
            gate, up = up, gate
        if kind == "a strided gate is read as if it were contiguous":
            gate = gate.as_strided(gate.shape, (gate.shape[1], 1))
        if kind == "silu(gate) is never rounded":
            act = False
        if kind == "the product is never rounded":
            out = False
        if kind == "the floor is left out":
            floor = None
        codes, scale = worked.quantise(gate, up, act, out, group, floor)
        if kind == "the last row is never written":
            codes[-1:] = torch.full_like(codes[-1:].view(torch.uint8), 0x7E).view(codes.dtype)
        if kind == "scales belong to the neighbouring group":
            scale = scale.roll(1, -1)
        if kind == "scales are not a number":
            scale = torch.full_like(scale, torch.nan)
        return codes, scale

    return op


BROKEN = (
    "the last row is never written", "scales are not a number", "gate and up are exchanged",
    "scales belong to the neighbouring group", "silu(gate) is never rounded", "the product is never rounded",
    "a strided gate is read as if it were contiguous", "the floor is left out",
)  # fmt: skip


def test_of_op(answer: Any) -> str | None:
    """check(op): silent for the right op, an exception for each broken one."""
    if wrong := no_function(answer):
        return wrong
    try:
        answer(worked.quantise)
    except Exception as error:
        return f"it turns down the correct op: {type(error).__name__} {error}"
    survivors = []
    for kind in BROKEN:
        try:
            answer(broken_op(kind))
            survivors.append(kind)
        except Exception:
            continue
    if survivors:
        return f"{len(survivors)} of {len(BROKEN)} broken ops pass it; in one of them {survivors[0]}."
    return None


def fake(answer: Any) -> str | None:
    """fake(gate, up, ...): shape, strides, dtype and device of what the op returns, on tensors without data."""
    if wrong := no_function(answer):
        return wrong
    wide = torch.empty(7, 1024, dtype=torch.bfloat16, device="meta")
    for gate, up in ((wide[:, :512], wide[:, 512:]), (wide[:, :512].t().contiguous().t(), wide[:, 512:]), (wide, wide)):
        got = answer(gate, up, True, True, *SCALARS)
        if not (isinstance(got, tuple | list) and len(got) == 2):
            return "return two tensors: codes and scale."
        for name, tensor, want in zip(
            ("codes", "scale"), got, worked.fake(gate, up, True, True, *SCALARS), strict=True
        ):
            for what in ("dtype", "shape", "device"):
                found, right = getattr(tensor, what), getattr(want, what)
                if found != right:
                    return f"{name} have {what} {found}; the op returns {what} {right} for a gate {list(gate.shape)}."
            if tensor.stride() != want.stride():
                return (
                    f"{name} have strides {tensor.stride()}; the op writes them contiguously, whatever the gate's are."
                )
    return None


def kernel(answer: Any) -> str | None:
    """The source of `product`, run by the interpreter in a process of its own."""
    if not isinstance(answer, str) or "def product(" not in answer:
        return "give the source of the function `product` as text, with its @triton.jit."
    try:
        found = offline.interpret(offline.source_with(answer))
    except (offline.OfflineError, SyntaxError) as error:
        return f"the kernel does not run: {error}"
    for case in found["cases"]:
        if case["scales off"] > 0.02 or case["codes off"] > 0.05:  # the interpreter's own casts move 2.4 % of the codes
            off = f"{case['scales off']:.0%} of the scales and {case['codes off']:.0%} of the codes"
            return f"{case['case']}: {off} are off."
    return None
