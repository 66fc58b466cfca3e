"""The model has its true sizes, as many layers as fit, and a cache that starts each step at the same place."""

import torch

from fusionlab.observe.model.whole_model import Cache, layers_in, make_config, make_model, prompt
from fusionlab.observe.model.workload import DECODE, PREFILL, Work, Workload, forward
from fusionlib.layers import BlockFP8Linear
from tests.lab.observe.model.small_qwen import CONTEXT, small


def test_the_sizes_are_those_of_the_checkpoint():
    """Qwen3-Next-80B-A3B's config.json: 48 layers, 512 experts of which a token has ten."""
    config = make_config()
    assert (config.num_hidden_layers, config.hidden_size, config.num_experts) == (48, 2048, 512)
    assert (config.num_experts_per_tok, config.moe_intermediate_size, config.vocab_size) == (10, 512, 151936)
    assert make_config(8, 64).num_experts == 64 and make_config(8).num_hidden_layers == 8


def test_as_many_whole_turns_of_layers_as_fit():
    """A layer is 3.3 GB in bf16, nearly all of it experts: 3 x 2048 x 512 x 512 x 2 bytes are 3.22e9 of it."""
    config = make_config()
    assert layers_in(0, config) == 4 and layers_in(10**13, config) == 48
    found = layers_in(int(63e9), config)
    assert found == 16 and layers_in(int(63e9), make_config(experts=64)) > found
    turn = layers_in(int(63e9), config) * 3.22e9
    assert 63e9 - 4 * 3.5e9 < turn + 1.3e9 < 63e9


def test_a_model_is_seeded_and_leaves_the_callers_random_state():
    state = torch.get_rng_state()
    again = make_model(make_config(small=True), 4, "cpu", 0)
    assert torch.equal(state, torch.get_rng_state())
    for (name, ours), (other, theirs) in zip(
        small().model.state_dict().items(), again.model.state_dict().items(), strict=True
    ):
        assert name == other and torch.equal(ours, theirs), name
    attention = again.model.model.layers[3].self_attn
    assert isinstance(attention.o_proj, BlockFP8Linear) and again.model.lm_head.weight.dtype is torch.bfloat16
    assert (again.layers_of("linear_attention"), again.layers_of("full_attention"), again.layers_of_all) == (3, 1, 4)
    assert torch.get_default_dtype() is torch.float32


def test_a_step_begins_where_the_last_one_began():
    """Attention writes the same place each time; the linear layers' states go on, and are put back to compare."""
    model = small()
    work = Work(model, Workload(DECODE, 2), CONTEXT, 0)
    run = forward(model)
    with torch.no_grad():
        first = work.first(run)
        states = [state.clone() for state in work.cache._states]
        assert [int(length) for length in work.cache.lengths] == [CONTEXT + 1]
        second = work.step(run)
        assert [int(length) for length in work.cache.lengths] == [CONTEXT + 1]
        assert not all(map(torch.equal, states, work.cache._states)) and not torch.equal(first, second)
        assert torch.equal(work.first(run), first)
    assert first.shape == (2, 1, 256) and len(states) == 2 * 3


def test_the_cache_is_what_the_model_reads():
    """The token's own key is at the context's place, the last of the static cache, and the rest is read."""
    model = small()
    cache = Cache(model, 2, CONTEXT, 0)
    (attention,) = [layer for layer in cache.cache.layers if hasattr(layer, "keys")]
    assert attention.keys.shape == (2, 1, CONTEXT + 1, 128) and int(cache.lengths[0]) == CONTEXT
    ids, positions = prompt(model, 2, 1, 3), torch.tensor([[CONTEXT]])
    with torch.no_grad():
        before = attention.keys.clone()
        out = forward(model)(ids, positions, cache.cache)
        changed = (attention.keys != before).any(-1).any(1)
        assert changed.tolist() == [[False] * CONTEXT + [True]] * 2
        cache.restore()
        attention.values[:, :, 2] += 1.0
        assert not torch.equal(forward(model)(ids, positions, cache.cache), out)


def test_a_prompt_is_read_without_a_cache():
    model = small()
    work = Work(model, Workload(PREFILL, 12), CONTEXT, 0)
    with torch.no_grad():
        hidden = work.hidden(forward(model))
        assert work.cache is None and hidden.shape == (1, 12, 256)
        expected = model.model(work.ids, use_cache=False).logits
        assert torch.equal(work.step(forward(model)), expected[:, -1:])
    assert str(Workload(PREFILL, 12)) == "prefill of 12 tokens" and str(Workload(DECODE, 1)) == "decode of 1 sequence"
