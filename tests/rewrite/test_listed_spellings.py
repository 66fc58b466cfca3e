"""The semantic matcher on the scoreboard's table: every row fuses, once, and equals eager to the bit on a CPU.

On a GPU the kernel sums a row in another order than eager, so that one value in a million rounds to the other side.
"""

from math import prod

import pytest
import torch

from fusionlab.codes import code_steps
from fusionlab.spellings import OPAQUE_NORM, SPELLINGS
from fusionlib import FusionPass
from fusionlib.testing.run_edited import run_edited
from tests.pattern.support import run_spelling
from tests.support import same


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling.name)
def test_every_listed_spelling_fuses_and_equals_eager(spelling):
    fusion, records = FusionPass(devices=("cpu",)), []
    torch.manual_seed(11)
    got, want = run_spelling(lambda graph: records.append(fusion.rewrite(graph)), spelling)
    sites = [site for record in records for site in record.sites]
    assert sites and all(site.fused for site in sites), "\n".join(map(str, sites))
    assert len(got) == len(want) and all(map(same, got, want))


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


@pytest.mark.gpu
@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling.name)
def test_every_listed_spelling_equals_eager_on_the_same_gpu(spelling):
    torch.manual_seed(11)
    fn, (x, gate, weight) = spelling.build()
    tensors = (larger(x, 512), larger(gate, 512), weight.cuda())  # a million codes
    fusion, records = FusionPass(), []
    dynamic = (0, 1) if spelling.dynamic else ()
    got = run_edited(lambda graph: records.append(fusion.rewrite(graph)), fn, *tensors, dynamic=dynamic)
    sites = [site for record in records for site in record.sites]
    assert sites and all(site.fused for site in sites), "\n".join(map(str, sites))
    for new, old in zip(got, fn(*tensors), strict=True):
        assert (new.shape, new.dtype, new.stride()) == (old.shape, old.dtype, old.stride())
        if new.dtype.itemsize == 1:
            moved = (new.view(torch.uint8) != old.view(torch.uint8)).double().mean().item()
            print(f"{spelling.name}: {moved:.1e} of {new.numel()} codes")
            assert code_steps(new, old).max() <= 1 and moved <= BOUND
        elif new.dtype is torch.float32 and x.dtype is torch.float32:
            # Nothing is rounded before the scale, which therefore shows the last bits of the sum.
            torch.testing.assert_close(new, old, rtol=1e-6, atol=0)
        else:
            moved = (new != old).double().mean().item()
            print(f"{spelling.name}: {moved:.1e} of {new.numel()} values of {new.dtype}")
            assert (
                moved <= 20 * BOUND
            )  # of 128 codes one decides over a scale, and few of a scale's neighbours share it
