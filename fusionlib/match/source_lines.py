"""Where a node comes from in the user's code, in a form that can be shared.

Reports end up in caches, pages and issues, so a file is named as it is imported, without folders of this machine.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from torch import fx

_FRAME = re.compile(r'File "([^"]+)", line (\d+)[^\n]*(?:\n[ \t]+(?![ \t]|File ")([^\n]+))?')
_LIBRARY = Path(__file__).parents[1]
_CALLERS = {str(_LIBRARY / name) for name in ("op.py", "quant_op.py")}  # of our ops, not the model
_CELL = re.compile(r"ipykernel_\d+[/\\][^/\\]+\.py$")


def source_line(node: fx.Node) -> str | None:
    """`file:line` of the user's code that made `node`, if tracing recorded it; `cell:line` in a notebook."""
    frame = _last_frame(node)
    return f"{short_path(frame[0])}:{frame[1]}" if frame else None


def source_text(node: fx.Node) -> str:
    """The text of the line that `source_line` names, empty if tracing did not record it."""
    frame = _last_frame(node)
    return frame[2].strip() if frame else ""


def short_path(path: str) -> str:
    """`path` relative to the folder it is imported from; just the file name if that is unknown."""
    if path.startswith("<"):
        return path
    if _CELL.search(path):
        return "cell"
    path = os.path.abspath(path)
    roots = (os.path.abspath(entry).rstrip(os.sep) + os.sep for entry in sys.path)
    inside = [root for root in roots if len(root) > 1 and path.startswith(root)]
    if not inside:
        return os.path.basename(path)
    return path.removeprefix(max(inside, key=len)).replace(os.sep, "/")


def module_path(node: fx.Node) -> str:
    """The path of the innermost module whose call made `node`, as `named_modules` of what was compiled says it.

    Empty if no module did. A module that a compiled function finds by a name of its own keeps that name:
    `model.layers.0`.
    """
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    for pattern, instead in _PATH_PARTS:
        path = pattern.sub(instead, path)
    return path.strip(".")


#: How Dynamo and PyTorch's wrappers spell a module's path, and how a user does.
_PATH_PARTS = tuple(
    (re.compile(pattern), instead)
    for pattern, instead in (
        (r"^L\['self'\]", ""),  # what was compiled
        (r"^[LG]\['([^']*)'\]", r"\1"),
        (r"\.(__closure__\[\d+\]\.cell_contents|__self__|__wrapped__)", ""),
        (r"\.?\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\b", ""),
        (r"\._modules\b", ""),
        (r"\['([^']*)'\]", r".\1"),
        (r"\[(\d+)\]", r".\1"),
    )
)


def _last_frame(node: fx.Node) -> tuple[str, str, str] | None:
    """The innermost frame outside PyTorch and, where there is one, outside of this library: a line of the model.

    A layer of this library, compiled by itself, has only its own lines; a call of an op is none of them.
    """
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [frame for frame in frames if not short_path(frame[0]).startswith("torch/") and frame[0] not in _CALLERS]
    models = [frame for frame in own if not Path(frame[0]).is_relative_to(_LIBRARY)]
    return (models or own or frames)[-1] if frames else None
