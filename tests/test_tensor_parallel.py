"""The example of tensor parallelism, started as its first line says: two processes, every site fused on both."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "tensor_parallel.py"

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this PyTorch has no torch.distributed")


def torchrun(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(EXAMPLE)]
    return subprocess.run(
        [*command, *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=500,
        cwd=ROOT,
        check=False,
    )


def check_ranks(output: str) -> None:
    ranks = re.findall(r"rank (\d) of 2, (\d) of 4 heads: 6 fused \((.*?)\), 0 refused in 1 graph", output)
    assert {rank for rank, *_ in ranks} == {"0", "1"} and {heads for _, heads, _ in ranks} == {"2"}, output
    assert {fused for *_, fused in ranks} == {"4 rms_norm, 1 gated_norm, 1 act_and_mul"}
    assert len(re.findall(r"from the compile without the pass: \S+\n", output)) == 2
    apart = [float(each) for each in re.findall(r"on one rank, relative: (\S+)", output)]
    assert len(apart) == 2 and all(0 < each < 0.02 for each in apart)  # a sum of two halves is rounded twice


def test_every_rank_fuses_and_computes_what_it_does_without_the_pass():
    done = torchrun(CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr[-3000:]
    check_ranks(done.stdout)
    assert done.stdout.count("without the pass: 0.0e+00") == 2


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_on_two_gpus_over_nccl():
    done = torchrun()
    assert done.returncode == 0, done.stderr[-3000:]
    check_ranks(done.stdout)


def test_heads_that_cannot_be_split_are_an_error_that_names_them():
    done = subprocess.run(
        [sys.executable, str(EXAMPLE), "--heads", "3"],
        env=os.environ | {"WORLD_SIZE": "2", "RANK": "0"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2 and "--heads 3 cannot be split between 2 ranks" in done.stderr
