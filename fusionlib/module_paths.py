"""Paths of modules in a model, whose numbers tell layers apart."""

from __future__ import annotations

import re

#: A part of a path that is a number: that of a layer, or of an expert.
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)|^\d+(?=\.|$)")


def numberless(path: str) -> str:
    """A path with `*` for the numbers of layers: `model.layers.*.mlp.down_proj`."""
    return NUMBER.sub("*", path)
