"""The blocks compute what transformers' modules compute, piece by piece."""

import sys
import types

import pytest
import torch
from torch.nn import functional

from fusionlab.observe.step import recurrence, sites
from fusionlab.observe.step.blocks import make_state
from fusionlab.observe.step.decode_sizes import FULL, LINEAR, SMALL
from fusionlab.observe.step.decoder import natively_quantised
from tests.lab.observe.step.small_model import decoder, weights

modeling = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")


def block_of(kind):
    return next(block for block in weights().opaque if block.kind == kind)


def normal(*shape):
    return torch.randn(*shape).bfloat16()


def test_the_norms_are_transformers():
    ours, theirs = sites.Norm(256, "cpu"), modeling.Qwen3NextRMSNorm(256)
    theirs.weight.data = ours.weight.data
    x = normal(3, 256)
    assert torch.equal(ours(x), theirs(x))
    ours, theirs = sites.GatedNormOfHeads(128, "cpu"), modeling.Qwen3NextRMSNormGated(128)
    theirs.weight.data = ours.weight.data
    x, gate = normal(6, 128), normal(6, 128)
    assert torch.equal(ours(x, gate), theirs(x, gate))


def recurrent_inputs():
    query, key, value = normal(3, 2, 128), normal(3, 2, 128), normal(3, 4, 128)
    return query, key, value, -torch.rand(3, 4), torch.rand(3, 4).bfloat16(), torch.randn(3, 4, 128, 128)


def written_out(query, key, value, decay, beta, state):
    """The rule as transformers' torch_recurrent_gated_delta_rule has it, for one token."""
    query, key = (heads.float().repeat_interleave(2, 1) for heads in (query, key))
    query, key = (modeling.l2norm(heads, dim=-1, eps=1e-6) for heads in (query, key))
    state = state * decay.exp()[..., None, None]
    change = (value.float() - (state * key[..., None]).sum(-2)) * beta.float()[..., None]
    state = state + key[..., None] * change[..., None, :]
    return (state * (query * 128**-0.5)[..., None]).sum(-2).to(value.dtype), state


def test_the_recurrence_is_transformers():
    *inputs, state = recurrent_inputs()
    expected, new = written_out(*inputs, state.clone())
    got = recurrence.torch_step(*inputs, state)
    assert torch.allclose(got.float(), expected.float(), atol=2e-3, rtol=1e-2)
    assert torch.allclose(state, new, atol=1e-5)


def test_an_installed_kernel_is_used_and_gets_what_it_takes(monkeypatch):
    def kernel(q, k, v, *, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel):
        assert (
            output_final_state and use_qk_l2norm_in_kernel and q.shape == (3, 1, 2, 128) and v.shape == (3, 1, 4, 128)
        )
        out, new = written_out(*(tensor.squeeze(1) for tensor in (q, k, v, g, beta)), initial_state)
        return out.unsqueeze(1), new

    module = types.ModuleType("fla.ops.gated_delta_rule")
    module.fused_recurrent_gated_delta_rule = kernel
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", module)
    recurrence.fla_step.cache_clear()
    step = recurrence.fla_step()
    *inputs, state = recurrent_inputs()
    before = state.clone()
    expected, _ = written_out(*inputs, before)
    assert torch.equal(step(*inputs, state), expected) and torch.equal(state, before)

    def function(*tensors):
        return step(*tensors) + 1

    compiled = torch.compile(function, backend="eager", fullgraph=True)
    assert torch.equal(compiled(*inputs, state), expected + 1)
    recurrence.fla_step.cache_clear()


def test_without_the_package_it_is_pytorch():
    assert recurrence.recurrence_here("cpu") == (recurrence.TORCH, recurrence.torch_step)


def test_the_convolution_is_transformers_and_its_state_moves_on():
    attention, (state, _) = block_of(LINEAR).attention, make_state(LINEAR, SMALL, 3, "cpu")
    mixed, before = normal(3, SMALL.channels), state.clone()
    window = torch.cat([before, mixed[..., None]], dim=-1)
    taps = attention.conv.float()[:, None]
    expected = functional.silu(functional.conv1d(window.float(), taps, groups=SMALL.channels)[..., -1])
    assert torch.allclose(attention.convolved(mixed, state).float(), expected, atol=1e-2, rtol=1e-2)
    assert torch.equal(state, window[..., 1:])


def test_z_is_the_gate_of_the_same_head():
    """Two value heads for each key head: the gate of head h is slice h % 2 of key head h // 2."""
    norm = block_of(LINEAR).attention.norm
    core, z = normal(3, 4, 128), normal(3, 2, 2 * 128 + 2 * 256)[..., -256:]
    rows = sites.norm_and_gate(norm, core, z).view(3, 4, 128)
    for head in range(4):
        gate = z[:, head // 2, (head % 2) * 128 : (head % 2 + 1) * 128]
        assert torch.equal(rows[:, head], norm(core[:, head], gate))


def test_attention_reads_the_cache_with_the_new_key_and_repeats_no_head(monkeypatch):
    block, (keys, values) = block_of(FULL), make_state(FULL, SMALL, 3, "cpu")
    attention, x, seen = block.attention, normal(3, SMALL.hidden), {}
    gate_heads = sites.gate_heads
    monkeypatch.setattr(sites, "gate_heads", lambda *a: (seen.update(zip("og", a, strict=True)), gate_heads(*a))[1])
    old = keys.clone()
    attention(x, keys, values)
    query, key, value = attention.qkv_proj(x).split([512, 128, 128], dim=-1)
    query, gate = query.view(3, 2, 256).chunk(2, dim=-1)
    cos, sin = (part.expand(3, 1, -1) for part in (attention.cos, attention.sin))
    rotate = modeling.apply_rotary_pos_emb
    query, key = attention.q_norm(query), attention.k_norm(key.view(3, 1, 128))
    query, key = rotate(query[:, :, None], key[:, :, None], cos, sin)
    assert torch.equal(keys[:, :, -1], key[:, :, 0]) and torch.equal(values[:, 0, -1], value)
    assert torch.equal(keys[:, :, :-1], old[:, :, :-1])
    scores = torch.einsum("tqd,tkd->tqk", query[:, :, 0].float(), keys[:, 0].float()) * 128**-0.5
    expected = torch.einsum("tqk,tkd->tqd", scores.softmax(-1), values[:, 0].float())
    assert torch.allclose(seen["o"].float(), expected, atol=2e-2, rtol=2e-2)
    assert torch.equal(seen["g"], gate) and not gate.is_contiguous()


def test_native_blocks_have_the_same_weights_in_the_same_memory():
    block = block_of(LINEAR)
    native = natively_quantised(block)
    assert native.mlp.down.native_quant and not block.mlp.down.native_quant
    for ours, theirs in zip(native.buffers(), block.buffers(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr()
    x = normal(3, 256)
    assert torch.equal(native.mlp(x), block.mlp(x))


def test_a_step_is_the_blocks_one_after_the_other():
    model = decoder()
    again = decoder()
    run = dict.fromkeys((LINEAR, FULL), lambda block, *tensors: block(*tensors))
    delta, residual = again.hidden, torch.zeros_like(again.hidden)
    for block, state in zip(weights().opaque, again.states, strict=True):
        delta, residual = block(delta, residual, *state)
    assert torch.equal(model.step(run), residual + delta)
    assert [block.kind for block in weights().opaque] == [LINEAR, LINEAR, LINEAR, FULL]
    for ours, theirs in zip(model.states, again.states, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
