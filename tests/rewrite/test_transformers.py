"""Every *RMSNormGated of the installed transformers, with every quantisation spelling: fused, and equal to eager."""

import functools
import importlib
import inspect
import re
from pathlib import Path

import pytest
import torch
from torch._inductor.utils import fresh_cache

from fusionlib import FusionPass
from fusionlib.layers import BlockFP8Linear
from fusionlib.testing.run_edited import run_edited
from tests.spellings import QuantSpelling, agree, run_rewritten

transformers = pytest.importorskip("transformers")

QUANTS = {
    "ours": QuantSpelling(),
    "reciprocal": QuantSpelling(reciprocal=True),
    "aiter's floor": QuantSpelling(floor=1 / (448 * 512), floor_on="scale"),
    "torchao": QuantSpelling(floor=None, in_activation_dtype=True, repeat="repeat_interleave"),
}


@functools.cache
def gated_norms() -> dict[str, str]:
    """Class name -> module, found by scanning the sources: importing all models would take minutes."""
    models = Path(transformers.__file__).parent / "models"
    found = {}
    for path in sorted(models.glob("*/modeling_*.py")):
        for name in re.findall(r"^class (\w*RMSNormGated)\(", path.read_text(encoding="utf-8"), re.MULTILINE):
            found[name] = f"transformers.models.{path.parent.name}.{path.stem}"
    return found


def build(name: str) -> tuple[torch.nn.Module, tuple[int, ...]]:
    """The norm and the shape it takes: heads of 128, or rows of 512 in groups of 256."""
    cls = getattr(importlib.import_module(gated_norms()[name]), name)
    options = inspect.signature(cls.__init__).parameters
    if "group_size" in options:
        return cls(512, group_size=256), (2, 5, 512)
    if "n_groups" in options:
        return cls(512, n_groups=2, norm_before_gate=False), (2, 5, 512)
    return cls(128), (10, 4, 128)


def check(norm, shape, quant, dtype=torch.bfloat16):
    with torch.no_grad():
        norm.weight.copy_(torch.rand_like(norm.weight) + 0.5)
    x, gate = (torch.randn(shape).to(torch.bfloat16) for _ in range(2))

    def fn(x, gate):
        return quant(norm(x, gate).reshape(10, 512))

    got, report, _ = run_rewritten(fn, x, gate)
    assert len(report.fused) == 1 and not report.refused, str(report)
    with torch.no_grad():
        agree(got, fn(x, gate), quant.group)


def test_the_scan_finds_the_known_ones():
    assert {"Qwen3NextRMSNormGated", "MambaRMSNormGated", "KimiLinearRMSNormGated"} <= set(gated_norms())


@pytest.mark.parametrize("quant", QUANTS)
@pytest.mark.parametrize("name", gated_norms())
def test_class_fuses(name, quant):
    norm, shape = build(name)
    check(norm.to(torch.bfloat16), shape, QUANTS[quant])


@pytest.mark.parametrize("name", gated_norms())
def test_class_with_a_float32_weight_fuses(name):
    norm, shape = build(name)
    check(norm, shape, QUANTS["ours"])


@pytest.mark.parametrize("norm_before_gate", [True, False])
def test_falcon_h1_in_both_orders(norm_before_gate):
    cls = importlib.import_module(gated_norms()["FalconH1RMSNormGated"]).FalconH1RMSNormGated
    check(cls(512, n_groups=4, norm_before_gate=norm_before_gate).bfloat16(), (2, 5, 512), QUANTS["ours"])


def small_qwen3_next(layers: int, **sizes):
    """(model with FP8 output projections, its linear-attention layers): bf16, randomly initialised."""
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextForCausalLM

    config = Qwen3NextConfig(
        vocab_size=128,
        hidden_size=128,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=64,
        shared_expert_intermediate_size=64,
        **sizes,
    )
    model = Qwen3NextForCausalLM(config).to(torch.bfloat16).eval()
    mixers = [layer.linear_attn for layer in model.model.layers if hasattr(layer, "linear_attn")]
    for mixer in mixers:
        mixer.out_proj = BlockFP8Linear.from_linear(mixer.out_proj)
    return model, mixers


def test_small_qwen3_next_fuses_in_every_linear_attention_layer():
    model, mixers = small_qwen3_next(4, linear_num_value_heads=4, linear_num_key_heads=2)

    def logits(ids):
        return model(ids, use_cache=False).logits

    ids = torch.randint(0, 128, (1, 12))
    got, report, _ = run_rewritten(logits, ids)
    assert len(report.fused) == len(mixers) == 3 and not report.refused, str(report)
    with torch.no_grad():
        assert torch.equal(got, logits(ids))


@pytest.mark.skipif(
    torch.__version__ < "2.13", reason="Inductor's code of the model without the pass differs from eager there, too"
)
def test_small_qwen3_next_compiled_by_inductor_equals_the_unfused_model():
    """Equal to two unfused models, to the bit: to eager, and to the same model compiled without the pass.

    Inductor's own code keeps values in float32 where eager rounds them to bfloat16, in every norm and residual of the
    model; `emulate_precision_casts` makes it round as eager does, so that what is compared here is the fusion.
    """
    sizes = {"linear_num_value_heads": 2, "linear_num_key_heads": 1, "layer_types": ["linear_attention"]}
    model, mixers = small_qwen3_next(1, **sizes)

    def logits(ids):
        return model(ids, use_cache=False).logits

    fusion, ids, got = FusionPass(("cpu",), expect=1, strict=True), torch.randint(0, 128, (1, 12)), {}
    with fresh_cache(), torch.no_grad():
        for name, passes in (("unfused", {}), ("fused", {"post_grad_custom_pre_pass": fusion})):
            torch._dynamo.reset()
            got[name] = torch.compile(logits, options={"emulate_precision_casts": True, **passes})(ids)
    assert len(fusion.report().fused) == len(mixers) == 1, str(fusion.report())
    assert not any(record.cached for record in fusion.report().compiles)
    with torch.no_grad():
        assert torch.equal(got["fused"], logits(ids)) and torch.equal(got["fused"], got["unfused"])


RMS_NORMS = {
    "llama.LlamaRMSNorm": "sum,norm,output",
    "qwen3.Qwen3RMSNorm": "sum,norm,output",
    "deepseek_v3.DeepseekV3RMSNorm": "sum,norm,output",
    "qwen3_next.Qwen3NextRMSNorm": "sum,output",
    "gemma3.Gemma3RMSNorm": "sum,output",
}


@pytest.mark.parametrize("shape", [(10, 512), (2, 5, 512), (1, 1, 512)])
@pytest.mark.parametrize("name", RMS_NORMS)
def test_a_residual_and_an_rms_norm_fuse(name, shape):
    model, cls = name.split(".")
    norm = getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), cls)(512).bfloat16()
    torch.nn.init.normal_(norm.weight, 0.5, 0.2)
    x, residual = torch.randn(2, *shape).bfloat16()

    def fn(x, residual):
        residual = residual + x
        return *QUANTS["ours"](norm(residual).reshape(-1, 512)), residual

    got, report, _ = run_rewritten(fn, x, residual)
    assert len(report.fused) == 1 and not report.refused, str(report)
    assert f"rounds at {RMS_NORMS[name]}" in report.fused[0].what and report.fused[0].fusion == "rms_norm"
    with torch.no_grad():
        want = fn(x, residual)
        agree(got, want, 128)
        assert torch.equal(got[2], want[2])


@pytest.mark.parametrize(
    ("name", "act"),
    [("llama.LlamaMLP", "silu"), ("qwen3_next.Qwen3NextMLP", "silu"), ("gemma3.Gemma3MLP", "gelu_tanh")],
)
def test_an_mlp_fuses_before_its_last_projection(name, act):
    model, cls = name.split(".")
    configs = {"llama": "LlamaConfig", "qwen3_next": "Qwen3NextConfig", "gemma3": "Gemma3TextConfig"}
    config = getattr(transformers, configs[model])(hidden_size=128, intermediate_size=512)
    mlp = getattr(importlib.import_module(f"transformers.models.{model}.modeling_{model}"), cls)(config).bfloat16()
    mlp.down_proj = BlockFP8Linear.from_linear(mlp.down_proj)
    x = torch.randn(2, 5, 128).bfloat16()
    got, report, _ = run_rewritten(mlp, x)
    assert [site.fusion for site in report.fused] == ["act_and_mul"] and not report.refused, str(report)
    assert f"x * {act}(gate)" in report.fused[0].what
    with torch.no_grad():
        assert torch.equal(got, mlp(x))


def test_the_gated_output_of_attention_fuses():
    """Qwen3-Next's full attention: the gate is a chunk of every head of the query's projection."""
    from transformers import Qwen3NextConfig
    from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextAttention

    config = Qwen3NextConfig(hidden_size=128, num_attention_heads=2, num_key_value_heads=1, head_dim=128)
    config._attn_implementation = "eager"
    attention = Qwen3NextAttention(config, 0).bfloat16().eval()
    attention.o_proj = BlockFP8Linear.from_linear(attention.o_proj)
    x, rotary = torch.randn(1, 5, 128).bfloat16(), config.head_dim // 4
    angles = torch.randn(1, 5, rotary)

    def fn(x):
        return attention(x, (angles.cos().bfloat16(), angles.sin().bfloat16()), None)[0]

    got, report, _ = run_rewritten(fn, x)
    assert [site.fusion for site in report.fused] == ["sigmoid_gate"] and not report.refused, str(report)
    # Inductor itself puts another attention into the graph, so that eager's is not what it is compared with.
    assert torch.equal(got, run_edited(lambda graph: None, fn, x))
