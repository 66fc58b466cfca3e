"""Nothing is put in that is laid out otherwise than what it replaces: codes, scale, value and copies of the scale."""

import pytest
import torch
import torch.nn.functional as F

from fusionlib.rewrite import FusionPass, replace
from tests.rewrite.test_rollback import PATHS, graph_of, state
from tests.spellings import inputs, run_rewritten

#: How often a path replaces a value.
REPLACED = dict.fromkeys(PATHS, 2) | {"value returned": 3, "quantised twice": 5, "quantised alike": 4}


def other_strides(val: torch.Tensor) -> torch.Tensor:
    return val.new_empty_strided(val.shape, [2 * stride for stride in val.stride()])


def other_shape(val: torch.Tensor) -> torch.Tensor:
    return val.new_empty_strided((*val.shape[:-1], 2 * val.shape[-1]), val.stride())


def other_dtype(val: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(val.shape, val.stride(), dtype=torch.float64)


@pytest.mark.parametrize("change", [other_strides, other_shape, other_dtype])
@pytest.mark.parametrize(("name", "which"), [(name, i) for name, count in REPLACED.items() for i in range(count)])
def test_a_new_value_that_lies_otherwise_is_refused(name, which, change, monkeypatch):
    original = replace._new_values

    def spoilt(editor, *args):
        pairs = original(editor, *args)
        node = pairs[which][1]
        with node.meta["val"].fake_mode:
            node.meta["val"] = change(node.meta["val"])
        return pairs

    monkeypatch.setattr(replace, "_new_values", spoilt)
    graph = graph_of(PATHS[name])
    before = state(graph)
    sites = FusionPass(("cpu",)).rewrite(graph).sites
    assert {site.code for site in sites} == {"replacement_differs"}
    assert sites[0].expected != sites[0].found
    assert state(graph) == before


@pytest.mark.parametrize("name", REPLACED)
def test_everything_that_is_replaced_is_compared(name, monkeypatch):
    """Spies on what users change over to: the table above leaves none out."""
    changed = []
    original = replace.Journal.replace
    monkeypatch.setattr(replace.Journal, "replace", lambda *args: changed.append(args[1:]) or original(*args))
    sites = FusionPass(("cpu",)).rewrite(graph_of(PATHS[name])).sites
    assert all(site.fused for site in sites) and len(changed) == REPLACED[name]
    for old, new in changed:
        was, now = old.meta["val"], new.meta["val"]
        assert (was.dtype, was.shape, was.stride()) == (now.dtype, now.shape, now.stride())


def by_head(x, z, w):
    """A value that lies head by head, and is quantised as it lies."""
    v = x.float()
    y = v * torch.rsqrt(v.pow(2).mean(-1, keepdim=True) + 1e-6) * w.float() * F.silu(z.float())
    groups = y.to(x.dtype).float()
    scale = groups.abs().amax(-1, keepdim=True) / 448.0
    return (groups / scale).clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale


def test_codes_that_lie_otherwise_are_refused_and_kept():
    x, z, w = inputs()
    x, z = (t.transpose(0, 1).contiguous().transpose(0, 1) for t in (x, z))
    got, report, _ = run_rewritten(by_head, x, z, w)
    assert [site.code for site in report] == ["replacement_differs"], str(report)
    for new, old in zip(got, by_head(x, z, w), strict=True):
        assert new.stride() == old.stride() and torch.equal(new.float(), old.float())


def test_strides_that_mean_nothing_may_differ():
    """One head: its stride is whatever the tensor it was cut from had."""
    x, z, w = inputs(heads=1)
    x, z = (torch.cat([t, t], 1)[:, :1] for t in (x, z))
    got, report, _ = run_rewritten(by_head, x, z, w)
    assert len(report.fused) == 1, str(report)
    for new, old in zip(got, by_head(x, z, w), strict=True):
        assert new.shape == old.shape and torch.equal(new.float(), old.float())
