"""links.delay: a pause in the chain."""

import pytest
from pydantic import ValidationError

from conserver.testing import try_link
from links import delay
from links.delay import Options


@pytest.mark.parametrize(("given", "slept"), [(1.5, 1.5), ("2", 2.0), (0, 0.0), (-3, 0.0), (None, 5.0)])
def test_it_sleeps_as_told(monkeypatch, given, slept):
    """The default is 5 seconds, and a negative number is none at all."""
    naps = []
    monkeypatch.setattr(delay.time, "sleep", naps.append)
    options = {} if given is None else {"seconds": given}

    result = delay.run("a-uuid", "delay", Options(**options))

    assert ("a-uuid", [slept]) == (result, naps)


@pytest.mark.parametrize("seconds", ["soon", float("inf"), float("nan"), None])
def test_what_is_no_duration_is_refused(seconds):
    """A link that would sleep for ever is a mistake in the config."""
    with pytest.raises(ValidationError, match="number"):
        Options(seconds=seconds)


def test_the_vcon_stays_as_it_is():
    """The link neither reads nor writes the vCon."""
    trial = try_link("links.delay", {"seconds": 0}, times=2)

    assert trial.before == trial.vcon
    assert trial.before.uuid == trial.result
