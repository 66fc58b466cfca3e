"""The example that users start from runs as it stands: really compiled, once."""

import importlib.util
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

EXAMPLE = Path(__file__).parents[2] / "examples" / "quantize_model.py"


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("quantize_model", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_quantises_compiles_and_fuses_everything(example, monkeypatch, capsys):
    """One layer of linear attention: the other kind fuses in `test_transformers_models`, and code takes its time."""
    small = example.small_model()
    small.model.layers = small.model.layers[:1]
    small.config.num_hidden_layers = 1
    monkeypatch.setattr(example, "small_model", lambda: small)
    torch._dynamo.reset()
    example.main()
    told = capsys.readouterr().out
    assert "5 linear layers in block-FP8" in told
    assert "5 fused (3 rms_norm, 1 gated_norm, 1 act_and_mul), 0 refused in 1 graph" in told
    assert "logits [1, 12, 128], all finite: True" in told
