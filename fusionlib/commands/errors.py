"""The error for what a user can correct."""

from __future__ import annotations


class UsageError(Exception):
    """A request that cannot be carried out; the message names the value, what is allowed and how to fix it."""
