"""The kernel that notebooks run in: this process's own interpreter, whatever kernelspecs a machine has.

A notebook names a kernelspec, and Jupyter looks for one of that name in several folders; what it finds may be another
interpreter with other libraries, or nothing. What a run records of itself would then be untrue.
"""

from __future__ import annotations

import sys

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec

KERNELSPEC = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}


def argv() -> list[str]:
    """The command line of a kernel of this interpreter, as a kernelspec has it."""
    return [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]


class OwnKernel(AsyncKernelManager):
    """Starts `sys.executable`, by whatever name a kernel was asked for."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """A kernelspec of this interpreter, which no file describes."""
        return KernelSpec(argv=argv(), display_name=KERNELSPEC["display_name"], language=KERNELSPEC["language"])
