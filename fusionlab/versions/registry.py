"""The versions in order, and what is known about each before it runs: its bytes, its kernels, its source."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import torch
from triton import knobs

from fusionlab.observe.byte_ledger import Bytes, path_bytes
from fusionlab.versions import (
    v1_two_kernels,
    v2_fused,
    v3_rows,
    v4_reciprocal,
    v5_residual,
    v6_strided,
    v7_product,
)
from fusionlab.versions.case import Launches
from fusionlib import reference
from fusionlib.spec import GatedNorm, GroupQuant

#: How the quotient is computed: Triton's `/` (off by a few units in the last place on a GPU), a product with the
#: rounded reciprocal (not bit-exact by construction), or the correctly rounded division of eager.
Division = Literal["approximate", "reciprocal", "correct"]


@dataclass(frozen=True)
class Version:
    """One version of the kernel.

    Args:
        number, title: its number and name.
        change: what it changes from the previous version, and why, in a sentence.
        division: how it computes the quotient; only `correct` can match eager bit for bit.
        strided: whether it reads a strided gate in place; for the others it is copied first.
        kernels: how many launches it takes.
        module: its file.
    """

    number: int
    title: str
    change: str
    division: Division
    strided: bool
    kernels: int
    module: ModuleType

    @property
    def name(self) -> str:
        """For example `v4_reciprocal`."""
        return self.module.__name__.rpartition(".")[2]

    @property
    def launches(self) -> Launches | None:
        """The function that describes its launches; None for version 7, which the library launches."""
        return getattr(self.module, "launches", None)

    def run(
        self, x: torch.Tensor, gate: torch.Tensor, weight: torch.Tensor, norm: GatedNorm, quant: GroupQuant
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes [tokens, hidden] and scales, for contiguous `x` [tokens, heads, head_dim] and a `gate` of its size.

        Raises:
            ValueError: for specs beyond the teaching case, and for tensors on a CPU outside Triton's interpreter.
        """
        if x.device.type == "cpu" and not knobs.runtime.interpret:
            raise ValueError(
                f"fusionlab.versions: {self.name} is a Triton kernel and x is on {x.device}; move the tensors to a "
                "GPU, or use fusionlab.versions.check.check_all, which runs the versions in Triton's interpreter"
            )
        codes = torch.empty((x.shape[0], x[0].numel()), dtype=quant.dtype, device=x.device)
        size, stride, dtype = reference.scale_storage(x.shape[0], codes.shape[1] // quant.group_size, quant)
        scale = torch.empty_strided(size, stride, dtype=dtype, device=x.device)
        self.launch_into(x, gate, weight, norm, quant, codes, scale)
        return codes, scale

    def launch_into(
        self,
        x: torch.Tensor,
        gate: torch.Tensor,
        weight: torch.Tensor,
        norm: GatedNorm,
        quant: GroupQuant,
        codes: torch.Tensor,
        scale: torch.Tensor,
    ) -> None:
        """Like `run`, into existing outputs."""
        if self.launches is None:
            self.module.launch(x, gate, weight, norm, quant, codes, scale)
            return
        if not self.strided:
            gate = gate.contiguous()
        for launch in self.launches(x, gate, weight, norm, quant, codes, scale):
            launch.run()

    def kernel_source(self) -> str:
        """The source of its kernels; for version 7 that of the library's fused kernel, without its helpers."""
        if self.launches is None:
            from fusionlib.kernels.gated_norm import rms_norm_gated_group_quant_kernel as kernel

            return inspect.getsource(kernel.fn)
        kernels = [
            value for value in vars(self.module).values() if hasattr(value, "fn") and hasattr(value, "arg_names")
        ]
        own = [kernel for kernel in kernels if kernel.fn.__module__ == self.module.__name__]
        return "\n\n".join(inspect.getsource(kernel.fn) for kernel in own)

    def parts(
        self,
        tokens: int,
        hidden: int,
        norm: GatedNorm,
        quant: GroupQuant,
        *,
        x_dtype: torch.dtype = torch.bfloat16,
        strided_gate: bool = False,
    ) -> dict[str, Bytes]:
        """The bytes that must move, part by part; their sum is the ledger's (`observe.byte_ledger.path_bytes`).

        `strided_gate`: the gate is not contiguous; versions that cannot read it that way copy it first.
        """
        path = path_bytes(tokens, hidden, norm, quant, x_dtype=x_dtype)
        tensor = tokens * hidden * x_dtype.itemsize
        codes = tokens * hidden * quant.dtype.itemsize
        normed = Bytes(path.quant.read, path.norm.written) if self.kernels == 2 else Bytes()
        return {
            "x": Bytes(tensor),
            "gate": Bytes(tensor),
            "weight": Bytes(path.fused.read - 2 * tensor),
            "copy of the gate": Bytes(tensor, tensor) if strided_gate and not self.strided else Bytes(),
            "normed value": normed,
            "codes": Bytes(0, codes),
            "scales": Bytes(0, path.fused.written - codes),
        }


VERSIONS: tuple[Version, ...] = (
    Version(
        1,
        "two kernels",
        "The norm writes its result to memory and the quantisation fetches it from there.",
        "approximate",
        False,
        2,
        v1_two_kernels,
    ),
    Version(
        2,
        "one kernel",
        "The value in the middle stays in registers; the rounding that memory did is written out.",
        "approximate",
        False,
        1,
        v2_fused,
    ),
    Version(
        3,
        "sixteen rows per program",
        "Each thread loads eight neighbouring elements at once instead of one.",
        "approximate",
        False,
        1,
        v3_rows,
    ),
    Version(
        4,
        "no division per element",
        "The sigmoid by exp2 and an approximate division; the quotient by the reciprocal of the scale.",
        "reciprocal",
        False,
        1,
        v4_reciprocal,
    ),
    Version(
        5,
        "one residual step",
        "Two fused multiply-adds per element turn the estimate into the correctly rounded quotient.",
        "correct",
        False,
        1,
        v5_residual,
    ),
    Version(
        6,
        "strides",
        "The gate is read where the projection left it, so that nobody copies it first.",
        "correct",
        True,
        1,
        v6_strided,
    ),
    Version(
        7,
        "the library's kernel",
        "Every norm, quantisation and layout; what the listing of version 6 taught; a launch that follows the rows.",
        "correct",
        True,
        1,
        v7_product,
    ),
)


def difference(before: Version, after: Version) -> str:
    """A unified diff of the kernels' source between two versions."""
    lines = difflib.unified_diff(
        before.kernel_source().splitlines(),
        after.kernel_source().splitlines(),
        before.name,
        after.name,
        lineterm="",
        n=1,
    )
    return "\n".join(lines)
