"""Graphs that launch Triton kernels, traced by PyTorch on a machine without a GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
import triton
from triton.backends.compiler import GPUTarget


class _Driver:
    """As much of a GPU's driver as PyTorch asks for to read off a kernel's code what it writes."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@contextlib.contextmanager
def launches_traced(known: bool = True) -> Iterator[None]:
    """Let Dynamo trace launches on CPU tensors; such a graph cannot run before the launch is replaced.

    `known`: whether PyTorch can tell what a kernel writes. Otherwise it says that every tensor is written.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("torch.utils._triton.has_triton", lambda *_: True))
        if known:
            stack.enter_context(mock.patch.object(triton.runtime.driver, "_active", _Driver()))
        yield
