"""links.tag_router: vCons to other lists by their tags."""

import json

import pytest

from conserver import telemetry
from conserver.testing import try_link, two_party_call

ROUTES = {"sales": "sales_list", "vip": "vip_list", "also_sales": "sales_list"}


def tagged(*bodies, purpose="purpose", encoding="json"):
    call = two_party_call()
    for body in bodies:
        call.attachments.append({purpose: "tags", "encoding": encoding, "body": body})
    return call


@pytest.mark.parametrize(
    "call",
    [
        tagged(["sales:yes"]),
        tagged(json.dumps(["sales:yes"])),
        tagged({"sales": "yes"}),
        tagged(json.dumps({"sales": "yes"})),
        tagged(["sales:yes"], purpose="type", encoding="none"),
        tagged(json.dumps(["sales"]), encoding="none"),
        tagged(["other:1"], ["sales:yes"]),
        tagged([7, None, "sales:yes"]),
    ],
)
def test_a_tag_in_any_shape_leads_to_its_list(call):
    """All tags attachments count: lists, mappings, their text, under purpose or type."""
    trial = try_link("links.tag_router", {"tag_routes": ROUTES}, on=call, times=2)

    assert (("sales_list", call.uuid),) == trial.pushes
    assert call.uuid == trial.result


def test_a_list_gets_a_vcon_once():
    """Two tags that lead to one list make one push."""
    call = tagged(["sales:1", "sales:2", "also_sales:x", "vip:1"])

    trial = try_link("links.tag_router", {"tag_routes": ROUTES}, on=call)

    assert (("sales_list", call.uuid), ("vip_list", call.uuid)) == trial.pushes


@pytest.mark.parametrize("body", ["no json", 7, None, "", ["other:sales"], []])
def test_without_a_matching_tag_nothing_is_pushed(body):
    """Other tags, and bodies that hold none, match no route."""
    trial = try_link("links.tag_router", {"tag_routes": ROUTES}, on=tagged(body))

    assert trial.pushes == ()


def test_the_chain_stops_where_the_original_is_not_forwarded():
    """`forward_original: false` ends the chain, with and without a match."""
    options = {"tag_routes": ROUTES, "forward_original": False}

    matched = try_link("links.tag_router", options, on=tagged(["vip:1"]))
    unmatched = try_link("links.tag_router", options)

    assert (matched.result, unmatched.result) == (None, None)
    assert len(matched.pushes) == 1


def test_without_routes_the_vcon_goes_on():
    """A router without routes lets everything pass, `forward_original` or not."""
    trial = try_link("links.tag_router", {"forward_original": False}, on=tagged(["vip:1"]))

    assert trial.before.uuid == trial.result
    assert trial.pushes == ()


def test_the_tags_of_a_signed_vcon_cannot_be_seen():
    """A signed vCon matches no route and goes on."""
    uuid = str(two_party_call().uuid)
    signed = {"payload": "e30", "signatures": [{"header": {"uuid": uuid}, "signature": "AA"}]}

    trial = try_link("links.tag_router", {"tag_routes": ROUTES}, on=signed)

    assert uuid == trial.result
    assert trial.pushes == ()


def test_routes_are_counted_by_list_and_never_by_vcon():
    """The metrics have the link and the list as labels."""
    try_link("links.tag_router", {"tag_routes": ROUTES}, on=tagged(["vip:1", "sales:1"]), name="counted")

    counters = telemetry.metrics.snapshot()["counters"]
    assert counters[telemetry.key("conserver.link.tag_router.routes_matched", link="counted", route="vip_list")] == 1
    assert counters[telemetry.key("conserver.link.tag_router.routed_count", link="counted")] == 2
