"""The sizes are Qwen3-Next's, and the bytes follow from them."""

import pytest
import torch

from fusionlab.observe.step.blocks import Block, make_state
from fusionlab.observe.step.decode_sizes import FULL, KINDS, LINEAR, ORDER, QWEN3_NEXT, SMALL
from fusionlab.observe.step.recurrence import torch_step
from fusionlib.layers import BlockFP8Linear


def test_the_sizes_are_those_of_transformers():
    config = pytest.importorskip("transformers").Qwen3NextConfig()
    ours = QWEN3_NEXT
    assert (ours.hidden, ours.layers) == (config.hidden_size, config.num_hidden_layers)
    assert (ours.key_heads, ours.value_heads) == (config.linear_num_key_heads, config.linear_num_value_heads)
    assert (ours.key_dim, ours.value_dim) == (config.linear_key_head_dim, config.linear_value_head_dim)
    assert ours.conv_width == config.linear_conv_kernel_dim
    assert (ours.heads, ours.kv_heads) == (config.num_attention_heads, config.num_key_value_heads)
    assert ours.head_dim == config.head_dim
    assert ours.intermediate == config.num_experts_per_tok * config.moe_intermediate_size
    kinds = [{"linear_attention": LINEAR, "full_attention": FULL}[kind] for kind in config.layer_types]
    assert kinds == [ORDER[layer % 4] for layer in range(48)]
    assert (ours.qkvz, ours.channels, ours.qkv) == (12288, 8192, 9216)


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_those_of_the_tensors(kind):
    block = Block(kind, SMALL, torch_step, "cpu")
    weights = [module.codes for module in block.modules() if isinstance(module, BlockFP8Linear)]
    weights += [block.attention.in_proj_ba] if kind == LINEAR else []
    assert SMALL.weight_bytes(kind) == sum(tensor.nbytes for tensor in weights)
    assert SMALL.state_bytes(kind, 3) == sum(tensor.nbytes for tensor in make_state(kind, SMALL, 3, "cpu"))


def test_a_step_reads_weights_once_and_writes_the_linear_states():
    turn = QWEN3_NEXT.step_bytes(4, 2)
    linear, full = (QWEN3_NEXT.weight_bytes(kind) for kind in KINDS)
    states = 3 * 2 * QWEN3_NEXT.state_bytes(LINEAR, 2) + QWEN3_NEXT.state_bytes(FULL, 2)
    assert turn == 3 * linear + full + states
    assert QWEN3_NEXT.step_bytes(48, 2) == 12 * turn


def test_layers_are_whole_turns_that_fit():
    turn = sum(QWEN3_NEXT.weight_bytes(kind) + QWEN3_NEXT.state_bytes(kind, 64) for kind in ORDER)
    assert QWEN3_NEXT.layers_in(5 * turn + 1, 64) == 20
    assert QWEN3_NEXT.layers_in(0, 64) == 4 and QWEN3_NEXT.layers_in(1 << 60, 64) == 48
    assert torch.cuda.is_available() or SMALL.layers == len(ORDER)
