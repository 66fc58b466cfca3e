"""How a launch divides its work."""

from __future__ import annotations

from dataclasses import dataclass

import triton

#: Most elements of a long row that one warp holds: 64 a thread, with as many weights, fit into its registers.
MOST_PER_WARP = 2048


@dataclass(frozen=True)
class LaunchConfig:
    """How the work is divided: each program has `num_warps` warps and handles `rows` units."""

    rows: int
    num_warps: int


def choose_launch(units: int, unit: int, threads_per_warp: int = 32) -> LaunchConfig:
    """The launch configuration for `units` units of `unit` elements on a GPU with `threads_per_warp` lanes.

    From `fusionlib bench --sweep` on one H200 (torch 2.11, Triton 3.6; bf16 to e4m3, 64 to 32768 tokens of 32 heads of
    128), within 1 % of the best of some twenty configurations at every size:

    - up to 8192 units (256 tokens of 32 heads): four elements per thread and one row per warp, because the length of
      one row's dependency chain dominates;
    - above that: eight elements per thread, so that loads are 16 bytes.

    Longer units use eight elements per thread, and sixteen in larger calls: above 65536 x 128 elements for units of
    1024 (the Mamba2 family), from 129 units for units of 4096 (per token). These are within 1 % too. Not measured:
    longer units, and wavefronts of 64, which get half as many warps.
    """
    block = triton.next_power_of_2(unit)
    elements = units * block // 128
    if unit > 512:
        per_thread = 8 if units <= 128 or (block < 4096 and elements <= 65536) else 16
        rows, num_warps = 1, min(16, block // (32 * per_thread))
    else:
        rows, num_warps = max(1, 1024 // block), 8 if elements <= 8192 else 4
    return LaunchConfig(rows, max(1, num_warps * 32 // threads_per_warp))


def choose_row_launch(rows: int, row: int, threads_per_warp: int = 32) -> LaunchConfig:
    """The launch configuration for `rows` RMS norms over whole rows of `row` elements: one row per program.

    From a sweep on one H100 (torch 2.11, Triton 3.6; bf16 to e4m3, rows of 2048 to 7168). A program's warps share four
    schedulers, and all of them execute the instructions that a row needs only once: with few rows eight warps are the
    fastest, with many, four, and more warps are slower at every number of rows. Not measured: wavefronts of 64.
    """
    warps = max(8 if rows < 512 else 4, triton.next_power_of_2(triton.cdiv(row, MOST_PER_WARP)))
    return LaunchConfig(1, max(1, warps * 32 // threads_per_warp))


def choose_norm_launch(units: int, unit: int, threads_per_warp: int = 32) -> LaunchConfig:
    """The launch configuration of an RMS norm: units are long rows, or as short as those of a gated norm."""
    choose = choose_row_launch if unit > 1024 else choose_launch
    return choose(units, unit, threads_per_warp)
