"""Where the kernels run, and what a GPU can do, decided from plain facts about it.

It imports nothing, so that `fusionlib doctor` can use it even if torch is broken.
"""

from __future__ import annotations

#: The types of devices on which a graph can be rewritten, and those where it is unless others are named: where the
#: kernels run. PyTorch calls AMD's GPUs cuda too. On a CPU the fused op is the unfused reference, and saves no time.
DEVICES = ("cpu", "cuda")
KERNEL_DEVICES = ("cuda",)

#: The lowest compute capability with a conversion to FP8 (NVIDIA's PTX ISA: cvt to e4m3x2 needs sm_89).
NVIDIA_FP8 = (8, 9)

#: AMD's architectures with conversions to FP8, by name prefix, and which e4m3 they convert to. Sources:
#: the CDNA3 (MI300: fnuz), CDNA4 (MI350) and RDNA4 ISA documents.
AMD_E4M3 = {"gfx94": "float8_e4m3fnuz", "gfx95": "float8_e4m3fn", "gfx12": "float8_e4m3fn"}

#: Lanes of a warp: CDNA has 64, RDNA and NVIDIA 32.
_WIDE_WARPS = ("gfx9",)


def fp8_problem(dtype: str, capability: tuple[int, int], arch: str | None = None) -> str | None:
    """Why a GPU has no conversion to the FP8 dtype named `dtype` (such as float8_e4m3fn), or None if it has one.

    Args:
        capability: its compute capability, on NVIDIA.
        arch: its architecture on AMD, such as gfx942; None on NVIDIA.
    """
    if arch is not None:
        native = next((e4m3 for prefix, e4m3 in AMD_E4M3.items() if arch.startswith(prefix)), None)
        if native is None:
            return f"{arch} has no conversion to FP8; {', '.join(f'{prefix}x' for prefix in AMD_E4M3)} do"
        if dtype not in (native, "float8_e5m2"):
            return f"{arch} has no conversion to torch.{dtype}; use torch.{native}"
        return None
    if dtype == "float8_e4m3fnuz":
        return "NVIDIA GPUs have no conversion to torch.float8_e4m3fnuz; use torch.float8_e4m3fn"
    if capability < NVIDIA_FP8:
        least = "{}.{}".format(*NVIDIA_FP8)
        return f"compute capability {capability[0]}.{capability[1]} has no FP8 conversion; {least} or newer does"
    return None


def converts_to_fp8(capability: tuple[int, int], arch: str | None = None) -> bool:
    """Whether a GPU converts to some e4m3 FP8 dtype; arguments as for `fp8_problem`."""
    return any(fp8_problem(dtype, capability, arch) is None for dtype in ("float8_e4m3fn", "float8_e4m3fnuz"))


def threads_per_warp(arch: str | None = None) -> int:
    """Lanes of a warp on a GPU of AMD's `arch`, or of NVIDIA's if it is None."""
    return 64 if arch is not None and arch.startswith(_WIDE_WARPS) else 32
