"""How the elements of a site divide into tokens: the number of elements per token, from the shapes along the way."""

from __future__ import annotations

from math import prod

from torch import fx

from fusionlib.match.graph import below, describe, numel, shape
from fusionlib.match.reasons import Stop
from fusionlib.match.result import QuantRead, Reading
from fusionlib.match.sizes import equal


def hidden_size(reading: Reading, quant: QuantRead) -> int:
    """Elements per token. Raises Stop if a group, the norm, the weight or a mask does not fit a token.

    A token is the longest static row that the value has between producer and codes: the flattening before the
    quantisation. If the model never flattens, the heads of x make up the row.
    """
    rows = _rows(reading, quant) if quant.row is None else [quant.row]
    hidden = max(rows, default=0)
    if hidden == 0:
        raise Stop("symbolic_group", quant.y, "a row length known at compile time", f"shape {list(shape(quant.y))}")
    group, size = quant.spec.group_size, reading.run
    if hidden % group:
        raise Stop("group_crosses_tokens", quant.anchor, f"groups that divide a token's {hidden}", f"groups of {group}")
    if hidden % size:
        raise Stop("mean_axis", quant.y, f"norms that divide a token's {hidden} elements", f"norms of {size}")
    unit, per_token = max(group, size), [node for node in reading.per_token.values() if node is not None]
    if hidden == unit and quant.row is None and not per_token:
        hidden = _heads_row(reading, hidden)
    for vector in reading.vectors.values():
        if vector is not None:
            hidden = _with_vector(vector, reading, hidden, rows, fixed=quant.row is not None)
    for node in per_token:
        if not equal(numel(node) * hidden, numel(quant.y)):
            raise Stop("token_factor", node, f"one element for each token of {hidden} elements", describe(node))
    return hidden


def _rows(reading: Reading, quant: QuantRead) -> list[int]:
    """Static last dimensions of the shapes that the value has from the producer to the codes."""
    forms = list(reading.given_rows)[:1]
    form: fx.Node | None = quant.value
    while form is not None:
        forms.append(form)
        form = below(form)
    forms += [user for user in quant.codes.users if user.op == "call_function"]
    least = max(reading.run, quant.spec.group_size)
    elements = numel(quant.y)
    shapes = (shape(node) for node in forms if equal(numel(node), elements))
    rows = [sizes[-1] for sizes in shapes if len(sizes) >= 2 and isinstance(sizes[-1], int)]
    flat = [row for row in rows if row >= least]
    # Groups of a row that they do not divide: the row itself shows it.
    return flat or [row for row in rows if row % least]


def _heads_row(reading: Reading, hidden: int) -> int:
    """The row that the heads of an input make up, for a value that is never flattened."""
    for node in reading.given_rows:
        sizes = shape(node)
        tail = sizes[1:] if len(sizes) == 3 else sizes[2:]
        row = prod(tail) if len(sizes) in (3, 4) else 0
        if isinstance(row, int) and row > hidden and row % hidden == 0:
            return row
    return hidden


def _with_vector(vector: fx.Node, reading: Reading, hidden: int, rows: list[int], fixed: bool) -> int:
    """The row for which the weight or bias has one element for each of the norm or of the token."""
    count, size = numel(vector), reading.run
    if count in (size, hidden):
        return hidden
    if not fixed and isinstance(count, int) and (count in rows or count % max(rows) == 0) and count % size == 0:
        return count
    raise Stop("weight_shape", vector, f"{size} or {hidden} elements", f"shape {list(shape(vector))}")


def need_as_many(code: str, node: fx.Node, y: fx.Node, expected: str) -> None:
    """Raise Stop unless `node` has an element for each of the value's; `code` says so where sizes are known."""
    if equal(numel(node), numel(y)):
        return
    known = isinstance(numel(node), int) and isinstance(numel(y), int)
    raise Stop(code if known else "symbolic_shape", node, expected, describe(node))
