"""What authors of links and storages import in their tests.

    from conserver.testing import run_link, storage_contract

    def test_adds_the_tag():
        vcon = run_link("links.tag", {"tags": ["a"]}, times=2)

        assert vcon.tags == ["a:a"]

    def test_keeps_the_contract(tmp_path):
        storage_contract("storages.file", {"path": str(tmp_path)})

With `pytest_plugins = ["conserver.testing"]` in conftest.py, `run_link` is a fixture as well, which looks for vCon
files beside the test. The store is a real one, on a Redis-compatible server of its own that starts with the first use
and ends with the process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from conserver.differences import difference
from conserver.testing.calls import throwaway_store, two_party_call
from conserver.testing.links import Given, Trial, run_link, try_link
from conserver.testing.storages import (
    DATA_RULES,
    LIST_RULES,
    ONE_WAY_RULES,
    STORAGE_RULES,
    UNREACHABLE,
    Backend,
    storage_contract,
)
from conserver.vcon import Vcon

try:
    import pytest
except ImportError:  # `conserver try` runs links where nobody tests
    pytest = None  # type: ignore[assignment]

__all__ = [
    "DATA_RULES",
    "LIST_RULES",
    "ONE_WAY_RULES",
    "STORAGE_RULES",
    "UNREACHABLE",
    "Backend",
    "Given",
    "Trial",
    "difference",
    "run_link",
    "storage_contract",
    "throwaway_store",
    "try_link",
    "two_party_call",
]


if pytest is not None:

    @pytest.fixture(name="run_link")
    def _run_link(request: pytest.FixtureRequest) -> Callable[..., Vcon]:
        """`run_link`, which finds vCon files beside the test."""

        def run(module: str | ModuleType, options: Mapping[str, Any] | None = None, **how: Any) -> Vcon:
            return try_link(module, options, beside=request.path.parent, **how).vcon

        return run
