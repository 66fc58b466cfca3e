"""The semantic matcher on the scoreboard's table: every row fuses, once, and equals eager to the bit."""

import pytest
import torch

from fusionlib import FusionPass
from fusionlib.traced.spellings import OPAQUE_NORM, SPELLINGS
from tests.support import same
from tests.traced.support import run_spelling


@pytest.mark.parametrize("spelling", SPELLINGS, ids=lambda spelling: spelling.name)
def test_every_listed_spelling_fuses_and_equals_eager(spelling):
    fusion, records = FusionPass(devices=("cpu",)), []
    torch.manual_seed(11)
    got, want = run_spelling(lambda graph: records.append(fusion.rewrite(graph)), spelling)
    sites = [site for record in records for site in record.sites]
    assert sites and all(site.fused for site in sites), "\n".join(map(str, sites))
    assert len(got) == len(want) and all(map(same, got, want))


def test_a_norm_that_is_opaque_is_refused_with_a_reason():
    """Nothing can be read off an op whose arithmetic is not in the graph; the traced way knows this one by name."""
    fusion, records = FusionPass(devices=("cpu",)), []
    run_spelling(lambda graph: records.append(fusion.rewrite(graph)), OPAQUE_NORM)
    (site,) = (site for record in records for site in record.sites)
    assert not site.fused and site.code == "not_gated_norm"
