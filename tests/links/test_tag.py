"""links.tag: fixed tags on every vCon."""

import json

import pytest
from pydantic import ValidationError

from conserver import VconNotFound, VconSealed
from conserver.ambient import Work, working
from conserver.components import load_link
from conserver.config import LinkConfig
from conserver.testing import run_link, throwaway_store, try_link, two_party_call
from links.tag import Options

SIGNED = {
    "payload": "eyJwYXJ0aWVzIjpbXX0",
    "signatures": [{"header": {"uuid": "0190c0de-0000-8000-8000-000000000001"}, "signature": "AA"}],
}


@pytest.mark.parametrize(
    ("given", "tags"),
    [
        (["a", "b"], ["a:a", "b:b"]),
        (["dealer:1234", "a:b:c"], ["dealer:1234", "a:b:c"]),
        ({"dealer": "Moss", "vip": True, "code": 7}, ["dealer:Moss", "vip:true", "code:7"]),
        (["a", {"dealer": 1234}], ["a:a", "dealer:1234"]),
        ("a:b", ["a:b"]),
        ([], []),
        (["empty:"], ["empty:"]),
    ],
)
def test_tags_may_be_pairs_names_or_a_mapping(given, tags):
    """Every way to write the option ends in the same `name:value` tags."""
    vcon = run_link("links.tag", {"tags": given}, times=2)

    assert tags == vcon.tags


def test_without_options_the_tags_of_the_contract_are_added():
    """A link without `options:` uses the defaults."""
    vcon = run_link("links.tag")

    assert vcon.tags == ["iron:iron", "maiden:maiden"]


@pytest.mark.parametrize(
    "attachment",
    [
        {"purpose": "tags", "encoding": "json", "body": ["old:one"]},
        {"purpose": "tags", "encoding": "json", "body": '["old:one"]'},
        {"purpose": "tags", "encoding": "none", "body": ["old:one"]},
        {"purpose": "tags", "encoding": "json", "body": {"old": "one"}},
        {"type": "tags", "encoding": "json", "body": json.dumps({"old": "one"})},
        {"type": "tags", "body": ["old:one"]},
    ],
)
def test_tags_that_are_there_are_kept_whatever_their_shape(attachment):
    """A list, the text of a list and a mapping, under purpose or type, all keep their tags."""
    call = two_party_call()
    call.attachments.append(attachment)

    vcon = run_link("links.tag", {"tags": ["new:two", "old:one"]}, on=call, times=2)

    assert vcon.tags == ["old:one", "new:two"]
    assert len(vcon.attachments) == 1


def test_a_tag_that_is_there_is_no_change():
    """Adding the same tag again does not save the vCon, so its updated_at stays."""
    once = run_link("links.tag", {"tags": ["a"]})

    again = run_link("links.tag", {"tags": ["a"]}, on=once)

    assert once == again


def test_the_chain_goes_on_with_the_same_vcon():
    """The link returns the UUID that it was given."""
    trial = try_link("links.tag", {"tags": ["a"]})

    assert trial.before.uuid == trial.result


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        ([":value"], "'' is no name of a tag"),
        ({"a:b": "c"}, "'a:b' is no name of a tag"),
        ([None], "None is no tag"),
        ({"a": ["b"]}, r"\['b'\] is no tag"),
    ],
)
def test_what_is_no_tag_is_refused_by_the_options(tags, message):
    """A mistake in the option is found by the check, not on the first vCon."""
    with pytest.raises(ValidationError, match=message):
        Options(tags=tags)


def test_a_missing_vcon_is_an_error():
    """A vCon that does not exist is no silent stop."""
    link = load_link(LinkConfig(name="tag", module="links.tag"))

    with (
        working(Work(throwaway_store().writer())),
        pytest.raises(VconNotFound, match="there is no vCon 0190c0de-0000-8000-8000-000000000000"),
    ):
        link.run("0190c0de-0000-8000-8000-000000000000", link.name, link.options)


def test_a_signed_vcon_is_not_tagged():
    """A change would break the signature, so VconSealed says what it is."""
    with pytest.raises(VconSealed, match="is signed"):
        run_link("links.tag", {"tags": ["a"]}, on=SIGNED)
