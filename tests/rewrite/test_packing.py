"""Packed scales: written by the fused op where the packing is one of those we can read, kept where it is not."""

import pytest
import torch
import torch.nn.functional as F

from fusionlib import GroupQuant, reference
from tests.spellings import NormSpelling, agree, inputs, run_rewritten

UNPACKED = GroupQuant(floor=1e-4, division="reciprocal", scale_format="ue8m0")
PACKED = UNPACKED.with_layout("packed_int32")


def aligned(count):
    return (count + 3) // 4 * 4


def padded_tensor(scale, fill=0, shift=23):
    """Exponents written into a padded tensor of zeros, as DeepGEMM's reference does it."""
    exponents = (scale.view(torch.int32) >> shift).to(torch.uint8)
    rows, columns = scale.shape
    octets = torch.full((aligned(rows), aligned(columns)), fill, dtype=torch.uint8)
    octets[:rows, :columns] = exponents
    words = octets.view(-1).view(torch.int32).view(aligned(rows), -1)
    turned = torch.empty((words.shape[1], words.shape[0]), dtype=torch.int32).mT
    turned[:, :] = words
    return turned[:rows, :]


def of_the_library(scale):
    return reference.lay_out_scales(scale, PACKED)


def fn_with(pack, quant=UNPACKED):
    def fn(x, z, w):
        codes, scale = reference.group_quant(NormSpelling()(x, z, w).flatten(1), quant)
        return codes, pack(scale)

    return fn


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("tokens", "heads"), [(7, 4), (8, 4), (7, 3), (5, 6)])
@pytest.mark.parametrize("pack", [of_the_library, padded_tensor])
def test_packed_scales_are_written_directly(pack, tokens, heads, dynamic):
    fn, tensors = fn_with(pack), inputs(tokens=tokens, heads=heads)
    got, report, graphs = run_rewritten(fn, *tensors, dynamic=dynamic)
    assert len(report.fused) == 1 and "packed_int32" in report.fused[0].what, str(report)
    assert not any("rshift" in str(node.target) or "copy" in str(node.target) for node in graphs[0].nodes)
    agree(got, fn(*tensors), 128)


def cut_anew(scale):
    """Half as many scales a row: the first words are of other tokens."""
    rows = scale.shape[0]
    return padded_tensor(F.pad(scale.reshape(2 * rows, -1), (0, 2)))[:rows].t().contiguous().t()


OTHERS = {
    "bits of another place": (lambda s: padded_tensor(s, shift=22), UNPACKED),
    "filled with ones": (lambda s: padded_tensor(s, fill=1), UNPACKED),
    "rows cut anew": (cut_anew, UNPACKED),
    "row-major words": (lambda s: ((s.view(torch.int32) >> 23) & 0xFF).to(torch.uint8).view(torch.int32), UNPACKED),
    "scales that are no powers of two": (padded_tensor, GroupQuant()),
    "scales used unpacked too": (lambda s: padded_tensor(s) + s.sum().int(), UNPACKED),
    "scales packed of double": (lambda s: padded_tensor(s * 2), UNPACKED),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_packings_are_kept(name):
    pack, quant = OTHERS[name]
    fn, tensors = fn_with(pack, quant), inputs(tokens=8 if name == "row-major words" else 7, heads=4)
    if name == "filled with ones":
        tensors = inputs(tokens=7, heads=3)
    got, report, _ = run_rewritten(fn, *tensors)
    assert len(report.fused) == 1 and "row_major" in report.fused[0].what, str(report)
    assert torch.equal(got[0].float(), fn(*tensors)[0].float()) and torch.equal(got[1], fn(*tensors)[1])
