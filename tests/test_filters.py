"""filters: which vCons a link works on."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from conserver.filters import Filters, OnlyIf, When, is_included, sampled, selected
from conserver.vcon import Vcon

UUID = "018f3c5e-0000-8000-8000-000000000001"


def vcon(**parts: Any) -> Vcon:
    return Vcon({"uuid": UUID, **parts})


def only_if(**condition: Any) -> Filters:
    return Filters.model_validate({"only_if": condition})


# only_if


def test_without_only_if_every_vcon_is_included() -> None:
    """No condition excludes nobody."""
    assert is_included(Filters(), vcon())


@pytest.mark.parametrize("name", ["purpose", "type"])
def test_an_attachment_is_found_by_its_purpose_or_its_type(name: str) -> None:
    """Both spellings of the condition find both spellings of the entry."""
    newer = vcon(attachments=[{"purpose": "note", "body": "call NEEDS REVIEW soon"}])
    older = vcon(attachments=[{"type": "note", "body": "call NEEDS REVIEW soon"}])
    options = only_if(section="attachments", includes="NEEDS REVIEW", **{name: "note"})

    assert is_included(options, newer)
    assert is_included(options, older)


def test_purpose_wins_over_type() -> None:
    """When both are given, `type` is not looked at."""
    options = only_if(section="attachments", purpose="a", type="b", includes="x")

    assert is_included(options, vcon(attachments=[{"purpose": "a", "body": "x"}]))
    assert not is_included(options, vcon(attachments=[{"type": "b", "body": "x"}]))


def test_an_analysis_is_found_by_its_type_alone() -> None:
    """An analysis has no purpose."""
    options = only_if(section="analysis", type="summary", includes="angry")

    assert is_included(options, vcon(analysis=[{"type": "summary", "body": "an angry customer"}]))
    assert not is_included(options, vcon(analysis=[{"purpose": "summary", "body": "an angry customer"}]))
    assert not is_included(options, vcon(analysis=[{"type": "summary", "body": "a happy customer"}]))


def test_the_text_of_a_json_body_is_searched() -> None:
    """A body that is JSON is searched in its text, which is what older vCons hold."""
    options = only_if(section="analysis", type="mood", includes='"mood": "späte Wut"')

    assert is_included(options, vcon(analysis=[{"type": "mood", "encoding": "json", "body": {"mood": "späte Wut"}}]))


@pytest.mark.parametrize(
    "body",
    [["sale:yes", "team:a"], '["sale:yes", "team:a"]', {"sale": "yes", "team": "a"}],
    ids=["list", "text", "dict"],
)
def test_a_tag_is_found_as_a_whole_in_every_shape_of_tags(body: Any) -> None:
    """`sale:yes` is a member; a piece of it is not."""
    tagged = vcon(attachments=[{"purpose": "tags", "encoding": "json", "body": body}])

    assert is_included(only_if(section="attachments", purpose="tags", includes="sale:yes"), tagged)
    assert not is_included(only_if(section="attachments", purpose="tags", includes="sale"), tagged)


def test_tags_that_cannot_be_read_exclude_and_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A malformed entry does not fail the link."""
    broken = vcon(attachments=[{"purpose": "tags", "body": "{nothing"}])

    assert not is_included(only_if(section="attachments", purpose="tags", includes="a:b"), broken)
    assert "only_if cannot read the attachments, so the link skips the vCon" in caplog.text


def test_entries_that_are_no_objects_are_passed_over() -> None:
    """What does not look like an entry matches nothing."""
    odd = vcon(analysis=[None, "x", {"type": "summary"}], attachments=None)

    assert not is_included(only_if(section="analysis", type="summary", includes="x"), odd)
    assert not is_included(only_if(section="attachments", type="tags", includes="x"), odd)


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        ({"section": "dialog", "type": "x", "includes": "y"}, "Input should be 'attachments' or 'analysis'"),
        ({"section": "analysis", "includes": "y"}, "only_if needs 'purpose'"),
        ({"section": "analysis", "type": "x"}, "Field required"),
        ({"type": "x", "includes": "y"}, "Field required"),
    ],
)
def test_an_incomplete_condition_is_refused(condition: dict[str, str], said: str) -> None:
    """A condition that cannot be met as written is a mistake in the config."""
    with pytest.raises(ValidationError, match=said):
        OnlyIf.model_validate(condition)


# sampling_rate


def test_a_missing_rate_samples_everything() -> None:
    """Left out or null, there is no sampling."""
    assert Filters().sampling_rate == 1
    assert Filters.model_validate({"sampling_rate": None}).sampling_rate == 1
    assert sampled(None, UUID, "analyze")


def test_rate_one_is_always_and_rate_zero_is_never() -> None:
    """0 means none, not all."""
    uuids = [str(number) for number in range(1000)]

    assert all(sampled(1, uuid, "analyze") for uuid in uuids)
    assert not any(sampled(0, uuid, "analyze") for uuid in uuids)


def test_the_rate_is_the_share_and_each_link_draws_for_itself() -> None:
    """A third of the UUIDs is a third, and two links do not always take the same."""
    one = {number for number in range(9000) if sampled(1 / 3, str(number), "one")}
    two = {number for number in range(9000) if sampled(1 / 3, str(number), "two")}

    assert 2800 < len(one) < 3200
    assert 900 < len(one & two) < 1100


def test_a_vcon_is_not_drawn_anew() -> None:
    """The same UUID and link give the same answer, in every process."""
    drawn = [number for number in range(12) if sampled(0.5, str(number), "analyze")]

    assert drawn == [number for number in range(12) if sampled(0.5, str(number), "analyze")]
    assert drawn == [2, 3, 4, 6, 7, 9, 11]


@pytest.mark.parametrize("rate", [-0.1, 1.5, 50])
def test_a_rate_that_is_no_share_is_refused(rate: float) -> None:
    """50 was meant as a percentage: say so instead of sampling everything."""
    with pytest.raises(ValidationError, match="sampling_rate"):
        Filters(sampling_rate=rate)


def test_selected_asks_for_both() -> None:
    """A vCon has to be drawn and to meet the condition."""
    options = Filters.model_validate({"only_if": {"section": "analysis", "type": "a", "includes": "x"}})
    met = vcon(analysis=[{"type": "a", "body": "x"}])

    assert selected(options, met, "link")
    assert not selected(options, vcon(), "link")
    assert not selected(options.model_copy(update={"sampling_rate": 0.0}), met, "link")


# when


FULL = {
    "attachments": [{"purpose": "tags", "encoding": "json", "body": ["sale:yes", "team:a"]}],
    "analysis": [{"type": "transcript"}, {"type": "summary"}],
    "dialog": [{"type": "recording"}],
}


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({}, True),
        ({"has_tag": "sale:yes"}, True),
        ({"has_tag": "sale"}, True),
        ({"has_tag": "sale:no"}, False),
        ({"has_tag": ["x", "team"]}, True),
        ({"lacks_tag": "sale"}, False),
        ({"lacks_tag": ["x", "sale:yes"]}, False),
        ({"lacks_tag": ["x", "sale:no"]}, True),
        ({"has_analysis": "transcript"}, True),
        ({"has_analysis": "translation"}, False),
        ({"lacks_analysis": "translation"}, True),
        ({"lacks_analysis": ["translation", "summary"]}, False),
        ({"has_dialog": "recording"}, True),
        ({"has_dialog": ["text", "transfer"]}, False),
        ({"has_tag": "sale", "has_dialog": "text"}, False),
        ({"has_tag": "sale", "lacks_analysis": "x", "has_dialog": "recording"}, True),
    ],
)
def test_when_holds_if_every_key_does(when: dict[str, Any], expected: bool) -> None:
    """Lists are any-of for `has`, none-of for `lacks`."""
    assert When.model_validate(when).matches(vcon(**FULL)) is expected


def test_a_sealed_vcon_has_nothing_that_could_be_seen() -> None:
    """For a signed vCon no `has` holds and every `lacks` does."""
    signed = Vcon({"payload": "e30", "signatures": [{"signature": "x", "header": {"uuid": UUID}}]})

    assert not When(has_analysis=("transcript",)).matches(signed)
    assert When(lacks_analysis=("transcript",), lacks_tag=("a",)).matches(signed)


def test_an_unknown_key_of_when_is_refused() -> None:
    """A misspelt condition would otherwise always hold."""
    with pytest.raises(ValidationError, match="has_tags"):
        When.model_validate({"has_tags": "x"})


def test_when_can_be_compared_and_hashed() -> None:
    """It is a value: reloading an unchanged config finds nothing changed."""
    assert {When(has_tag=("a",))} == {When.model_validate({"has_tag": "a"})}
