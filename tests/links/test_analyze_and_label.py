"""links.analyze_and_label: labels of each dialog, as an analysis and as tags."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from conserver import outbound, telemetry
from conserver.testing import run_link
from tests.asking import KEY, Run, analyses, call_of, counters
from tests.fakes import model_server
from tests.fakes.model_server import ModelServer


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with closed breakers and empty metrics, and waits that take no time."""
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", lambda _: None)
    monkeypatch.setattr(telemetry, "metrics", telemetry.Metrics())


@pytest.fixture
def service() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


def options(service: ModelServer, **more: Any) -> dict[str, Any]:
    return {"base_url": service.base_url, "OPENAI_API_KEY": KEY, **more}


def test_each_label_becomes_a_tag_beside_the_analysis(service: ModelServer) -> None:
    """The analysis holds the JSON as text, and says which model was asked what."""
    service.order(model_server.saying('Here: {"labels": ["sale", "kettle"]}'))

    vcon = run_link("links.analyze_and_label", options(service, prompt="Labels?"), on=call_of("hello"), times=2)

    assert vcon.tags == ["sale:sale", "kettle:kettle"]
    assert analyses(vcon, "labeled_analysis") == [
        {
            **{"type": "labeled_analysis", "dialog": 0, "vendor": "openai", "encoding": "json"},
            "body": '{"labels": ["sale", "kettle"]}',
            "vendor_schema": {"model": "gpt-4-turbo", "prompt": "Labels?"},
        }
    ]


def test_the_model_is_asked_as_the_options_say(service: ModelServer) -> None:
    """JSON mode and temperature by default; the text follows the prompt."""
    run_link("links.analyze_and_label", options(service, prompt="Give 'labels'."), on=call_of("hello there"))
    asked = json.loads(service.calls[0].body)

    assert (asked["model"], asked["temperature"]) == ("gpt-4-turbo", 0.2)
    assert asked["response_format"] == {"type": "json_object"}
    assert asked["messages"][1] == {"role": "user", "content": "Give 'labels'.\n\nhello there"}


def test_the_default_prompt_asks_for_labels(service: ModelServer) -> None:
    """It is the file beside the link."""
    vcon = run_link("links.analyze_and_label", options(service), on=call_of("kettle broken"))

    assert vcon.tags == ["kettle:kettle", "broken:broken"]


@pytest.mark.parametrize(
    ("labels", "tags"),
    [
        ([" two  words\n", "", "   "], ["two words:two words"]),
        (["urgent: billing", "a:b:c"], ["urgent billing:urgent billing", "a b c:a b c"]),
        (["sale", "sale", "Sale"], ["sale:sale", "Sale:Sale"]),
        ([2024, 1.5, True, None, {"name": "x"}, ["y"]], ["2024:2024", "1.5:1.5"]),
        (["\ud83d"], ["?:?"]),
        ([], []),
    ],
)
def test_only_what_can_be_a_tag_becomes_one(service: ModelServer, labels: list[Any], tags: list[str]) -> None:
    """A tag has one colon, between name and value; text and numbers are labels, nothing else is."""
    service.order(model_server.saying(json.dumps({"labels": labels})))

    assert run_link("links.analyze_and_label", options(service), on=call_of("hello"), times=2).tags == tags


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("sale, kettle", "it holds no JSON"),
        ('["sale"]', "it is JSON, but no object"),
        ('{"labels": "sale"}', "labels: Input should be a valid list"),
    ],
)
def test_an_answer_that_is_no_object_with_labels_is_kept_as_it_came(
    service: ModelServer, said: str, reason: str
) -> None:
    """It is paid for; it gives no tags, says why, and is not asked for again."""
    service.order(model_server.saying(said))

    vcon = run_link("links.analyze_and_label", options(service), on=call_of("hello"), times=2)
    [entry] = analyses(vcon, "labeled_analysis")

    assert (entry["body"], entry["encoding"], vcon.tags) == (said, "none", [])
    assert entry["vendor_schema"]["parse_error"].endswith(reason)
    assert len(service.calls) == 1
    assert counters() == {"conserver.link.openai.json_parse_failures": 1}


def test_an_object_without_labels_is_json_without_tags(service: ModelServer) -> None:
    """As when there was nothing to label."""
    service.order(model_server.saying('{"topics": ["sale"]}'))

    vcon = run_link("links.analyze_and_label", options(service), on=call_of("hello"))

    assert (analyses(vcon, "labeled_analysis")[0]["encoding"], vcon.tags) == ("json", [])


def test_tags_that_are_missing_come_from_the_stored_answer(service: ModelServer) -> None:
    """After a crash between the two, or an import from elsewhere, nothing is paid again."""
    vcon = call_of("hello")
    vcon.add_tag("sale", "sale")
    body = {"labels": ["sale", "kettle"]}
    vcon.add_analysis(type="labeled_analysis", dialog=0, vendor="openai", body=json.dumps(body), encoding="json")

    after = run_link("links.analyze_and_label", options(service), on=vcon, times=2)

    assert (after.tags, service.calls) == (["sale:sale", "kettle:kettle"], [])
    assert counters() == {"conserver.link.openai.labels_added": 1}


def test_an_answer_that_is_paid_for_survives_a_later_failure(service: ModelServer) -> None:
    """The first of two dialogs is stored with its tags, and the next run asks about the second alone."""
    run = Run("links.analyze_and_label", options(service), call_of("one", "two"))
    service.order(model_server.ok, model_server.status(400))

    with pytest.raises(Exception, match="answered 400"):
        run()
    kept = run.store.get(run.uuid)
    after = run()

    assert (kept.tags, after.tags) == (["one:one"], ["one:one", "two:two"])
    assert len(service.calls) == 3


def test_what_is_measured(service: ModelServer) -> None:
    """The names of the contract, without a UUID."""
    run_link("links.analyze_and_label", options(service), on=call_of("kettle broken"))
    service.order(model_server.status(400))
    with pytest.raises(Exception, match="answered 400"):
        run_link("links.analyze_and_label", options(service), on=call_of("kettle"))

    assert counters() == {
        "conserver.link.openai.labels_added": 2,
        "conserver.link.openai.analysis_failures": 1,
    }
    assert list(telemetry.metrics.snapshot()["histograms"]) == [
        ("conserver.link.openai.analysis_time", (("analysis_type", "labeled_analysis"), ("link", "link")))
    ]
