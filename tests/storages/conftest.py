"""What all tests of storages share."""

from __future__ import annotations

import pytest

from conserver import outbound


@pytest.fixture(autouse=True)
def _closed_breakers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with closed breakers, and waits between attempts take no time."""
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", lambda _: None)
