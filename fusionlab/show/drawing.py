"""What a notebook shows: a figure with its words, and a table with the same content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


@dataclass(frozen=True)
class Table:
    """A figure's numbers or names as rows of text. The text may be untrusted: it is escaped where it is shown.

    Args:
        title: what the rows are, for the line that unfolds the table.
        columns: the header.
        rows: each as long as the header.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise ValueError(f"the row {list(row)!r} has {len(row)} cells under {len(self.columns)} columns")

    def html(self) -> str:
        """The table as HTML, folded by default."""
        head = "".join(f"<th>{escape(str(cell))}</th>" for cell in self.columns)
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>\n" for row in self.rows
        )
        return (
            f"<details><summary>{escape(self.title)}</summary>\n<table>\n<thead><tr>{head}</tr></thead>\n"
            f"<tbody>\n{body}</tbody>\n</table></details>"
        )

    def text(self) -> str:
        """The table as aligned plain text."""
        cells = [[str(cell) for cell in row] for row in (self.columns, *self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
        return "\n".join([self.title, *(line.rstrip() for line in lines)])


@dataclass(frozen=True)
class Drawing:
    """A figure and the words required to show it.

    Args:
        fig: the plotly figure; colours and fonts come from the project's template.
        caption: names the figure.
        alt: what is drawn, for readers who cannot see it.
        summary: the conclusion, in words.
        table: the same without a script, if the figure has names or numbers worth reading one by one.
    """

    fig: Figure
    caption: str
    alt: str
    summary: str
    table: Table | None = None

    def __post_init__(self) -> None:
        for name in ("caption", "alt", "summary"):
            text = getattr(self, name)
            if not isinstance(text, str) or not text.strip():
                raise ValueError(
                    f"{name} is {text!r}; every figure needs a caption, an alt text and a summary in words"
                )

    @property
    def words(self) -> dict[str, str]:
        """Caption, alt and summary by name."""
        return {"caption": self.caption, "alt": self.alt, "summary": self.summary}
