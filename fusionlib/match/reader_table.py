"""A table of readers of third-party calls, by the name of the op or the Triton kernel that is called."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import fx

from fusionlib.match.calls import Arguments, arguments_of, called_op, kernel_names, launched_kernel
from fusionlib.match.reasons import Stop
from fusionlib.spec import SpecError

log = logging.getLogger(__name__)

_KERNEL = "triton kernel "  # before the name of a kernel, which may be that of no op: those have a ::


class Registered(NamedTuple):
    """A reader.

    Args:
        version: its author's version of it; None if it is hashed instead.
        spec: the type of spec that it answers with; None if that is not known before it is asked.
    """

    reader: Callable[[Arguments], Any]
    version: str | None = None
    spec: type | None = None


class ReaderTable:
    """Readers by the name of what they read; registering a name again replaces its reader.

    Args:
        unreadable: the reason code of a call whose arguments no spec can express.
    """

    def __init__(self, unreadable: str) -> None:
        self._readers: dict[str, Registered] = {}
        self._unreadable = unreadable

    def add_op(self, target: torch._ops.OpOverload | str, entry: Registered) -> None:
        """Read calls of an op: an overload, or its name ns::name, or ns::name.overload if it is not the default one."""
        name = target.name() if isinstance(target, torch._ops.OpOverload) else target
        if not isinstance(name, str) or "::" not in name:
            raise TypeError(
                f"target={target!r} must be an overload such as torch.ops.ns.name.default, or its name ns::name"
            )
        self._add(name, entry)

    def add_kernel(self, kernel: object, entry: Registered) -> None:
        """Read launches of a Triton kernel: what `triton.jit` or `triton.autotune` made, or its name, with or without
        its module. A name with the module wins over one without."""
        name = kernel if isinstance(kernel, str) else kernel_names(kernel)[0] if hasattr(kernel, "fn") else ""
        if not name or "::" in name:
            raise TypeError(f"kernel={kernel!r} must be a Triton kernel, or its name, such as package.module.kernel")
        self._add(_KERNEL + name, entry)

    def _add(self, name: str, entry: Registered) -> None:
        version = entry.version
        if version is not None and (not isinstance(version, str) or not version):
            raise TypeError(f"version={version!r} must be a text that is not empty, or None")
        self._readers[name] = entry

    def registered(self) -> dict[str, Registered]:
        """All readers with their versions, by name."""
        return dict(self._readers)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Forget on exit the readers that were registered inside."""
        before = self.registered()
        try:
            yield
        finally:
            self._readers.clear()
            self._readers.update(before)

    def find(self, node: fx.Node) -> tuple[str, Registered] | None:
        """(the name of what `node` calls, its reader); None if it has none."""
        if (op := called_op(node)) is not None:
            names: tuple[str, ...] = (op.name(),)
        elif (kernel := launched_kernel(node)) is not None:
            names = tuple(_KERNEL + name for name in kernel_names(kernel))
        else:
            return None
        return next(((name, self._readers[name]) for name in names if name in self._readers), None)

    def read(self, node: fx.Node, *answers: type) -> Any:
        """What the reader of `node` says; one of the types `answers`.

        Raises:
            Stop: if the reader refuses the call or fails, or if it asks for a spec that there is not.
        """
        found = self.find(node)
        if found is None:
            raise TypeError(f"{node} has no reader")
        name, (reader, *_) = found
        title = f"{_name_of(reader)}, the reader of {name},"
        try:
            answer = reader(arguments_of(node))
        except Stop:
            raise
        except SpecError as error:
            raise Stop(self._unreadable, node, "arguments that a spec can spell", f"{name}: {error}") from error
        except Exception as error:
            log.exception("fusionlib: %s failed", title)
            raise Stop("reader_failed", node, f"an answer of {title}", f"{type(error).__name__}: {error}") from error
        if not isinstance(answer, answers):
            wanted = " or ".join(kind.__name__ for kind in answers)
            raise Stop("reader_failed", node, f"that {title} returns {wanted}", repr(answer))
        return answer


def _name_of(reader: Callable[..., Any]) -> str:
    """A reader's module and name, or those of its class."""
    named = reader if hasattr(reader, "__qualname__") else type(reader)
    return f"{named.__module__}.{named.__qualname__}"
