"""Figures for the notebooks: one template, one way to display them. Not imported by `import fusionlib`."""

from fusionlab.show.drawing import Drawing, Table
from fusionlab.show.explore import Choice, Entry, Span, explore
from fusionlab.show.figure import show

__all__ = ["Choice", "Drawing", "Entry", "Span", "Table", "explore", "show"]
