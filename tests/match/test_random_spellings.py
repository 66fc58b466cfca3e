"""Random spellings: every one either fuses and agrees with eager, or is refused with a reason. Never silence."""

import os

import torch
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from fusionlib.match.reasons import REASONS
from tests.spellings import (
    ACTIVATIONS,
    LAYOUTS,
    MEANS,
    ROOTS,
    SQUARES,
    NormSpelling,
    QuantSpelling,
    agree,
    inputs,
    run_rewritten,
    site,
)

EXAMPLES = int(os.environ.get("FUSIONLIB_RANDOM_SPELLINGS", "80"))

norms = st.builds(
    NormSpelling,
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    square=st.sampled_from(sorted(SQUARES)),
    mean=st.sampled_from(sorted(MEANS)),
    root=st.sampled_from(sorted(ROOTS)),
    eps=st.sampled_from([1e-5, 1e-6, 3e-6]),
    gate_first=st.booleans(),
    round_norm=st.booleans(),
    round_activation=st.booleans(),
    weight_float=st.booleans(),
    weight_first=st.booleans(),
    gate_inside=st.booleans(),
    offset=st.booleans(),
    no_weight=st.integers(0, 7).map(lambda n: n == 0),
    round_output=st.integers(0, 5).map(lambda n: n != 0),
)
quants = st.builds(
    QuantSpelling,
    group=st.sampled_from([64, 128, 256, 512]),
    floor=st.sampled_from([None, 1e-10, 1e-4]),
    floor_on=st.sampled_from(["amax", "scale"]),
    reciprocal=st.booleans(),
    in_activation_dtype=st.booleans(),
    repeat=st.sampled_from(["broadcast", "repeat_interleave", "expand"]),
    ue8m0=st.booleans(),
    nan_scale=st.sampled_from(["nan", "largest"]),
    clamp=st.integers(0, 3).map(lambda n: n != 0),
    layout=st.sampled_from(["row_major", "column_major"]),
    dtype=st.sampled_from([torch.float8_e4m3fn, torch.float8_e5m2]),
)


def written_exactly(norm: NormSpelling) -> bool:
    """Whether the spelling's float32 arithmetic is the reference's operation by operation."""
    silu_or_sigmoid = norm.activation in ("silu", "sigmoid")
    plain = norm.root in ("x*rsqrt", "rsqrt*x") and norm.mean != "sum/n" and not norm.gate_inside
    return silu_or_sigmoid and plain


# A spelling is small enough to read as it is drawn; shrinking one would trace hundreds more.
@settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=True,
    phases=[Phase.explicit, Phase.generate],
)
@given(
    norms,
    quants,
    st.sampled_from(sorted(LAYOUTS)),
    st.sampled_from([torch.bfloat16, torch.float16, torch.float32]),
    st.sampled_from([None, torch.float32]),
    st.booleans(),
    st.booleans(),
    st.sampled_from([(6, 4, 128), (1, 4, 128), (1, 1, 512), (5, 8, 64)]),
)
def test_every_spelling_fuses_and_agrees_or_says_why(norm, quant, layout, dtype, gate_dtype, strided, dynamic, shape):
    tensors = inputs(*shape, dtype, gate_dtype, strided)
    fn = site(norm, quant, layout)
    got, report, _ = run_rewritten(fn, *tensors, dynamic=dynamic and shape[0] > 1)
    assert len(list(report)) == 1
    result = next(iter(report))
    if result.fused:
        event("fused")
        agree(got, fn(*tensors), quant.group, written_exactly(norm), dtype is torch.float32 or not norm.round_output)
        return
    event(result.code)
    assert result.code in REASONS and result.code != "internal_error"
    if result.code == "clamp":  # where the scale was rounded, or has no floor, or the cast leaves infinities
        assert not quant.clamp and (quant.floor is None or quant.ue8m0 or quant.in_activation_dtype), str(result)
        return
    # 16 bits in the middle of an activation or of a product of weight and gate; nothing else here rounds oddly.
    in_16_bits = torch.float16 in (dtype, gate_dtype) or torch.bfloat16 in (dtype, gate_dtype)
    assert result.code == "rounding" and norm.round_activation and in_16_bits, str(result)
