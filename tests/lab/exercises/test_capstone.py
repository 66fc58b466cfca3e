"""The capstone around its exercises: what counts as not attempted, what is used instead, and sites left alone."""

from __future__ import annotations

import inspect
import json
import re
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from fusionlab.exercises import Exercise, capstone
from fusionlab.exercises.worked import captured, graph_traps, kernel_offline, traps
from fusionlab.exercises.worked import silu_and_mul as worked
from fusionlib import GroupQuant, reference
from fusionlib.match.graph import value
from fusionlib.match.quant import is_fp8_cast, read_fp8_cast
from fusionlib.match.result import Trail

NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "08_your_own_fusion.ipynb"
USE = r"^\w+ = capstone\.use\(capstone\.(\w+), (\w+), interactive=interactive\)$"
STEPS = [value for value in vars(capstone).values() if isinstance(value, Exercise)]


def gaps() -> dict[str, str]:
    """The notebook's answer cells by the exercise that judges them, up to the call of `use`."""
    cells = [
        "".join(cell["source"]) for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"
    ]
    found = {}
    for cell in cells:
        if match := re.search(USE, cell, re.MULTILINE):
            found[match[1]] = f"{cell[: match.start()]}\nanswer = {match[2]}\n"
    return found


def test_the_notebook_has_a_gap_for_every_step():
    assert [f"capstone.{name}" for name in gaps()] == [step.name for step in STEPS]


@pytest.mark.parametrize("name", [step.name.removeprefix("capstone.") for step in STEPS])
def test_the_gap_as_it_is_committed_counts_as_not_attempted(name, capsys):
    from torch._inductor.custom_graph_pass import CustomGraphPass

    scope = {"CustomGraphPass": CustomGraphPass, "read": None, "swap": None}
    exec(gaps()[name], scope)
    assert capstone.is_stub(scope["answer"])
    exercise = getattr(capstone, name)
    assert capstone.use(exercise, scope["answer"]) is exercise.solution
    assert capsys.readouterr().out.startswith(
        f"Not attempted. The notebook goes on with the worked solution; capstone.{name}"
    )


def test_no_solution_and_no_trap_is_taken_for_a_gap():
    for step in STEPS:
        assert not capstone.is_stub(step.solution), step.name
        for trap in step.traps:
            if trap is not graph_traps.replace_nothing and trap is not graph_traps.NoUuid:
                named = getattr(trap, "__name__", "text")
                assert named == "<lambda>" or not capstone.is_stub(trap), (step.name, named)


def test_a_right_answer_goes_on_and_a_wrong_one_does_not(capsys):
    def mine(tokens, hidden, group_size):
        moved = tokens * hidden * (1 + 4 / group_size)
        return moved + 8 * tokens * hidden, moved + 4 * tokens * hidden

    assert capstone.use(capstone.BYTES, mine) is mine
    assert capsys.readouterr().out.startswith("Correct.")
    assert capstone.use(capstone.BYTES, traps.bytes_without_scales) is worked.moved_bytes
    out = capsys.readouterr().out
    assert out.startswith("Not yet: too few bytes for two kernels") and "capstone.BYTES.hint()" in out


def test_what_is_to_be_replaced_lies_column_by_column():
    codes, _ = captured.in_columns(*captured.halves())
    assert codes.stride() == (1, 6)
    quant = quant_of(captured.in_columns, *captured.halves())
    assert value(quant.codes).stride()[-1] != 1, "else the judge of the replacement's layout asks nothing"


def quant_of(fn, *args):
    graph = captured.capture(fn, *args)
    (anchor,) = [node for node in graph.nodes if is_fp8_cast(node)]
    return read_fp8_cast(anchor, Trail())


def test_the_library_s_own_step_and_guard_can_be_shown():
    from fusionlib.match import activation
    from fusionlib.rewrite import guards

    shown = re.findall(r"inspect\.getsource\((activation|guards)\.(\w+)\)", NOTEBOOK.read_text())
    assert [module for module, _ in shown] == ["activation", "guards"]
    for module, name in shown:
        lines = inspect.getsource(getattr({"activation": activation, "guards": guards}[module], name)).splitlines()
        assert 5 <= len(lines) <= 20, "short enough to be read on a page"


def test_on_a_page_the_solution_follows_the_task_folded(monkeypatch, capsys):
    published = []
    monkeypatch.setattr("IPython.display.publish_display_data", lambda data, metadata: published.append(data))
    capstone.use(capstone.BYTES, ...)
    assert published == []
    capstone.use(capstone.BYTES, ..., interactive=False)
    (data,) = published
    assert "moved_bytes" in data["text/html"] and data["text/html"].count("<details") == len(capstone.BYTES.hints) + 1


def product_kept(gate, up):
    y = F.silu(gate) * up
    return *captured.quant(y), y


LEFT_ALONE = {
    "the product is returned too": (product_kept, "is needed by %output too"),
    "no floor": (lambda g, u: captured.quant(F.silu(g) * u, floor=None), "no such quantisation"),
    "reciprocal": (lambda g, u: captured.quant(F.silu(g) * u, division="reciprocal"), "no such quantisation"),
    "groups cross rows": (
        lambda g, u: reference.group_quant((F.silu(g) * u).view(3, -1), GroupQuant(512)),
        "groups of 512 do not divide a row of 256",
    ),
    "groups that tl.arange cannot make": (
        lambda g, u: reference.group_quant(F.silu(g[:, :192]) * u[:, :192], GroupQuant(96)),
        "groups of a power of two: 96",
    ),
}


@pytest.mark.parametrize("name", list(LEFT_ALONE))
def test_a_site_that_one_call_cannot_replace_is_refused(name):
    fn, why = LEFT_ALONE[name]
    quant = quant_of(fn, *captured.halves())
    with pytest.raises(worked.Refused, match=why):
        worked.check_site(quant, worked.read_silu_and_mul(quant.y))


def test_the_ledger_agrees_with_the_count():
    """The closed form against the byte ledger of real tensors."""
    from fusionlab.observe.byte_ledger import group_bytes

    tokens, hidden = 6, 256
    quant = quant_of(captured.SPELLINGS["F.silu(gate) * up"][0], *captured.halves(tokens, hidden))
    found = worked.read_silu_and_mul(quant.y)
    inside = worked.inside(quant, found)
    product = [node for node in inside if node in (quant.y, *quant.y.all_input_nodes) or _above(node, quant.y)]
    one = group_bytes(sorted(inside)).total
    two = group_bytes(sorted(product)).total + group_bytes(sorted(inside - set(product))).total
    assert (two, one) == worked.moved_bytes(tokens, hidden, captured.GROUP)


def _above(node, y) -> bool:
    return any(user is y or _above(user, y) for user in node.users if user.op == "call_function")


def test_the_op_keeps_the_promise_of_its_fake():
    gate, up = captured.halves()
    for inputs in ((gate, up), (gate.t().contiguous().t(), up), (gate.t().contiguous().t(), up.t().contiguous().t())):
        for made, promised in zip(
            *(f(*inputs, True, True, 128, 1e-10) for f in (worked.quantise, worked.fake)), strict=True
        ):
            assert (made.shape, made.stride(), made.dtype) == (promised.shape, promised.stride(), promised.dtype)


def test_a_compiled_function_is_rewritten_and_equal():
    fusion = worked.SiluAndMulPass(worked.define_op(worked.quantise, worked.fake))
    gate, up = captured.halves(seed=5)
    fn = captured.SPELLINGS["F.silu(gate) * up"][0]
    with torch.no_grad():
        codes, scale = torch.compile(fn, options={"post_grad_custom_pre_pass": fusion, "fx_graph_cache": False})(
            gate, up
        )
    assert [site.split()[0] for site in fusion.sites] == ["fused"]
    want_codes, want_scale = fn(gate, up)
    assert torch.equal(codes.view(torch.uint8), want_codes.view(torch.uint8)) and torch.equal(scale, want_scale)


def test_the_kernel_compiles_for_gpus_that_are_not_here():
    source = kernel_offline.source_with(kernel_offline.worked_product())
    assert source.strip() == kernel_offline.WORKED.read_text().strip()
    found = kernel_offline.compile_for(source)
    assert list(found) == ["sm_90", "gfx950"]
    assert all(counts["16-byte loads"] == 2 and counts["FP8 conversions"] >= 1 for counts in found.values())


def test_a_kernel_that_does_not_compile_is_told():
    wrong = kernel_offline.worked_product().replace("tl.exp", "tl.expo")
    assert "expo" in capstone.KERNEL.verdict(wrong)


def _calls(op, gate, up, launched):
    """What the op returns on a GPU, run on this CPU with a kernel that notes its launch."""
    kernel = types.ModuleType("candidate")

    def launch(gate, up, codes, scale, *scalars):
        launched.append((gate.stride(), scalars))
        for made, right in zip((codes, scale), worked.quantise(gate, up, *scalars), strict=True):
            made.copy_(right)

    kernel.launch = launch
    capstone.connect_kernel(op, kernel)
    return worked._on_gpu(str(op), gate, up, False, True, 64, 1e-4)


def test_a_connected_kernel_is_what_the_op_launches_on_a_gpu():
    op, launched = worked.define_op(worked.quantise, worked.fake), []
    gate, up = captured.halves()
    for strided in (gate, gate.t().contiguous().t()):
        codes, scale = _calls(op, strided, up, launched)
        want_codes, want_scale = worked.quantise(gate, up, False, True, 64, 1e-4)
        assert torch.equal(codes.view(torch.uint8), want_codes.view(torch.uint8)) and torch.equal(scale, want_scale)
    assert launched == [((512, 1), (False, True, 64, 1e-4)), ((256, 1), (False, True, 64, 1e-4))]
    op(gate, up, False, True, 64, 1e-4)
    assert len(launched) == 2, "on a CPU nothing is launched"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CUDA")


def test_the_source_of_an_op_is_that_of_all_it_was_made_of(tmp_path):
    def quantise(gate, up, *scalars):
        return worked.quantise(gate, up, *scalars)

    op = worked.define_op(quantise, worked.fake)
    first = capstone.op_source(op)
    assert (
        first.startswith(str(op)) and inspect.getsource(quantise) in first and inspect.getsource(worked.fake) in first
    )
    assert inspect.getsource(worked.silu_and_mul) in capstone.op_source(worked.define_op(worked.quantise, worked.fake))
    assert "def group_quant" not in first, "the library's sources are source_hash's"
    source = kernel_offline.source_with(kernel_offline.worked_product())
    capstone.connect_kernel(op, kernel_offline.load(source))
    assert capstone.op_source(op) == f"{first}\0{source}"


def own_fusion() -> object:
    """The page's fusion around a reader's `read`, here the worked one, from the cell as it is committed."""
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    (cell,) = ["".join(cell["source"]) for cell in cells if cell.get("id") == "own-fusion"]
    gate, up = captured.halves()
    scope = vars(worked) | {"captured": captured, "read": worked.read_silu_and_mul, "gate": gate, "up": up}
    exec(cell, scope)
    return scope["MySiluAndMul"]()


def test_the_page_s_fusion_refuses_its_own_and_leaves_the_rest_to_others(capsys):
    from fusionlib import FusionPass

    def outcome(producer, fusion) -> str:
        graph = captured.capture(producer, *captured.halves())
        return ", ".join(site.outcome for site in FusionPass("cpu", fusions=(fusion,)).rewrite(graph).sites)

    fusion = own_fusion()
    told = capsys.readouterr().out
    assert "silu without a product: unclaimed" in told and "up broadcast over the row: refused my_reader" in told
    norm = {"a norm and its gate": lambda x, gate: captured.quant(F.rms_norm(x, (256,)) * F.silu(gate)[..., :1])}
    outcomes = {name: outcome(fn, fusion) for name, fn in (captured.MUST_NOT | norm).items()}
    others = ("gelu in", "sigmoid in", "a sum in", "silu without", "a third factor", "a norm and")
    assert outcomes == {name: "unclaimed" if name.startswith(others) else "refused" for name in outcomes}
    assert outcome(captured.SPELLINGS["F.silu(gate) * up"][0], fusion) == "fused"
