"""A figure as a still picture: plain SVG drawn from the figure's own data, for readers that run no script.

It is the last resort, not a second plotly: it knows what this project's figures are made of (lines, markers and bars
with their texts, axes, a legend, straight lines and remarks) and says so where a figure holds something else.
"""

from fusionlab.show.still.picture import StillError, picture

__all__ = ["StillError", "picture"]
