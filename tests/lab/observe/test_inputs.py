"""The inputs have a model's shapes and strides, and the same values every time."""

import torch

from fusionlab.observe.inputs import attention_inputs


def test_the_gate_lies_as_qwen3_next_cuts_it():
    inputs = attention_inputs(3)
    assert inputs.x.shape == (3, 32, 128) and inputs.x.is_contiguous()
    assert inputs.gate.shape == (3, 16, 2, 128) and inputs.gate.stride() == (12288, 768, 128, 1)
    assert inputs.weight.shape == (128,) and {t.dtype for t in vars(inputs).values()} == {torch.bfloat16}
    assert attention_inputs(3, 3).gate.shape == (3, 3, 1, 128)
    flat = attention_inputs(3, 16, strided_gate=False)
    assert flat.gate.shape == (3, 16, 128) and flat.gate.is_contiguous()


def test_the_seed_decides_the_values_and_nothing_else_does():
    first, again, other = attention_inputs(2), attention_inputs(2), attention_inputs(2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True))
    assert not torch.equal(first.x, other.x) and not torch.equal(first.gate, other.gate)
    state = torch.get_rng_state()
    attention_inputs(2)
    assert torch.equal(state, torch.get_rng_state())
    assert 0.9 < first.x.float().std() < 1.1 and abs(first.weight.float().mean() - 1) < 0.05
