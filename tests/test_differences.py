"""Whether what a storage holds is the vCon that it was given."""

from __future__ import annotations

from typing import Any

import pytest

from conserver import Vcon
from conserver.differences import is_newer, where_differs
from conserver.testing import two_party_call
from conserver.vcon import to_version


def changed(**members: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    one = two_party_call("0190c0de-1234-8567-8000-000000000001").document
    return one, Vcon(one).to_dict() | members


@pytest.mark.parametrize(
    ("members", "where"),
    [
        ({}, ""),
        ({"subject": "x: y"}, "/subject"),
        ({"analysis": []}, "/analysis/0"),
        ({"x_1": 1}, "/x_1"),
        ({"vcon": "9.0.2"}, "/vcon"),
    ],
)
def test_the_first_place_that_differs_is_named(members: dict[str, Any], where: str) -> None:
    """By its JSON pointer, without what stands there."""
    assert where_differs(*changed(**members)) == where


def test_another_version_of_the_draft_is_no_difference() -> None:
    """A storage may be set to write an older one, and an older vCon may have been saved as it was."""
    document = two_party_call().document
    older = to_version(document, "0.0.1")

    assert where_differs(document, older) == ""
    assert where_differs(older, document) == ""
    assert where_differs(document, older | {"subject": "other"}) == "/subject"


@pytest.mark.parametrize(
    ("one", "than", "newer"),
    [
        ({"updated_at": "2026-01-02T00:00:00Z"}, {"updated_at": "2026-01-01T00:00:00Z"}, True),
        ({"updated_at": "2026-01-02T00:00:00Z"}, {"created_at": "2026-01-01T00:00:00Z"}, True),
        ({"updated_at": "2026-01-01T00:00:00+01:00"}, {"updated_at": "2026-01-01T00:00:00Z"}, False),
        ({"updated_at": "2026-01-01T00:00:00Z"}, {"updated_at": "2026-01-01T00:00:00Z"}, False),
        ({"updated_at": "2026-01-02"}, {"updated_at": "2026-01-01T00:00:00Z"}, False),
        ({"updated_at": "soon"}, {"updated_at": "2026-01-01T00:00:00Z"}, False),
        ({}, {}, False),
    ],
)
def test_newer_is_what_says_so(one: dict[str, Any], than: dict[str, Any], newer: bool) -> None:
    """What says nothing that can be compared is not newer."""
    assert is_newer(one, than) is newer
