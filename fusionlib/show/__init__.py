"""Figures for the notebooks: one template, one way to display. Not imported by `import fusionlib`."""

from fusionlib.show.figure import display_figure, figure_bundle

__all__ = ["display_figure", "figure_bundle"]
