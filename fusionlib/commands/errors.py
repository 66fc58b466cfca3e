"""The error of a command that a person can correct."""

from __future__ import annotations


class UsageError(Exception):
    """What was asked for cannot be done; the message names the value, what is allowed and the way out."""
