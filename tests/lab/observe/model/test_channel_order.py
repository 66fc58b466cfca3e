"""The reordered model is the same function, its hidden state is reordered, and it is put back to the bit."""

import pytest
import torch

from fusionlab.observe.model.channel_order import other_order
from fusionlab.observe.model.whole_model import make_config, make_model, prompt
from fusionlab.observe.model.workload import forward
from fusionlib.layers import BlockFP8Linear
from tests.lab.observe.model.small_qwen import small


@pytest.fixture(scope="module")
def distinct():
    """A model with no two channels' weights or blocks' scales equal, so that one in a wrong place is seen."""
    model = make_model(make_config(small=True), 4, "cpu", 1)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.model.state_dict().items():
            if "norm" in name:
                tensor.copy_(0.3 * torch.randn(tensor.shape, generator=generator))
        for module in model.model.modules():
            if isinstance(module, BlockFP8Linear):
                scale = module.weight_scale_inv
                scale.mul_(1.0 + 0.3 * torch.rand(scale.shape, generator=generator))
    return model


def test_it_computes_the_same_with_its_channels_elsewhere(distinct):
    ids, positions = prompt(distinct, 1, 12, 5), torch.arange(12)[None]
    weights = {name: tensor.clone() for name, tensor in distinct.model.state_dict().items()}
    with torch.no_grad():
        expected = forward(distinct)(ids, positions, None)
        with other_order(distinct.model, [1, 0]) as back:
            found = forward(distinct)(ids, positions, None)
            stay = {name for name, tensor in distinct.model.state_dict().items() if same(tensor, weights[name])}
    # Sums in another order move a few codes by a step; a channel in a wrong place is as far as another state.
    apart = [(each.float() - expected.float()).norm() / expected.float().norm() for each in (found[..., back], found)]
    assert apart[0] < 0.05 and apart[1] > 0.5
    assert all(same(tensor, weights[name]) for name, tensor in distinct.model.state_dict().items())
    # What belongs to heads or to the vocabulary alone has no channel of the hidden state.
    own = ("q_norm.weight", "k_norm.weight", "linear_attn.norm.weight", "conv1d.weight", "A_log", "dt_bias")
    assert stay == {name for name in weights if name.endswith(own) or name == "lm_head.weight"}


def same(one, other):
    """Equal to the bit; FP8 has no comparison."""
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


@pytest.mark.parametrize("order", [[0], [0, 0], [1, 2], [0, 1, 2]])
def test_what_is_no_order(order):
    with pytest.raises(ValueError, match="each of the 2 blocks"), other_order(small().model, order):
        pass


def test_it_is_put_back_after_an_error():
    model = small().model
    before = model.model.embed_tokens.weight.clone()
    with pytest.raises(ZeroDivisionError), other_order(model, [1, 0]):
        assert not torch.equal(model.model.embed_tokens.weight, before)
        raise ZeroDivisionError
    assert torch.equal(model.model.embed_tokens.weight, before)
