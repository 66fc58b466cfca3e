"""One of two processes: a block-FP8 linear under tensor parallelism and DDP, over gloo. Run by `test_block_linear`.

RANK=0 WORLD_SIZE=2 python tests/sharded_linear.py FILE
"""

import os
import sys

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from fusionlib.layers import BlockFP8Linear, quantise_blocks
from fusionlib.reference import dequantise, group_quant

RANK = int(os.environ["RANK"])
HALF = slice(RANK * 256, RANK * 256 + 256)


def linear(inputs: int, outputs: int, seed: int = 0, bias: bool = True) -> BlockFP8Linear:
    torch.manual_seed(seed)
    return BlockFP8Linear.from_linear(nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16))


def sharded(mesh) -> None:
    """up and down as one MLP: sharded alike, equal to one process, to the bit where no sum is split."""
    x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    up, down = linear(128, 512), linear(512, 256)
    whole = nn.Sequential(linear(128, 512), linear(512, 256))
    both = nn.Sequential(up, down)
    parallelize_module(both, mesh, {"0": ColwiseParallel(), "1": RowwiseParallel()})
    for layer, dim in ((up, 0), (down, 1)):
        for tensor in (layer.weight, layer.weight_scale_inv):
            assert isinstance(tensor, DTensor) and tensor.placements == (Shard(dim),)
    codes, scale = quantise_blocks(nn_weight(128, 512))
    assert torch.equal(up.codes.float(), codes[HALF].float())
    assert torch.equal(up.weight_scale_inv.to_local(), scale[RANK * 2 : RANK * 2 + 2])
    codes, scale = quantise_blocks(nn_weight(512, 256))
    assert torch.equal(down.codes.float(), codes[:, HALF].float())
    local = down.weight_scale_inv.to_local()
    assert torch.equal(local, scale[:, RANK * 2 : RANK * 2 + 2])
    assert local.stride() == (4, 1), local.stride()  # as cuBLAS reads it
    hidden = whole[0](x)
    first = DTensor.from_local(up(x), mesh, [Shard(1)]).full_tensor()
    assert torch.equal(first, hidden)
    got, want = both(x).float(), whole(x).float()
    torch.testing.assert_close(got, want, rtol=2**-7, atol=2**-7)  # both halves are rounded to bfloat16
    rows = [dequantise(*group_quant(hidden[:, part], down.quant), down.quant) for part in (slice(256), slice(256, 512))]
    dense = codes.float() * scale.repeat_interleave(128, 0).repeat_interleave(128, 1)
    halves = [(row @ dense[:, i * 256 : i * 256 + 256].t()).bfloat16() for i, row in enumerate(rows)]
    assert torch.equal(both(x), halves[0] + halves[1] + whole[1].bias)
    state = both.state_dict()
    assert state["0.weight"].dtype is torch.float8_e4m3fn and state["0.weight"].shape == (512, 128)
    both.load_state_dict(state)
    assert torch.equal(both(x).float(), got)


def gradients(mesh) -> None:
    """The input's is that of one process: each has a part of the columns, and the parts are added up."""
    found = []
    for split in (False, True):
        both = nn.Sequential(linear(128, 512), nn.SiLU(), linear(512, 256))
        if split:
            parallelize_module(both, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})
        x = torch.randn(3, 128, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
        both(x).float().square().sum().backward()
        found.append(x.grad.float())
    assert found[0].abs().sum() > 0
    apart = (found[0] - found[1]).norm() / found[0].norm()
    assert apart < 0.02, apart  # sums of halves in bfloat16


def placements(mesh) -> None:
    """Tokens that are split between processes stay so for a whole weight, and are gathered for columns of one."""
    x = torch.randn(4, 128, generator=torch.Generator().manual_seed(1)).bfloat16()
    want = linear(128, 512)(x)
    for split in (False, True):
        layer = linear(128, 512)
        if split:
            parallelize_module(layer, mesh, ColwiseParallel(use_local_output=False))
        else:
            distribute_module(layer, mesh)
        got = layer(distribute_tensor(x, mesh, [Shard(0)]))
        assert got.shape == want.shape and torch.equal(got.full_tensor(), want)
        assert got.placements == ((Shard(1),) if split else (Shard(0),))


def nn_weight(inputs: int, outputs: int) -> torch.Tensor:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, dtype=torch.bfloat16).weight.detach()


def boundary(mesh) -> None:
    """384 columns in two are 192 each: in the middle of a block."""
    try:
        parallelize_module(linear(384, 128), mesh, RowwiseParallel())
    except ValueError as error:
        assert "second shard begins at 192 of 384" in str(error) and "in_features" in str(error), error
    else:
        raise AssertionError("a shard began inside of a block")


def broadcast() -> None:
    """DDP sends rank 0's codes and scales, although gloo knows no FP8."""
    model = nn.Sequential(nn.Linear(128, 128, dtype=torch.bfloat16), linear(128, 256, seed=RANK))
    wrapped = nn.parallel.DistributedDataParallel(model)
    want = linear(128, 256, seed=0)
    assert torch.equal(model[1].codes.float(), want.codes.float())
    wrapped(torch.randn(2, 128).bfloat16()).float().sum().backward()  # its buffers are sent with every forward
    assert torch.equal(model[1].weight_scale_inv, want.weight_scale_inv)
    grads = [torch.empty_like(model[0].weight) for _ in range(2)]
    dist.all_gather(grads, model[0].weight.grad)
    assert grads[0].abs().sum() > 0 and torch.equal(*grads)


def main(meeting: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=RANK, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    sharded(mesh)
    gradients(mesh)
    placements(mesh)
    boundary(mesh)
    broadcast()
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
