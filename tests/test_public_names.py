"""`import fusionlib` is cheap, and still all that is needed for its names and its ops."""

import subprocess
import sys

import pytest

import fusionlib


def test_every_public_name_is_there_and_has_a_home():
    assert set(fusionlib._HOMES) == set(fusionlib.__all__) <= set(dir(fusionlib))
    for name in fusionlib.__all__:
        assert getattr(fusionlib, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'FusionPas'"):
        fusionlib.FusionPas  # noqa: B018


@pytest.mark.parametrize(
    ("code", "registered"),
    [
        ("import fusionlib, sys; assert 'torch' not in sys.modules; import torch", False),
        ("import torch, fusionlib", True),
        ("import fusionlib.op, torch", True),
        ("import torch, fusionlib.layers, sys; assert 'torch._dynamo' not in sys.modules", True),  # a second and a half
        ("import fusionlib, torch; fusionlib.GatedNorm", True),
        ("from fusionlib import unsupported; import torch", True),
    ],
)
def test_the_ops_come_with_torch_or_with_the_first_name(code, registered):
    code += "; print(hasattr(torch.ops.fusionlib, 'rms_norm_gated_group_quant'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(registered)]
