"""links.expire_vcon: the life of the copy in Redis."""

import pytest
from pydantic import ValidationError

from conserver.testing import try_link, two_party_call
from links.expire_vcon import Options


@pytest.mark.parametrize(("options", "seconds"), [({"seconds": 60}, 60), ({"seconds": "60"}, 60), ({}, 86400)])
def test_the_chain_is_asked_for_the_expiry(options, seconds):
    """The expiry begins when the chain settles, so the link only asks for it."""
    trial = try_link("links.expire_vcon", options, times=2)

    assert seconds == trial.expire_secs
    assert trial.before.uuid == trial.result
    assert trial.before == trial.vcon


def test_a_signed_vcon_may_expire():
    """An expiry changes nothing in the vCon, so its form does not matter."""
    uuid = str(two_party_call().uuid)
    signed = {"payload": "e30", "signatures": [{"header": {"uuid": uuid}, "signature": "AA"}]}

    assert try_link("links.expire_vcon", on=signed).expire_secs == 86400


@pytest.mark.parametrize("seconds", [0, -1])
def test_an_expiry_that_deletes_at_once_is_refused(seconds):
    """0 would delete the vCon while others may still want it."""
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        Options(seconds=seconds)
