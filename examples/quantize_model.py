"""A model of transformers in block-FP8, compiled with the pass: what a user writes, on a small random Qwen3-Next.

    python examples/quantize_model.py

It needs transformers and no GPU. With a checkpoint, `from_pretrained` stands in the place of `small_model`, and with a
GPU `FusionPass()` alone.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextForCausalLM

import fusionlib
from fusionlib.models import QuantizeReport, quantize_linears


def small_model() -> Qwen3NextForCausalLM:
    """One layer of linear and one of full attention, in bfloat16, with random weights."""
    config = Qwen3NextConfig(
        vocab_size=128,
        hidden_size=128,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=128,
        linear_num_value_heads=2,
        linear_num_key_heads=1,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=128,
        shared_expert_intermediate_size=128,
    )
    torch.manual_seed(0)
    return Qwen3NextForCausalLM(config).to(torch.bfloat16).eval()


def run(**options: Any) -> tuple[QuantizeReport, fusionlib.FusionPass, torch.Tensor]:
    """Quantise, compile and run the model: what was replaced, the pass, and the logits [1, tokens, vocabulary].

    Args:
        **options: further ones for `torch.compile`.
    """
    model = small_model()
    quantised = quantize_linears(model)
    fusion = fusionlib.FusionPass(devices=("cpu", "cuda"), strict=True)
    compiled = torch.compile(model, **options, options={"post_grad_custom_pre_pass": fusion})
    with torch.inference_mode():
        logits = compiled(torch.arange(3, 15)[None], use_cache=False).logits
    fusion.check()
    return quantised, fusion, logits


def main() -> None:
    """Print both reports."""
    quantised, fusion, logits = run()
    print(quantised)
    print(fusion.report())
    print(f"logits {list(logits.shape)}, all finite: {bool(logits.isfinite().all())}")


if __name__ == "__main__":
    main()
