"""What is measured of Inductor must be chosen where it is measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_tuning(*, keep_binaries: bool = False) -> Iterator[None]:
    """Inductor's caches empty: it times candidate launches when it first compiles, and remembers what it chose.

    Args:
        keep_binaries: leave Triton's cache as it is. What is compiled is the same; only the choice is made again.
    """
    from torch._inductor.utils import fresh_cache

    binaries = os.environ.get("TRITON_CACHE_DIR")
    with fresh_cache():
        if keep_binaries and binaries is not None:
            os.environ["TRITON_CACHE_DIR"] = binaries  # fresh_cache puts back what was there
        yield
