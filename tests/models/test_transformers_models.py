"""Whole models of transformers, quantised and compiled as their users do: what fuses, and that nothing else changes.

The graphs run call by call (`tests.models.small.Compiled`), so that equal means equal to the bit.
"""

import pytest
import torch

from fusionlib import op
from tests.models.small import MODELS, Compiled, quantised

pytest.importorskip("transformers")

#: For one layer of each kind: the fused sites by fusion, and the sites that no fusion starts from.
EXPECTED = {
    "qwen3_next": ({"rms_norm": 8, "gated_norm": 1, "act_and_mul": 2, "sigmoid_gate": 1}, 0),
    "qwen3_5": ({"rms_norm": 9, "gated_norm": 1, "act_and_mul": 2, "sigmoid_gate": 1}, 0),
    "qwen3_5_moe": ({"rms_norm": 9, "gated_norm": 1, "act_and_mul": 2, "sigmoid_gate": 1}, 0),
    "kimi_linear": ({"rms_norm": 12, "gated_norm": 1, "act_and_mul": 2}, 3),
    "mamba2": ({"gated_norm": 2, "rms_norm": 2}, 0),
    "bamba": ({"rms_norm": 6, "gated_norm": 1, "act_and_mul": 2}, 1),
    "falcon_h1": ({"rms_norm": 4, "act_and_mul": 2}, 1),
    "nemotron_h": ({"rms_norm": 3, "gated_norm": 1}, 2),  # its MLP squares a relu
    "granitemoehybrid": ({"rms_norm": 4, "gated_norm": 1, "act_and_mul": 2}, 1),
    "zamba2": ({"rms_norm": 7, "gated_norm": 3, "act_and_mul": 1}, 2),
    "olmo_hybrid": ({"rms_norm": 6, "gated_norm": 1, "act_and_mul": 2}, 4),  # full attention norms behind the MLP
}


def prompts(batch: int = 1, length: int = 12) -> torch.Tensor:
    return torch.randint(3, 128, (batch, length), generator=torch.Generator().manual_seed(length))


def fused_of(graph):
    """How many sites one compiled graph fused; a report counts those of a model that is compiled again once."""
    return sum(site.fused for site in graph.sites)


def fused_by(report):
    return {name: report.fused_by[name] for name in sorted(report.fused_by)}


def mixers_masked(graphs):
    """By which tensors the fused norms of `graphs` multiply."""
    calls = [node for graph in graphs for node in graph.nodes if node.target in op.RMS_NORM.overloads]
    return [str(call.args[3]) for call in calls if call.args[3] is not None]


@pytest.mark.parametrize("name", MODELS)
def test_prefill_fuses_every_eligible_site(name):
    """No site that a fusion starts from is refused; attention outputs without a gate and low-rank products are left."""
    model, quantisation = quantised(name)
    ids = prompts()
    with torch.no_grad(), Compiled() as compiled:
        got = compiled(model.forward)(ids, use_cache=False).logits
        report = compiled.report
        want = model(ids, use_cache=False).logits
    by_fusion, unclaimed = EXPECTED[name]
    assert not report.refused, str(report)
    assert (fused_by(report), len(report.unclaimed)) == (dict(sorted(by_fusion.items())), unclaimed), str(report)
    assert len(list(report)) == len(quantisation.replaced)
    assert torch.equal(got, want)


def generate(model, ids, **options):
    """Three tokens by greedy search: (sequences, logits of each step)."""
    found = model.generate(
        ids,
        max_new_tokens=3,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
        disable_compile=True,  # transformers' own; the forward is compiled already
        **options,
    )
    return found.sequences, torch.stack(found.logits)


@pytest.mark.parametrize(("name", "cache", "per_graph"), [("qwen3_next", "static", 12), ("mamba2", "dynamic", 2)])
def test_generate_fuses_prefill_and_cached_decode(name, cache, per_graph):
    """Every graph has all sites: the prompt's, a step's, and with a growing cache the one of any length.

    With the static cache one prompt is padded: its graph has a mask, and that of a step none.
    """
    model, _ = quantised(name, **{"num_hidden_layers": 1} if name == "mamba2" else {})
    ids = prompts(2, 9)
    options = {}
    if cache == "static":
        mask = torch.ones_like(ids)
        mask[0, :3] = 0
        options = {"cache_implementation": "static", "attention_mask": mask}
    want = generate(model, ids, **options)
    with torch.no_grad(), Compiled() as compiled:
        model.forward = compiled(model.forward)
        got = generate(model, ids, **options)
        report, factors = compiled.report, mixers_masked(compiled.rewritten)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])
    assert [fused_of(graph) for graph in report.compiles] == [per_graph] * compiled.graphs and not report.refused
    assert 2 <= compiled.graphs <= 3 and len(factors) == (cache == "static")


def test_one_graph_of_any_batch_and_length_fuses():
    """`dynamic=True`: sizes are symbols, also those of the padding mask, and every epsilon a number that is guarded."""
    model, _ = quantised("qwen3_next", num_hidden_layers=1, layer_types=["linear_attention"])
    with torch.no_grad(), Compiled() as compiled:
        run = compiled(model.forward, dynamic=True)
        for batch, length in ((2, 12), (3, 21)):
            ids = prompts(batch, length)
            mask = torch.ones_like(ids)
            mask[0, :7] = 0
            got = run(ids, attention_mask=mask, use_cache=False).logits
            assert torch.equal(got, model(ids, attention_mask=mask, use_cache=False).logits)
        report, factors = compiled.report, mixers_masked(compiled.rewritten)
    assert compiled.graphs == len(factors) == 1 and not report.refused and not report.unclaimed, str(report)
    assert fused_by(report) == {"act_and_mul": 1, "gated_norm": 1, "rms_norm": 3}


def test_layers_that_are_compiled_one_by_one_fuse():
    """Regional compilation: each kind of layer is compiled once, for all of its layers."""
    kinds = ["linear_attention", "full_attention"] * 2
    model, _ = quantised("qwen3_next", num_hidden_layers=4, layer_types=kinds)
    ids = prompts()
    want = model(ids, use_cache=False).logits
    with torch.no_grad(), Compiled() as compiled:
        for layer in model.model.layers:
            layer.forward = compiled(layer.forward)
        got = model(ids, use_cache=False).logits
        report = compiled.report
    assert torch.equal(got, want) and not report.refused, str(report)
    assert sum(map(fused_of, report.compiles)) == 12 * compiled.graphs / 2, str(report)


@pytest.mark.parametrize(("name", "masked"), [("kimi_linear", 1), ("mamba2", 2), ("falcon_h1", 1)])
def test_a_padded_batch_fuses_as_many_sites(name, masked):
    """transformers masks the input of linear attention and of Mamba behind its norm; Falcon-H1's attention reads the
    same norm without the mask."""
    model, _ = quantised(name)
    ids = prompts(2)
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    with torch.no_grad(), Compiled() as compiled:
        got = compiled(model.forward)(ids, attention_mask=mask, use_cache=False).logits
        report, factors = compiled.report, mixers_masked(compiled.rewritten)
        want = model(ids, attention_mask=mask, use_cache=False).logits
    by_fusion, unclaimed = EXPECTED[name]
    assert not report.refused, str(report)
    assert (fused_by(report), len(report.unclaimed)) == (dict(sorted(by_fusion.items())), unclaimed), str(report)
    assert len(factors) == masked and len(set(factors)) == 1
    assert torch.equal(got, want)
