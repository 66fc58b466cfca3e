"""Installed kernels take transformers' place as ops, get what they take, and go again."""

import sys
import types

import torch

from fusionlab.observe.model import recurrence_ops
from fusionlab.observe.model.recurrence_ops import FLA, TORCH, recurrences
from fusionlab.observe.model.whole_model import modelling
from tests.lab.observe.model.small_qwen import small

assert small  # its import skips where transformers is missing


def inputs(tokens):
    query, key = (torch.randn(2, tokens, 1, 128).bfloat16().transpose(1, 2).transpose(1, 2) for _ in range(2))
    value = torch.randn(2, tokens, 4, 128).bfloat16()[:, :, ::2]
    return query, key, value, {"g": -torch.rand(2, tokens, 2), "beta": torch.rand(2, tokens, 2).bfloat16()}


def kernel(theirs):
    """A stand-in with the kernels' own signature (flash-linear-attention 0.6): contiguous operands, keywords."""

    def run(q, k, v, *, g, beta, initial_state, output_final_state, use_qk_l2norm_in_kernel):
        assert output_final_state and use_qk_l2norm_in_kernel
        assert all(tensor.is_contiguous() for tensor in (q, k, v, g, beta))
        return theirs(
            q, k, v, g=g, beta=beta, initial_state=initial_state, output_final_state=True,
            use_qk_l2norm_in_kernel=True,
        )  # fmt: skip

    return run


def test_kernels_are_ops_of_the_modelling_module(monkeypatch):
    module, fla = modelling(), types.ModuleType("fla.ops.gated_delta_rule")
    recurrent, chunk = module.torch_recurrent_gated_delta_rule, module.torch_chunk_gated_delta_rule
    fla.fused_recurrent_gated_delta_rule, fla.chunk_gated_delta_rule = kernel(recurrent), kernel(chunk)
    ops = types.ModuleType("fla.ops")
    ops.gated_delta_rule = fla
    monkeypatch.setitem(sys.modules, "fla.ops", ops)
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", fla)
    monkeypatch.setattr(recurrence_ops, "has_kernels", lambda device: True)
    recurrence_ops._op.cache_clear()
    state = torch.randn(2, 2, 128, 128)
    with recurrences(module, "cuda") as words:
        assert words == FLA and module.torch_chunk_gated_delta_rule is not chunk
        for name, theirs, tokens, initial in (
            ("torch_recurrent_gated_delta_rule", recurrent, 1, state),
            ("torch_chunk_gated_delta_rule", chunk, 70, None),
        ):
            query, key, value, keywords = inputs(tokens)
            ours = getattr(module, name)
            found, final = ours(
                query, key, value, **keywords, initial_state=initial, output_final_state=True, cu_seqlens=None
            )
            expected, last = theirs(
                query, key, value, **keywords, initial_state=initial, output_final_state=True,
                use_qk_l2norm_in_kernel=True,
            )  # fmt: skip
            assert torch.equal(found, expected) and torch.equal(final, last)
            assert ours(query, key, value, **keywords, initial_state=initial, output_final_state=False)[1] is None
            op = recurrence_ops._op({"r": "fused_recurrent_gated_delta_rule"}.get(name[6], "chunk_gated_delta_rule"))
            arguments = (query, key, value, keywords["g"], keywords["beta"], initial)
            torch.library.opcheck(op, arguments, test_utils=("test_schema", "test_faketensor"))
    assert module.torch_recurrent_gated_delta_rule is recurrent and module.torch_chunk_gated_delta_rule is chunk
    recurrence_ops._op.cache_clear()


def test_without_kernels_nothing_is_replaced():
    module = modelling()
    before = module.torch_recurrent_gated_delta_rule
    with recurrences(module, "cpu") as words:
        assert words == TORCH and module.torch_recurrent_gated_delta_rule is before
