"""The exercises of the notebooks and their checkers, one module for each topic."""

from fusionlab.exercises.exercise import Exercise

__all__ = ["Exercise"]
