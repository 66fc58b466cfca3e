"""Distances between logits are those that PyTorch's own functions give, over all chunks."""

import pytest
import torch
from torch.nn import functional

from fusionlab.observe.model import accuracy
from fusionlab.observe.model.accuracy import Spread, distance

TOKENS, WORDS = 40, 30


@pytest.fixture(autouse=True)
def several_chunks(monkeypatch):
    monkeypatch.setattr(accuracy, "_CHUNK", 16)


def test_they_are_torchs():
    weight = torch.randn(WORDS, 8)
    one, other = torch.randn(TOKENS, 8), torch.randn(TOKENS, 8)
    found = distance(lambda hidden: hidden @ weight.t(), one, other)
    ours, theirs = one @ weight.t(), other @ weight.t()
    kl = functional.kl_div(theirs.log_softmax(-1), ours.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    assert found.kl.mean == pytest.approx(kl.mean().item(), rel=1e-5)  # float32 sums in another order
    assert found.kl.most == pytest.approx(kl.max().item(), rel=1e-5)
    assert found.kl.p50 == pytest.approx(kl.double().quantile(0.5).item(), rel=1e-5)
    assert found.top1 == pytest.approx((ours.argmax(-1) == theirs.argmax(-1)).float().mean().item())
    apart = (ours - theirs).square().mean(-1).sqrt()
    assert found.difference.p90 == pytest.approx(apart.double().quantile(0.9).item(), rel=1e-5)
    assert found.logits == pytest.approx(ours.var(-1).mean().sqrt().item(), rel=1e-5) and found.tokens == TOKENS


def test_a_run_is_not_apart_from_itself():
    hidden = torch.randn(TOKENS, WORDS)
    found = distance(lambda hidden: hidden, hidden, hidden.clone())
    assert found.kl == Spread(0, 0, 0, 0, 0, 0) == found.difference and found.top1 == 1.0 and found.logits > 0


def test_one_token_of_many_is_seen_in_the_largest_and_not_in_the_median():
    one = torch.randn(TOKENS, WORDS)
    other = one.clone()
    other[17] = -other[17]
    found = distance(lambda hidden: hidden, one, other)
    assert found.kl.p50 == 0 < found.kl.most and found.top1 == 1 - 1 / TOKENS
    assert found.difference.p90 == 0 < found.difference.most
