"""The semantic matcher on the scoreboard's tables: every row fuses, once, and equals eager to the bit on a CPU.

On a GPU the kernel sums a row in another order than eager, so that one value in a million rounds to the other side.
"""

from dataclasses import fields
from math import prod

import pytest
import torch

from fusionlab.codes import code_steps
from fusionlab.scoreboard import TABLES
from fusionlab.spellings import OPAQUE_NORM, Spelling
from fusionlib import FusionPass, GroupQuant
from fusionlib.fusions import BUILT_IN
from fusionlib.testing.run_edited import run_edited
from tests.pattern.support import run_spelling
from tests.support import same

OPS = {fusion.name: fusion.op for fusion in BUILT_IN}
#: How many of an op's last arguments are the scalars of its specs.
SCALARS = {name: len(fields(op.spec)) + len(fields(GroupQuant)) for name, op in OPS.items()}
ROWS = [(name, spelling) for name, table in TABLES.items() for spelling in table]


def row_name(value: str | Spelling) -> str:
    return value if isinstance(value, str) else value.name


def within_a_step(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal but for one code in a thousand by one step.

    PyTorch's gelu and its erf may differ in a last bit on a CPU, and for negative values 1 + erf cancels the others.
    """
    if a.dtype.itemsize > 1:
        return same(a, b)
    steps = code_steps(a, b)
    return a.stride() == b.stride() and bool(steps.max() <= 1 and steps.float().mean() <= 1e-3)


def test_every_fusion_has_a_table_and_every_row_a_name_of_its_own():
    assert set(TABLES) == set(OPS)
    for table in TABLES.values():
        assert len({spelling.name for spelling in table}) == len(table)


@pytest.mark.parametrize(("name", "spelling"), ROWS, ids=row_name)
def test_every_listed_spelling_fuses_and_equals_eager(name, spelling):
    fusion, records, read = FusionPass(devices=("cpu",)), [], []

    def edit(graph):
        records.append(fusion.rewrite(graph))
        calls = [node for node in graph.nodes if node.target in OPS[name].overloads]
        read.extend(OPS[name].specs(*node.args[-SCALARS[name] :])[0] for node in calls)

    torch.manual_seed(11)
    got, want = run_spelling(edit, spelling)
    sites = [site for record in records for site in record.sites]
    assert sites and all(site.fused and site.fusion == name for site in sites), "\n".join(map(str, sites))
    assert len(got) == len(want)
    alike = within_a_step if spelling.name.startswith("gelu") else same
    assert all(map(alike, got, want))
    assert read and (spelling.spec is None or set(read) == {spelling.spec})


def test_a_norm_that_is_opaque_is_named():
    """Nothing can be read off an op whose arithmetic is not in the graph; the traced way knows this one by name."""
    fusion, records = FusionPass(devices=("cpu",)), []
    run_spelling(lambda graph: records.append(fusion.rewrite(graph)), OPAQUE_NORM)
    (site,) = (site for record in records for site in record.sites)
    assert site.unclaimed and "fusionlib.rms_norm_gated" in site.found


def larger(tensor: torch.Tensor, times: int) -> torch.Tensor:
    """Random values with `times` as many rows, laid out as `tensor` is, on the GPU."""
    rows = tensor.shape[0] * times
    row = max(tensor.stride(0), prod(tensor.shape[1:]))
    values = torch.randn(rows * row, device="cuda").to(tensor.dtype)
    return values.as_strided((rows, *tensor.shape[1:]), tensor.stride())


#: Of codes and 16-bit values: what a row's sum in another order moves (measured: at most 2e-6, data/README.md).
BOUND = 1e-5
#: The same for gelu: its erf and tanh differ in a last bit, of which most digits of 1 + erf or 1 + tanh make more.
GELU_BOUND = 2e-4


@pytest.mark.gpu
@pytest.mark.parametrize(("name", "spelling"), ROWS, ids=row_name)
def test_every_listed_spelling_equals_eager_on_the_same_gpu(name, spelling):
    torch.manual_seed(11)
    fn, inputs = spelling.build()
    tensors = tuple(larger(each, 512) if each.ndim > 1 else each.cuda() for each in inputs)  # a million codes
    fusion, records = FusionPass(), []
    dynamic = (0, 1) if spelling.dynamic else ()
    got = run_edited(lambda graph: records.append(fusion.rewrite(graph)), fn, *tensors, dynamic=dynamic)
    sites = [site for record in records for site in record.sites]
    assert sites and all(site.fused and site.fusion == name for site in sites), "\n".join(map(str, sites))
    bound = GELU_BOUND if "gelu" in spelling.name else BOUND
    for new, old in zip(got, fn(*tensors), strict=True):
        assert (new.shape, new.dtype, new.stride()) == (old.shape, old.dtype, old.stride())
        if new.dtype.itemsize == 1:
            moved = (new.view(torch.uint8) != old.view(torch.uint8)).double().mean().item()
            print(f"{spelling.name}: {moved:.1e} of {new.numel()} codes")
            assert code_steps(new, old).max() <= 1 and moved <= bound
        elif new.dtype is torch.float32 and (inputs[0].dtype is torch.float32 or "never" in spelling.name):
            # Nothing is rounded before the scale, which therefore shows the last bits of the sum.
            torch.testing.assert_close(new, old, rtol=1e-6, atol=0)
        else:
            moved = (new != old).double().mean().item()
            print(f"{spelling.name}: {moved:.1e} of {new.numel()} values of {new.dtype}")
            # of 128 codes one decides over a scale, and few of a scale's neighbours share it
            assert moved <= 20 * bound
