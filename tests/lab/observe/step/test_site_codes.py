"""Each site by itself: inputs that lie as in the block, codes that are eager's where it is fused."""

import pytest
import torch

from fusionlab.observe.bench.correctness import Agreement
from fusionlab.observe.step import site_codes, sites
from fusionlab.observe.step.decode_sizes import KINDS
from fusionlab.observe.step.site_codes import QUANTISED, SiteCodes
from fusionlab.observe.step.step_variants import SITES
from tests.lab.observe.step.small_model import decoder, weights

WRITTEN = {
    "rms_norm": "add_and_norm",
    "gated_norm": "norm_and_gate",
    "act_and_mul": "silu_and_mul",
    "sigmoid_gate": "gate_heads",
}


def test_there_is_one_for_every_fusion():
    assert {site.fusion for site in QUANTISED} == {name for found in SITES.values() for name in found} == set(WRITTEN)


@pytest.mark.parametrize("site", QUANTISED, ids=lambda site: site.fusion)
def test_inputs_lie_as_in_the_block(site, monkeypatch):
    seen, written = [], getattr(sites, WRITTEN[site.fusion])

    def watched(*arguments):
        seen.append([(t.shape, t.stride()) for t in arguments if isinstance(t, torch.Tensor)])
        return written(*arguments)

    monkeypatch.setattr(sites, WRITTEN[site.fusion], watched)
    model = decoder()
    index = model.first(site.kind)
    block = weights().opaque[index]
    with torch.no_grad():
        block(model.hidden, model.hidden, *(tensor.clone() for tensor in model.states[index]))
    inputs = site.inputs(block, 3)
    assert [(t.shape, t.stride()) for t in inputs] == seen[0]
    codes, scale, *_ = site_codes.quantised(site, block)(*inputs)
    assert codes.shape == (3, site.linear(block).codes.shape[1])
    assert scale.stride() == (1, 4)  # a product by fours reads rows behind the last token


def test_a_fused_sites_codes_are_eagers_and_the_compilers_are_near(monkeypatch):
    """Compiled here: SiluAndMul, whose activation is rounded before the product."""
    (silu,) = (site for site in QUANTISED if site.fusion == "act_and_mul")
    monkeypatch.setattr(site_codes, "QUANTISED", (silu,))
    with torch.no_grad():
        exact, opaque, between = site_codes.site_codes(weights(), 64, 0)
    assert (exact.variant, exact.against, exact.fused) == ("fused", "eager", True)
    assert (exact.agreement.codes_differ, exact.agreement.scales_differ) == (0.0, 0.0)
    assert (opaque.variant, opaque.against, opaque.fused) == ("opaque", "eager", False)
    assert 1e-4 < opaque.agreement.codes_differ < 0.1 and opaque.agreement.steps == 1
    assert (between.variant, between.against, between.fused) == ("fused", "opaque", True)
    assert not any(found.problem() for found in (exact, opaque, between))


def test_only_what_is_fused_must_be_eagers():
    near = Agreement(1e-3, 1, 0.0, 0.0, 1 << 20)
    assert "of the codes differ" in SiteCodes("s", "fused", "eager", True, near).problem()
    two_steps, scale = Agreement(1e-6, 2, 0.0, 0.0, 1 << 20), Agreement(0.0, 0, 0.0, 0.0096, 1 << 20)
    assert "2 FP8 steps" in SiteCodes("s", "fused", "eager", True, two_steps).problem()
    assert "a scale is 0.0096" in SiteCodes("s", "fused", "eager", True, scale).problem()
    assert "was not fused" in SiteCodes("s", "fused", "eager", False, Agreement(0.0, 0, 0.0, 0.0, 1 << 20)).problem()
    for far in (near, two_steps, scale):  # roundings that the compiler dropped: on an H100 a scale was off by 0.011
        assert SiteCodes("s", "fused", "opaque", True, far).problem() is None
        assert SiteCodes("s", "opaque", "eager", False, far).problem() is None
    assert SiteCodes("s", "fused", "eager", True, near).as_json() == {
        "site": "s", "variant": "fused", "against": "eager", "fused": True, "codes_differ": 1e-3, "steps": 1,
        "scales_differ": 0.0, "scale_error": 0.0, "compared": 1 << 20,
    }  # fmt: skip
    assert len(KINDS) == 2
