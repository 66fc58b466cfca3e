from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def own_state(tmp_path, monkeypatch):
    """Keep tests from recording anything in the user's progress."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
