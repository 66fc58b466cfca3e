"""The kernel's versions 1 to 7, as teaching material: one file each, what changes and why, bytes before microseconds.

Versions 1 to 6 are written for one case (`case.unsupported` says which) and kept short; version 7 is the library's own
kernel. `VERSIONS` lists them in order; `check_all` compares them with the reference, `time_all` times them on a GPU.
The library does not import this package.
"""

from fusionlab.versions.registry import VERSIONS, Version, difference

__all__ = ["VERSIONS", "Version", "difference"]
