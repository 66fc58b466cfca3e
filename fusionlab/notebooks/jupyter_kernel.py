"""The kernel that notebooks run in: this process's own interpreter, whatever kernelspecs are installed.

A notebook names a kernelspec, and Jupyter looks for one of that name in several folders; what it finds may be another
interpreter with other libraries, or nothing. What a run records about itself would then be wrong.
"""

from __future__ import annotations

import sys

from jupyter_client import AsyncKernelManager
from jupyter_client.kernelspec import KernelSpec

KERNELSPEC = {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}


def argv() -> list[str]:
    """The kernelspec's command line for a kernel of this interpreter."""
    return [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]


class OwnKernel(AsyncKernelManager):
    """Starts `sys.executable`, whatever kernel name was requested."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """A kernelspec for this interpreter, without a file."""
        return KernelSpec(argv=argv(), display_name=KERNELSPEC["display_name"], language=KERNELSPEC["language"])
