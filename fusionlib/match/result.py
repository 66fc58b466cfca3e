"""What matching one anchor gives: a `Match`, a `Miss` with the node that stopped it, or `Unclaimed`."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import fx

from fusionlib.match.graph import aten, dtype, input_of, is_call, peel_exact
from fusionlib.match.reasons import Reason
from fusionlib.spec import GroupQuant


class Pair(NamedTuple):
    """A role in the computation and the node that plays it."""

    role: str
    node: fx.Node


class Trail(list[Pair]):
    """The pairs found so far, in the order matching found them: how far it got."""

    def add(self, role: str, node: fx.Node) -> None:
        """Record that `node` plays `role`."""
        self.append(Pair(role, node))


@dataclass(frozen=True)
class Miss:
    """An anchor that the fusion named `fusion` starts from but cannot take, and why."""

    anchor: fx.Node
    reason: Reason
    node: fx.Node
    expected: str
    found: str
    pairs: tuple[Pair, ...] = ()
    fusion: str = ""


@dataclass(frozen=True)
class QuantRead:
    """One quantisation, read from its anchor: `y` is quantised by `spec` into `codes` and `scale`.

    `value` is what the quantisation reads, `y` in some shape; `y` is the node that its values come from.
    `codes` and `scale` are the nodes that a rewrite replaces; `scale` is None if only the cast needs it. An
    opaque op fixes how many elements a token has, by the shape of its argument: `row`; None if the graph leaves it
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

    @cached_property
    def scale_bits(self) -> fx.Node | None:
        """The int32 node whose memory `scale` is, as float32: what reads the bits of a scale made of bits reads this.

        Tracing leaves out a view as int32 of a view as float32.
        """
        if self.scale is None or self.opaque or not is_call(self.scale, aten.view.dtype):
            return None
        bits = input_of(self.scale)
        return bits if dtype(bits) is torch.int32 else None

    @property
    def opaque(self) -> bool:
        """Whether an opaque op makes the codes and the scale and so decides their layout."""
        return self.row is not None


@dataclass(frozen=True)
class Reading:
    """One producer, read from its value: the nodes its op takes, by the op's names and in its order, and its spec.

    Args:
        rows: the tensors with an element for each of the value's, [tokens, ...] in some shape; None if the graph has no
            such one. The first is always there.
        spec: what is computed: a frozen dataclass.
        vectors: those with one element for each element of a run or of a token; None if the graph has none.
        run: elements that belong together, such as those of one norm: a token is whole runs.
        kept: further values that the op can return, by the names of `Fusion.emit`.
        per_token: tensors with one element for each token, such as a padding mask; None if the graph has no such one.
        recomputed: values inside that may have other users: these keep them, and the op computes them once more.
    """

    rows: dict[str, fx.Node | None]
    spec: Any
    vectors: dict[str, fx.Node | None] = field(default_factory=dict)
    run: int = 1
    kept: dict[str, fx.Node] = field(default_factory=dict)
    per_token: dict[str, fx.Node | None] = field(default_factory=dict)
    recomputed: frozenset[fx.Node] = frozenset()

    @property
    def given_rows(self) -> list[fx.Node]:
        """The tensors of `rows` that the graph has."""
        return [node for node in self.rows.values() if node is not None]

    @property
    def inputs(self) -> list[fx.Node]:
        """All nodes the op reads."""
        others = (*self.vectors.values(), *self.per_token.values())
        return [*self.given_rows, *(node for node in others if node is not None)]


@dataclass(frozen=True)
class Match:
    """A site that a fusion can take: what to compute from which tensors, and what it replaces.

    `value` is what is quantised, `hidden` the number of its elements per token.
    """

    anchor: fx.Node
    fusion: Any
    value: fx.Node
    hidden: int
    reading: Reading
    quant: QuantRead
    pairs: tuple[Pair, ...] = field(default=())


@dataclass(frozen=True)
class Unclaimed:
    """A site that no fusion starts from: `producer` made what is quantised.

    `value` is what is quantised, as stored: `producer` or its value rounded. `why` is the reason code if the
    quantisation could not be read. `inside`: a product takes the value as it is and quantises it itself, if at all, so
    that no fusion can start.
    """

    anchor: fx.Node
    producer: fx.Node
    value: fx.Node
    why: str = ""
    pairs: tuple[Pair, ...] = field(default=())
    inside: bool = False
