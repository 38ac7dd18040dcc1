"""conserver.workload: what a host works on, and where it reads what Redis has not."""

from __future__ import annotations

from typing import Any

import pytest

from conserver.components import Storage
from conserver.errors import StorageError
from conserver.workload import read_through

UUID = "018f3c5e-0000-8000-8000-00000000000a"


def storage(name: str, answer: Any) -> Storage:
    def get(uuid: str, options: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Storage(name, "m", lambda uuid, options: None, {}, get=get, secrets=frozenset({"geheim"}))


def test_the_first_storage_that_has_it_is_believed() -> None:
    """In the order of the config; one that cannot be asked is passed over while another answers."""
    storages = [storage("down", OSError("gone")), storage("empty", None), storage("good", {"uuid": UUID})]

    assert read_through(storages, UUID) == {"uuid": UUID}


def test_nobody_has_it_only_if_everybody_could_be_asked() -> None:
    """A storage that is down may have it: that is an error, not an absence; its secrets stay out of it."""
    assert read_through([storage("empty", None)], UUID) is None
    with pytest.raises(StorageError) as told:
        read_through([storage("empty", None), storage("down", OSError("no answer to geheim"))], UUID)

    assert str(told.value).startswith(f"vCon {UUID} is not in Redis, and storage 'down' could not be asked: OSError")
    assert "geheim" not in str(told.value)
