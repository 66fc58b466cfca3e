"""Small random models of transformers, one or two layers of each kind, whose linear layers are block-FP8."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fusionlib import FusionPass, Report
from fusionlib.explanation import apart_from_caches, boxed, inductor_until, to_the_pass
from fusionlib.models import QuantizeReport, quantize_linears
from fusionlib.testing.roundings import roundings_kept

_TOKENS = {"vocab_size": 128, "hidden_size": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": None}
_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}
_QWEN = {
    **_TOKENS,
    **_HEADS,
    "head_dim": 128,
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 1,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
}
_EXPERTS = {
    "num_experts": 2,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
}
_MAMBA = {
    "mamba_n_heads": 4,
    "mamba_d_head": 64,
    "mamba_d_state": 16,
    "mamba_chunk_size": 16,
}

#: By name: the configuration's class, the model's, and the configuration.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "qwen3_next": ("Qwen3NextConfig", "Qwen3NextForCausalLM", {**_QWEN, **_EXPERTS}),
    "qwen3_5": ("Qwen3_5TextConfig", "Qwen3_5ForCausalLM", {**_QWEN, "intermediate_size": 256}),
    "qwen3_5_moe": ("Qwen3_5MoeTextConfig", "Qwen3_5MoeForCausalLM", {**_QWEN, **_EXPERTS}),
    "kimi_linear": (
        "KimiLinearConfig",
        "KimiLinearForCausalLM",
        {
            **_TOKENS,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "layer_types": ["linear_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse"],
            "intermediate_size": 256,
            "moe_intermediate_size": 128,
            "kv_lora_rank": 128,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "linear_head_dim": 128,
            "linear_num_heads": 2,
        },
    ),
    "mamba2": (
        "Mamba2Config",
        "Mamba2ForCausalLM",
        {**_TOKENS, "num_heads": 4, "head_dim": 64, "state_size": 16, "n_groups": 1, "num_hidden_layers": 2}
        | {"chunk_size": 16},
    ),
    "bamba": (
        "BambaConfig",
        "BambaForCausalLM",
        {**_TOKENS, **_HEADS, **_MAMBA, "intermediate_size": 256, "num_hidden_layers": 2, "attn_layer_indices": [1]},
    ),
    "falcon_h1": (
        "FalconH1Config",
        "FalconH1ForCausalLM",
        {**_TOKENS, **_HEADS, **_MAMBA, "head_dim": 64, "intermediate_size": 256, "num_hidden_layers": 1}
        | {"mamba_d_ssm": 256},
    ),
    "nemotron_h": (
        "NemotronHConfig",
        "NemotronHForCausalLM",
        {**_TOKENS, **_HEADS, "head_dim": 64, "intermediate_size": 256, "mamba_num_heads": 4, "mamba_head_dim": 64}
        | {"ssm_state_size": 16, "n_groups": 2, "chunk_size": 16, "layers_block_type": ["mamba", "attention", "mlp"]},
    ),
    "granitemoehybrid": (
        "GraniteMoeHybridConfig",
        "GraniteMoeHybridForCausalLM",
        {**_TOKENS, **_HEADS, **_MAMBA, "intermediate_size": 128, "shared_intermediate_size": 256}
        | {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]}
        | {"num_local_experts": 2, "num_experts_per_tok": 1},
    ),
    "zamba2": (
        "Zamba2Config",
        "Zamba2ForCausalLM",
        {**_TOKENS, "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 256}
        | {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "mamba"], "n_mamba_heads": 4}
        | {"mamba_d_state": 16, "chunk_size": 16, "num_mem_blocks": 1, "adapter_rank": 8, "use_mem_rope": False}
        | {"hybrid_layer_ids": [1]},
    ),
    "olmo_hybrid": (
        "OlmoHybridConfig",
        "OlmoHybridForCausalLM",
        {**_TOKENS, **_HEADS, "intermediate_size": 256, "num_hidden_layers": 2}
        | {"layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 2}
        | {"linear_num_key_heads": 2, "linear_key_head_dim": 128, "linear_value_head_dim": 128},
    ),
}


def build(name: str, **changes: Any) -> Any:
    """The model in bfloat16 with random weights, the same ones each time."""
    import transformers

    config_class, model_class, sizes = MODELS[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**{**sizes, **changes}))
    return model.to(torch.bfloat16).eval().requires_grad_(False)


def quantised(name: str, **changes: Any) -> tuple[Any, QuantizeReport]:
    """The model with the linear layers that `quantize_linears` takes in block-FP8."""
    model = build(name, **changes)
    return model, quantize_linears(model)


class Compiled:
    """`torch.compile` up to Inductor's code: the graphs run call by call, after the pass.

        with Compiled() as compiled:
            compiled(model.forward)(ids)

    `graphs` counts the graphs that were compiled; `rewritten` are these after the pass.
    """

    def __init__(self) -> None:
        self.fusion = FusionPass("cpu")
        self.graphs = 0
        self.rewritten: list[torch.fx.Graph] = []

    def __call__(self, fn: Callable[..., Any], **options: Any) -> Any:
        """`fn`, compiled so."""
        return torch.compile(fn, backend=inductor_until(self._inner_compile), **options)

    def _inner_compile(self, module: torch.fx.GraphModule, example_inputs: Any, **how: Any) -> Any:
        self.graphs += 1
        to_the_pass(module, example_inputs, self.fusion, is_inference=True)
        self.rewritten.append(module.graph)
        module.recompile()
        return boxed(module)

    @property
    def report(self) -> Report:
        """What the pass did."""
        return self.fusion.report()

    def __enter__(self) -> Compiled:
        self._apart, self._kept = apart_from_caches(), roundings_kept()
        self._apart.__enter__()
        self._kept.__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        self._kept.__exit__(*raised)
        self._apart.__exit__(*raised)
