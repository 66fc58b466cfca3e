"""The capstone: silu(gate) * up and FP8 group quantisation, fused by the reader in eight steps.

Each step is an exercise whose judge runs the reader's code; the worked solution is in `fusionlab.exercises.worked`.
"""

from __future__ import annotations

import dis
import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from fusionlab.exercises import folded
from fusionlab.exercises.exercise import Exercise, source_of
from fusionlab.exercises.worked import graph_judges, graph_traps, judges, kernel_offline, traps
from fusionlab.exercises.worked import silu_and_mul as worked
from fusionlab.exercises.worked.silu_and_mul import (
    Found,
    Refused,
    SiluAndMul,
    check_site,
    connect_kernel,
    define_op,
    inside,
    op_source,
    same_layout,
)

__all__ = [
    "Found",
    "Refused",
    "SiluAndMul",
    "check_site",
    "connect_kernel",
    "define_op",
    "inside",
    "op_source",
    "same_layout",
    "use",
    "worked_test",
]


def use(exercise: Exercise, answer: Any, *, interactive: bool = True) -> Any:
    """`answer` if the judge accepts it, else the worked solution; prints which of the two, and what is wrong.

    With `interactive=False`, when no one can ask for them, folded hints and solution follow.
    """
    try:
        return _answer_or_solution(exercise, answer)
    finally:
        if not interactive:
            folded.publish(exercise)


def _answer_or_solution(exercise: Exercise, answer: Any) -> Any:
    if is_stub(answer):
        print(f"Not attempted. The notebook goes on with the worked solution; {exercise.name}.hint() helps.")
        return exercise.solution
    wrong = exercise.attempt(answer)
    if wrong is None:
        print(f"Correct. The notebook goes on with your answer.\n{textwrap.fill(exercise.explanation, 96)}")
        return answer
    print(textwrap.fill(f"Not yet: {wrong}", 96))
    print(f"The notebook goes on with the worked solution. {exercise.name}.hint() helps, .solve() prints it.")
    return exercise.solution


def is_stub(answer: Any) -> bool:
    """Whether `answer` is a placeholder: `...`, text with a `...` line, or code that does nothing but return `...`."""
    if answer is ... or answer is None:
        return True
    if isinstance(answer, str):
        return any(line.strip() in ("...", "return ...") for line in answer.splitlines())
    if isinstance(answer, type):
        return any(is_stub(part) for part in vars(answer).values() if inspect.isfunction(part))
    code = getattr(answer, "__code__", None)
    if code is None or code.co_names or not set(code.co_consts) <= {..., None, answer.__doc__}:
        return False
    return not any("JUMP" in instruction.opname for instruction in dis.get_instructions(code))  # a loop is an attempt


def worked_test(op: Callable) -> None:
    """A test of the op: raises unless codes and scales are the reference's, to the bit."""
    import torch

    from fusionlib import GroupQuant, reference

    def bits(tensor):
        """As integers; every NaN is -1, since its sign and its payload mean nothing."""
        number = torch.uint8 if tensor.element_size() == 1 else torch.int32
        return tensor.view(number).int().masked_fill(tensor.float().isnan(), -1)

    wide = 3 * torch.randn(7, 3 * 256, generator=torch.Generator().manual_seed(0)).bfloat16()
    gate, up = wide[:, :256], wide[:, 256:512]  # strided rows
    gate[2] = 0.0  # a group of zeros needs the floor
    gate[3, 5], up[4, 200] = torch.nan, torch.inf  # must reach the codes and scales of their groups, and no others
    for group_size, floor in ((128, 1e-10), (64, 0.25)):
        for act in (True, False):
            for out in (True, False):
                codes, scale = op(gate, up, act, out, group_size, floor)
                y = worked.silu_and_mul(gate, up, SiluAndMul(act, out))
                want_codes, want_scale = reference.group_quant(y, GroupQuant(group_size, floor=floor))
                assert torch.equal(bits(codes), bits(want_codes)), f"codes, {act=} {out=}"
                assert torch.equal(bits(scale), bits(want_scale)), f"scales, {act=} {out=}"


REFERENCE = Exercise(
    "capstone.REFERENCE",
    "Write silu_and_mul(gate, up, spec): the product in float32, rounded to gate's dtype where the spec says so.",
    judges.reference,
    solution=worked.silu_and_mul,
    traps=(
        traps.reference_rounds_always,
        traps.reference_rounds_once,
        traps.reference_exchanged,
        traps.reference_sigmoid,
        3,
        traps.reference_drops_nan,
        traps.reference_saturates,
        traps.reference_loses_the_sign_of_zero,
        traps.reference_wrong_at_the_end,
        traps.reference_rounds_otherwise_at_the_end,
        traps.reference_empties_its_inputs,
        traps.reference_leaves,
        traps.reference_never_ends,
    ),
    hints=(
        "Go to float32 first; `.to(gate.dtype).float()` rounds and comes back.",
        "Two ifs: one behind silu, one at the end. Without round_output the result stays float32.",
    ),
    explanation="Every rounding is a line that one can point at. The kernel and the matcher are held to this function.",
    seconds=60,
)

BYTES = Exercise(
    "capstone.BYTES",
    "Write moved_bytes(tokens, hidden, group_size) -> (two kernels, one kernel): gate, up and product are bf16, codes "
    "one byte, scales four.",
    judges.moved_bytes,
    solution=worked.moved_bytes,
    traps=(
        traps.bytes_forget_the_detour,
        traps.bytes_without_scales,
        lambda *sizes: 3,
        9.03,
        traps.bytes_of_groups_of_128,
        traps.bytes_of_one_size,
    ),
    hints=(
        "List what each kernel reads and what it writes.",
        "The product is written by the first kernel and read again by the second.",
    ),
    explanation="The detour of the product is what the fusion saves; inputs and results move either way.",
)

TEST = Exercise(
    "capstone.TEST",
    "Write check(op): silent for a correct op(gate, up, round_activation, round_output, group_size, floor), an "
    "exception for a wrong one.",
    judges.test_of_op,
    solution=worked_test,
    traps=(
        traps.checks_shapes,
        traps.checks_within_a_tolerance,
        traps.checks_without_zeros,
        traps.checks_finite_numbers,
        traps.turns_all_down,
        "assert",
        traps.checks_one_group_size,
        traps.checks_one_floor,
        traps.checks_the_name,
        traps.checks_the_first_only(),
    ),
    hints=(
        "Compare every code and every scale with the reference's: torch.equal, on a view as bytes.",
        "Which inputs would show a forgotten stride, a forgotten floor, a forgotten rounding? And a NaN or an infinity "
        "that is lost on the way? A NaN is not equal to itself: compare where it is.",
    ),
    explanation="A test is as good as the wrong programs that it turns down.",
    solution_text=source_of(worked_test).replace("worked.", ""),  # the notebook has its own `worked`
    seconds=60,
)

FAKE = Exercise(
    "capstone.FAKE",
    "Write fake(gate, up, round_activation, round_output, group_size, floor): empty tensors like those that the op "
    "returns.",
    judges.fake,
    solution=worked.fake,
    traps=(
        traps.fake_like_the_gate,
        traps.fake_scale_of_the_inputs_dtype,
        traps.fake_on_the_cpu,
        lambda *a: a[0],
        traps.fake_of_groups_of_128,
        traps.fake_of_seven_tokens,
        traps.fake_of_a_number,
        traps.fake_scale_transposed,
    ),
    hints=(
        "gate.new_empty(shape, dtype=...) keeps the device and is contiguous.",
        "One float32 scale for each group of each token.",
    ),
    explanation="The compiler plans memory by these shapes and strides without ever running the op.",
    seconds=60,
)

READ = Exercise(
    "capstone.READ",
    "Write read_silu_and_mul(y): Found(gate, up, spec) for the node of a product, or raise Refused with a reason.",
    graph_judges.read,
    solution=worked.read_silu_and_mul,
    traps=(
        graph_traps.read_any_activation,
        graph_traps.read_one_order,
        graph_traps.read_without_rounding,
        graph_traps.read_nothing,
        lambda y: None,
        graph_traps.read_any_gate_shape,
        graph_traps.read_any_rounding_dtype,
        graph_traps.read_any_strides,
        graph_traps.read_below_roundings,
        graph_traps.read_the_widened_gate,
        graph_traps.read_the_first_placeholder,
        graph_traps.read_and_change,
    ),
    hints=(
        "peel_exact(y) is the node below reshapes and widenings; is_narrowing says that a cast rounds.",
        "read_activation(node) gives kind, gate and the dtype it is rounded to, or None; try both operands.",
        "What if up is broadcast, or has another dtype than the gate?",
    ),
    explanation="It recognises the computation and not its spelling; what it cannot spell exactly it leaves alone.",
    seconds=240,
)

REPLACE = Exercise(
    "capstone.REPLACE",
    "Write replace(graph, quant, found, op): one call of op whose results take the place of quant.codes and "
    "quant.scale.",
    graph_judges.replace,
    solution=worked.replace,
    traps=(
        graph_traps.replace_codes_only,
        graph_traps.replace_at_the_anchor,
        graph_traps.replace_by_the_default_spec,
        graph_traps.replace_nothing,
        graph_traps.replace_by_one_group_size,
        graph_traps.replace_by_one_floor,
        graph_traps.replace_in_another_shape,
        graph_traps.replace_in_another_layout,
        graph_traps.replace_with_numbers,
        graph_traps.replace_twice,
        graph_traps.replace_and_empty_an_input,
    ),
    hints=(
        "Editor(Journal(graph), before, origin, mode) inserts: call(op, *args), item(node, index), reshape(node, "
        "sizes).",
        "Insert behind y: somebody may use the scale before the codes are made.",
        "quant.codes and quant.scale have shapes of their own: [-1, *shape(node)[1:]].",
        "Make both results, ask same_layout(new, old) of both, and only then move readers; journal.undo() takes all "
        "of it back.",
    ),
    explanation="Results that bear the op's mark prove that the call is really used.",
    seconds=240,
)

PASS = Exercise(
    "capstone.PASS",
    "Write class SiluAndMulPass(CustomGraphPass): sites, __call__(graph) and uuid().",
    graph_judges.the_pass,
    solution=worked.SiluAndMulPass,
    traps=(
        graph_traps.ConstantUuid,
        graph_traps.NoUuid,
        graph_traps.SilentAboutRefusals,
        graph_traps.BreaksTheCompile,
        graph_traps.FusesInTraining,
        graph_traps.ForgetsGradients,
        graph_traps.ForgetsOtherReaders,
        worked.replace,
        graph_traps.ChecksTheFormatOnly,
        graph_traps.EmptiesAnInput,
        graph_traps.RaisesWithoutASite,
        graph_traps.OnlySaysThatItFused,
        graph_traps.OneSiteOnly,
        graph_traps.UuidWithoutTheReader,
        graph_traps.UuidWithoutTheRewriter,
        graph_traps.UuidWithoutItself,
        graph_traps.UuidWithoutWhatTheOpIsMadeOf,
        graph_traps.UuidBySaltedHash,
        graph_traps.UuidById,
        graph_traps.UuidByRepr,
        graph_traps.UuidByASet,
    ),
    hints=(
        "Collect the anchors first: the graph changes under the loop.",
        "Both Refused and Stop end one site, not the compile.",
        "Placeholders called primals_... mean that gradients are taken.",
        "uuid: hash the sources of everything that decides the result, and op_source(op). inspect.getsource knows the "
        "functions of a notebook, type(self).__call__ among them, and not its classes.",
    ),
    explanation="No site is silent, no foreign graph breaks, and no stale artefact comes out of the cache.",
    seconds=400,
)

KERNEL = Exercise(
    "capstone.KERNEL",
    "Write `product` in Triton, as text: silu(gate) * up of float32 blocks, rounded at both points.",
    judges.kernel,
    solution=kernel_offline.worked_product(),
    traps=(
        traps.KERNEL_ROUNDS_ONCE,
        traps.KERNEL_SIGMOID,
        "silu(gate) * up",
        traps.KERNEL_IGNORES_ROUND_OUTPUT,
        traps.KERNEL_IGNORES_ROUND_ACTIVATION,
        traps.KERNEL_OVERFLOWS,
        traps.KERNEL_GUARDS_AGAINST_OVERFLOW,
        traps.KERNEL_WITHOUT_CASES,
        traps.KERNEL_LEAVES,
    ),
    hints=(
        "silu(g) = g / (1 + exp(-g)), with tl.exp; tl.div_rn(a, b) is the division that is rounded correctly.",
        "_rounded(value, DTYPE, ROUND) rounds to DTYPE and comes back to float32 if ROUND.",
    ),
    explanation="The rest of the kernel is the second half of this library's: amax, scale, quotient, cast.",
    solution_text=kernel_offline.worked_product(),
    seconds=240,
)
