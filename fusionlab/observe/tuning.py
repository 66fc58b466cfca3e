"""Makes Inductor choose its launches where they are measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_tuning(*, keep_binaries: bool = False) -> Iterator[None]:
    """Empty Inductor's caches: it times candidate launches when it first compiles, and remembers its choice.

    Args:
        keep_binaries: keep Triton's cache. The same code is compiled; only the choice is made again.
    """
    from torch._inductor.utils import fresh_cache

    binaries = os.environ.get("TRITON_CACHE_DIR")
    with fresh_cache():
        if keep_binaries and binaries is not None:
            os.environ["TRITON_CACHE_DIR"] = binaries  # fresh_cache restores the old value
        yield
