"""What matching one anchor gives: a `Match` with specs and tensors, or a `Miss` with the node that stopped it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from torch import fx

from fusionlib.match.graph import peel_exact
from fusionlib.match.reasons import Reason
from fusionlib.spec import GatedNorm, GroupQuant


class Pair(NamedTuple):
    """A part of the computation and the node that plays it."""

    role: str
    node: fx.Node


class Trail(list):
    """The pairs found so far, in the order in which matching found them: how far it got."""

    def add(self, role: str, node: fx.Node) -> None:
        """Record that `node` plays `role`."""
        self.append(Pair(role, node))


@dataclass(frozen=True)
class Miss:
    """An anchor that could not be read, and why."""

    anchor: fx.Node
    reason: Reason
    node: fx.Node
    expected: str
    found: str
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class QuantRead:
    """One quantisation, read from its anchor: `y` is quantised by `spec` into `codes` and `scale`.

    `value` is what the quantisation reads, `y` in some shape; `y` is the node that its values come from.
    `codes` and `scale` are the nodes that a rewrite replaces; `scale` is None where nobody but the cast needs it. An
    opaque op fixes how many elements a token has, by the shape of its argument: `row`; None where the graph leaves it
    open.
    """

    anchor: fx.Node
    value: fx.Node
    spec: GroupQuant
    codes: fx.Node
    scale: fx.Node | None
    row: int | None = None

    @cached_property
    def y(self) -> fx.Node:
        """The node that computes what is quantised."""
        return peel_exact(self.value)

    @property
    def opaque(self) -> bool:
        """Whether an opaque op makes the codes and the scale, so that it decides their layout."""
        return self.row is not None


@dataclass(frozen=True)
class NormRead:
    """One gated norm, read from its value: the deepest nodes that are its tensors, and its spec."""

    x: fx.Node
    gate: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    spec: GatedNorm


@dataclass(frozen=True)
class Match:
    """A site that the specs reproduce: what to compute from which tensors, and what it replaces."""

    anchor: fx.Node
    normed: fx.Node
    hidden: int
    norm: NormRead
    quant: QuantRead
    pairs: tuple[Pair, ...] = field(default=())
