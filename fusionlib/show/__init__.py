"""Figures for the notebooks: one template, one way to display. Not imported by `import fusionlib`."""

from fusionlib.show.drawing import Drawing, Table
from fusionlib.show.explore import Choice, Entry, Span, explore
from fusionlib.show.figure import show

__all__ = ["Choice", "Drawing", "Entry", "Span", "Table", "explore", "show"]
