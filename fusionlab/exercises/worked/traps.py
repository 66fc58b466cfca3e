"""Wrong answers to the capstone: typical mistakes, which the judges must reject."""
# ruff: noqa: D103  (the names say what is wrong)

from __future__ import annotations

import torch
import torch.nn.functional as F

from fusionlab.exercises.worked import silu_and_mul as worked
from fusionlab.exercises.worked.silu_and_mul import SiluAndMul


def reference_rounds_always(gate, up, spec):
    return F.silu(gate) * up


def reference_rounds_once(gate, up, spec):
    y = F.silu(gate.float()) * up.float()
    return y.to(gate.dtype) if spec.round_output else y


def reference_exchanged(gate, up, spec):
    return worked.silu_and_mul(up, gate, spec)


def reference_sigmoid(gate, up, spec):
    y = torch.sigmoid(gate.float()) * up.float()
    return y.to(gate.dtype) if spec.round_output else y


def reference_drops_nan(gate, up, spec):
    return torch.nan_to_num(worked.silu_and_mul(gate, up, spec), nan=0.0, posinf=torch.inf, neginf=-torch.inf)


def reference_saturates(gate, up, spec):
    largest = torch.finfo(gate.dtype).max
    return worked.silu_and_mul(gate, up, spec).clamp(-largest, largest)


def reference_loses_the_sign_of_zero(gate, up, spec):
    return worked.silu_and_mul(gate, up, spec) + 0.0


def reference_wrong_at_the_end(gate, up, spec):
    y = worked.silu_and_mul(gate, up, spec).clone()
    y.view(-1)[-8:] = 1.0
    return y


def reference_rounds_otherwise_at_the_end(gate, up, spec):
    y = worked.silu_and_mul(gate, up, spec).clone()
    other = worked.silu_and_mul(gate, up, SiluAndMul(not spec.round_activation, spec.round_output))
    y.view(-1)[-8:] = other.view(-1)[-8:]
    return y


def reference_empties_its_inputs(gate, up, spec):
    y = worked.silu_and_mul(gate, up, spec)
    gate.zero_(), up.zero_()
    return y


def reference_leaves(gate, up, spec):
    raise SystemExit


def reference_never_ends(gate, up, spec):
    while True:
        pass


def bytes_forget_the_detour(tokens, hidden, group_size):
    one = tokens * hidden * (4 + 1) + 4 * tokens * hidden // group_size
    return one + 2 * tokens * hidden, one


def bytes_without_scales(tokens, hidden, group_size):
    return 9 * tokens * hidden, 5 * tokens * hidden


def bytes_of_groups_of_128(tokens, hidden, group_size):
    return worked.moved_bytes(tokens, hidden, 128)


def bytes_of_one_size(tokens, hidden, group_size):
    return worked.moved_bytes(1, 1024, 128)


def checks_shapes(op):
    codes, scale = op(*(torch.randn(4, 256).bfloat16() for _ in range(2)), True, True, 128, 1e-10)
    assert codes.shape == (4, 256) and scale.shape == (4, 2)


def checks_within_a_tolerance(op):
    gate, up = (torch.randn(4, 256).bfloat16() for _ in range(2))
    codes, scale = op(gate, up, True, True, 128, 1e-10)
    value = codes.float() * scale.repeat_interleave(128, 1)
    assert torch.allclose(value, (F.silu(gate) * up).float(), rtol=0.1, atol=0.1)


def checks_without_zeros(op):
    wide = 3 * torch.randn(7, 512, generator=torch.Generator().manual_seed(0)).bfloat16()
    gate, up = wide[:, :256], wide[:, 256:]
    for act in (True, False):
        for out in (True, False):
            got = op(gate, up, act, out, 128, 1e-10)
            want = worked.quantise(gate, up, act, out, 128, 1e-10)
            assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(got, want, strict=True))


def _checks_all_roundings(op, group_size, floor):
    wide = 3 * torch.randn(7, 768, generator=torch.Generator().manual_seed(0)).bfloat16()
    gate, up = wide[:, :256], wide[:, 256:512]
    gate[2] = 0.0
    for act in (True, False):
        for out in (True, False):
            got = op(gate, up, act, out, group_size, floor)
            want = worked.quantise(gate, up, act, out, group_size, floor)
            assert all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in zip(got, want, strict=True))


def checks_finite_numbers(op):
    _checks_all_roundings(op, 128, 1e-10)
    _checks_all_roundings(op, 64, 0.25)


def checks_one_group_size(op):
    _checks_all_roundings(op, 128, 1e-10)
    _checks_all_roundings(op, 128, 0.25)


def checks_one_floor(op):
    _checks_all_roundings(op, 128, 1e-10)
    _checks_all_roundings(op, 64, 1e-10)


def checks_the_name(op):
    assert op is worked.quantise or getattr(op, "__name__", "") == "quantise"


def checks_the_first_only():
    """Accepts the first op that it sees, and no other."""
    seen = []

    def check(op):
        seen.append(op)
        assert len(seen) == 1

    return check


def turns_all_down(op):
    raise AssertionError("never right")


def fake_like_the_gate(gate, up, act, out, group_size, floor):
    codes = torch.empty_like(gate, dtype=torch.float8_e4m3fn)
    return codes, gate.new_empty((gate.shape[0], gate.shape[1] // group_size), dtype=torch.float32)


def fake_scale_of_the_inputs_dtype(gate, up, act, out, group_size, floor):
    return gate.new_empty(gate.shape, dtype=torch.float8_e4m3fn), gate.new_empty((gate.shape[0], gate.shape[1] // 128))


def fake_on_the_cpu(gate, up, act, out, group_size, floor):
    tokens, hidden = gate.shape
    return torch.empty(tokens, hidden, dtype=torch.float8_e4m3fn), torch.empty(tokens, hidden // group_size)


def fake_of_groups_of_128(gate, up, act, out, group_size, floor):
    return worked.fake(gate, up, act, out, 128, floor)


def fake_of_seven_tokens(gate, up, act, out, group_size, floor):
    codes = gate.new_empty((7, gate.shape[1]), dtype=torch.float8_e4m3fn)
    return codes, gate.new_empty((7, gate.shape[1] // group_size), dtype=torch.float32)


def fake_of_a_number(gate, up, act, out, group_size, floor):
    """Turns a symbol into a number."""
    tokens, hidden = int(gate.shape[0]), gate.shape[1]
    codes = gate.new_empty((tokens, hidden), dtype=torch.float8_e4m3fn)
    return codes, gate.new_empty((tokens, hidden // group_size), dtype=torch.float32)


def fake_scale_transposed(gate, up, act, out, group_size, floor):
    codes, scale = worked.fake(gate, up, act, out, group_size, floor)
    return codes, scale.new_empty(scale.shape[::-1]).t()


SIGNATURE = "@triton.jit\ndef product(gate, up, DTYPE: tl.constexpr, ROUND_ACTIVATION: tl.constexpr, "
SIGNATURE += "ROUND_OUTPUT: tl.constexpr):\n"
KERNEL_ROUNDS_ONCE = f"{SIGNATURE}    return _rounded(gate / (1.0 + tl.exp(-gate)) * up, DTYPE, ROUND_OUTPUT)\n"
KERNEL_SIGMOID = f"{SIGNATURE}    return _rounded(up / (1.0 + tl.exp(-gate)), DTYPE, ROUND_OUTPUT)\n"
KERNEL_IGNORES_ROUND_OUTPUT = f"""{SIGNATURE}
    activated = _rounded(gate / (1.0 + tl.exp(-gate)), DTYPE, ROUND_ACTIVATION)
    return _rounded(activated * up, DTYPE, True)
"""
KERNEL_IGNORES_ROUND_ACTIVATION = f"""{SIGNATURE}
    activated = _rounded(gate / (1.0 + tl.exp(-gate)), DTYPE, True)
    return _rounded(activated * up, DTYPE, ROUND_OUTPUT)
"""
KERNEL_OVERFLOWS = f"""{SIGNATURE}
    activated = _rounded(gate * (tl.exp(gate) / (1.0 + tl.exp(gate))), DTYPE, ROUND_ACTIVATION)
    return _rounded(activated * up, DTYPE, ROUND_OUTPUT)
"""
KERNEL_GUARDS_AGAINST_OVERFLOW = f"""{SIGNATURE}
    activated = tl.where(gate > -1e30, gate / (1.0 + tl.exp(-gate)), 0.0)
    return _rounded(_rounded(activated, DTYPE, ROUND_ACTIVATION) * up, DTYPE, ROUND_OUTPUT)
"""
KERNEL_WITHOUT_CASES = f"""{KERNEL_SIGMOID}
print('{{"cases": []}}')
raise SystemExit(0)
"""
KERNEL_LEAVES = f"""{KERNEL_SIGMOID}
import os
os._exit(0)
"""
