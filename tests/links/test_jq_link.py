"""links.jq_link: vCons through a jq filter."""

import sys

import pytest
from pydantic import ValidationError

from conserver import LinkError, telemetry
from conserver.testing import try_link, two_party_call
from links import jq_link
from links.jq_link import Options


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        (".", True),
        ('.subject == "Broken kettle"', True),
        ('.subject | test("toaster")', False),
        (".parties | length > 1", True),
        (".missing", False),
        ("empty", False),
        ("0", True),
        ('""', True),
        ("false, true", False),
        ('true, error("never reached")', True),
        ('any(.analysis[]; .type == "transcript")', True),
    ],
)
def test_the_first_output_decides(text, matches):
    """null, false and no output are no match; everything else, also 0 and the empty text, is one."""
    forwarded = try_link("links.jq_link", {"filter": text}, times=2)
    reverse = try_link("links.jq_link", {"filter": text, "forward_matches": False})

    assert matches is (forwarded.result is not None)
    assert matches is (reverse.result is None)


def test_an_error_of_the_filter_is_a_dead_letter():
    """A filter that fails on a vCon says so; the vCon is not stopped in silence."""
    with pytest.raises(LinkError, match=r"jq filter '.subject \| keys': string \(\"Broken kettle\"\) has no keys"):
        try_link("links.jq_link", {"filter": ".subject | keys"})


def test_a_filter_that_is_no_jq_is_refused_by_the_options():
    """Bad syntax is found by the check."""
    with pytest.raises(ValidationError, match=r"'.a \|' is no jq program: syntax error, unexpected end of file"):
        Options(filter=".a |")


def test_other_things_in_list_bodies_are_passed_over_where_strings_are_needed():
    """A list body with numbers among its strings does not fail a filter on strings."""
    call = two_party_call()
    call.add_attachment(purpose="tags", body=[7, "dealer:1"], encoding="json")
    text = 'any(.attachments[].body[]; startswith("dealer:"))'

    trial = try_link("links.jq_link", {"filter": text}, on=call, name="mended")

    assert call.uuid == trial.result
    retries = telemetry.key("conserver.link.jq.string_body_array_retries", link="mended")
    assert telemetry.metrics.snapshot()["counters"][retries] == 1


def test_strings_needed_elsewhere_stay_an_error():
    """Where no list body is at fault, the error is told."""
    with pytest.raises(LinkError, match=r"startswith\(\) requires string inputs"):
        try_link("links.jq_link", {"filter": '.parties | startswith("x")'})


def test_a_signed_vcon_is_seen_as_its_envelope():
    """The filter works on signed vCons too."""
    uuid = str(two_party_call().uuid)
    signed = {"payload": "e30", "signatures": [{"header": {"uuid": uuid}, "signature": "AA"}]}

    trial = try_link("links.jq_link", {"filter": 'has("payload")'}, on=signed)

    assert uuid == trial.result


def test_a_missing_package_is_told_with_its_cure(monkeypatch):
    """Without jq the options are refused, and the message says what to type."""
    monkeypatch.setitem(sys.modules, "jq", None)
    jq_link._compiled.cache_clear()

    with pytest.raises(ValidationError, match=r"the package jq is missing \(pip install 'conserver\[jq\]'\)"):
        Options()


def test_what_was_filtered_out_is_counted():
    """Stops and errors have a metric each, by link."""
    try_link("links.jq_link", {"filter": "false"}, name="counting")
    with pytest.raises(LinkError):
        try_link("links.jq_link", {"filter": "error"}, name="counting")

    counters = telemetry.metrics.snapshot()["counters"]
    assert counters[telemetry.key("conserver.link.jq.vcon_filtered_out", link="counting")] == 1
    assert counters[telemetry.key("conserver.link.jq.filter_errors", link="counting")] == 1
