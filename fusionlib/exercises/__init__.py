"""The exercises of the notebooks and their checkers, one module for each topic."""

from fusionlib.exercises.exercise import Exercise

__all__ = ["Exercise"]
