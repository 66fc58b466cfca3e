"""How many warps a multiprocessor can hold at once, from the registers that the compiled kernel uses.

Sources: NVIDIA, CUDA C++ Programming Guide, technical specifications per compute capability (9.0 and 10.0: 64 warps, 32
blocks and 65536 registers per multiprocessor), and the CUDA occupancy calculator (four partitions, registers allocated
to a warp in units of 256); LLVM, AMDGPU usage, and AMD's CDNA3 ISA (512 vector registers per lane, eight wavefronts per
SIMD, four SIMDs per compute unit, registers allocated in units of eight). Shared memory is ignored: these kernels use
less than a KiB.
"""

from __future__ import annotations

from dataclasses import dataclass

from fusionlab.observe.codegen import TARGETS


@dataclass(frozen=True)
class Occupancy:
    """Warps (wavefronts) that fit on one multiprocessor (compute unit), and the maximum possible."""

    warps: int
    most: int

    @property
    def share(self) -> float:
        """Warps / maximum."""
        return self.warps / self.most


def occupancy(target: str, registers: int, num_warps: int) -> Occupancy:
    """Resident warps of a kernel with `registers` per thread in blocks of `num_warps` warps.

    Raises:
        ValueError: for an unknown target, or impossible sizes.
    """
    if target not in TARGETS:
        raise ValueError(f"target {target!r} is unknown; choose one of {', '.join(TARGETS)}")
    if not 1 <= registers <= 512 or not 1 <= num_warps <= 32:
        raise ValueError(f"registers={registers} must be 1 to 512, num_warps={num_warps} 1 to 32")
    if TARGETS[target][0] == "cuda":
        a_warp = -(-registers * 32 // 256) * 256
        fits = 4 * (16384 // a_warp)
        blocks = min(fits // num_warps, 64 // num_warps, 32)
        return Occupancy(blocks * num_warps, 64)
    a_lane = -(-registers // 8) * 8
    fits = 4 * min(8, 512 // a_lane)
    return Occupancy(fits // num_warps * num_warps, 32)
