"""The errors of the notebook tools that a user can correct, besides `UsageError`."""

from __future__ import annotations

from fusionlib.commands.errors import UsageError


class SiteError(Exception):
    """An executed notebook cannot be published as it is."""


def missing_extra(error: ImportError) -> UsageError:
    """Return the error to raise when a package of the `notebooks` extra cannot be imported."""
    return UsageError(
        f"cannot import {error.name or error}: the notebook tools are not installed; "
        "run `make walkthrough`, or pip install 'fusionlib[notebooks,models]'"
    )
