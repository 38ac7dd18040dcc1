"""links.check_and_tag: a yes/no question about each dialog, and a tag for yes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from conserver import outbound, telemetry
from conserver.components import load_link
from conserver.config import LinkConfig
from conserver.errors import ConfigError
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
    question = {"tag_name": "greeting", "tag_value": "proper", "evaluation_question": "Was the caller greeted?"}
    where = {"source": {"text_location": "body.transcript"}}
    return {"base_url": service.base_url, "OPENAI_API_KEY": KEY, **question, **where, **more}


def said(applies: object) -> Any:
    return model_server.saying(json.dumps({"applies": applies}))


def test_yes_gives_the_tag(service: ModelServer) -> None:
    """And an analysis that says which link asked for which tag, and what."""
    service.order(said(True))

    vcon = run_link("links.check_and_tag", options(service), on=call_of("hello"), times=2)
    [entry] = analyses(vcon, "tag_evaluation")

    assert vcon.tags == ["greeting:proper"]
    assert json.loads(entry.pop("body")) == {"link_name": "link", "tag": "greeting:proper", "applies": True}
    assert entry == {
        **{"type": "tag_evaluation", "dialog": 0, "vendor": "openai", "encoding": "json"},
        "vendor_schema": {"model": "gpt-5", "evaluation_question": "Was the caller greeted?"},
    }


def test_no_gives_an_analysis_and_no_tag(service: ModelServer) -> None:
    """So that nobody asks again."""
    service.order(said(False))

    vcon = run_link("links.check_and_tag", options(service), on=call_of("hello"), times=2)

    assert (vcon.tags, len(analyses(vcon, "tag_evaluation"))) == ([], 1)


def test_the_model_is_asked_as_the_options_say(service: ModelServer) -> None:
    """Question and text, in JSON mode, and without a temperature, which the default model does not accept."""
    run_link("links.check_and_tag", options(service), on=call_of("hello there"))
    asked = json.loads(service.calls[0].body)

    assert asked["messages"][1]["content"].endswith("\n\nQuestion: Was the caller greeted?\n\nhello there")
    assert "'applies'" in asked["messages"][1]["content"]
    assert (asked["model"], asked["response_format"]) == ("gpt-5", {"type": "json_object"})
    assert asked.keys() == {"model", "messages", "response_format"}


def test_the_text_is_the_body_by_default(service: ModelServer) -> None:
    """Also where a config gives only the other half of `source`."""
    vcon = call_of("ignored")
    vcon.analysis[0] |= {"type": "words", "body": "the words", "encoding": "none"}

    run_link("links.check_and_tag", options(service, source={"analysis_type": "words"}), on=vcon)

    assert json.loads(service.calls[0].body)["messages"][1]["content"].endswith("\n\nthe words")


@pytest.mark.parametrize("missing", ["tag_name", "tag_value", "evaluation_question"])
def test_a_required_option_that_is_missing_or_empty_is_refused(service: ModelServer, missing: str) -> None:
    """By the check, before the first vCon."""
    given = options(service)
    del given[missing]

    with pytest.raises(ConfigError, match=f"option '{missing}' is missing"):
        load_link(LinkConfig(name="link", module="links.check_and_tag", options=given))
    with pytest.raises(ConfigError, match=f"option '{missing}' .*at least 1 character"):
        load_link(LinkConfig(name="link", module="links.check_and_tag", options={**given, missing: ""}))


def test_a_value_that_yaml_reads_as_something_else_is_text(service: ModelServer) -> None:
    """`tag_value: true` and `tag_value: 1` mean what they look like."""
    for value, tag in ((True, "greeting:true"), (1, "greeting:1")):
        service.order(said(True))
        assert run_link("links.check_and_tag", options(service, tag_value=value), on=call_of("hello")).tags == [tag]


def test_links_with_different_tags_do_not_stand_in_each_others_way(service: ModelServer) -> None:
    """Both use the default analysis type, and both are asked."""
    service.order(said(True), said(True))
    first = run_link("links.check_and_tag", options(service), on=call_of("hello"))

    after = run_link("links.check_and_tag", options(service, tag_name="sale", tag_value="yes"), on=first, times=2)

    assert after.tags == ["greeting:proper", "sale:yes"]
    assert len(service.calls) == 2


@pytest.mark.parametrize("body", ["somebody's answer", '{"applies": true}', {"applies": True}])
def test_an_evaluation_without_a_tag_counts_as_the_answer(service: ModelServer, body: Any) -> None:
    """Whoever made it: the dialog is not asked about, and whose tag it would be is not known."""
    vcon = call_of("hello")
    vcon.add_analysis(type="tag_evaluation", dialog=0, vendor="other", body=body)

    after = run_link("links.check_and_tag", options(service), on=vcon)

    assert (after.tags, service.calls) == ([], [])


@pytest.mark.parametrize("as_text", [True, False])
def test_a_tag_that_is_missing_comes_from_the_stored_answer(service: ModelServer, as_text: bool) -> None:
    """After a crash between the two, nothing is paid again."""
    vcon = call_of("hello")
    body = {"link_name": "link", "tag": "greeting:proper", "applies": True}
    given: Any = json.dumps(body) if as_text else body
    vcon.add_analysis(type="tag_evaluation", dialog=0, vendor="openai", body=given, encoding="json")

    after = run_link("links.check_and_tag", options(service), on=vcon, times=2)

    assert (after.tags, service.calls) == (["greeting:proper"], [])


@pytest.mark.parametrize("wrong", ["yes", '{"applies": "perhaps"}', '{"tag": true}', '{"applies": null}'])
def test_an_answer_that_is_neither_fails_after_a_second_try(service: ModelServer, wrong: str) -> None:
    """It is not taken for a no."""
    service.order(model_server.saying(wrong), model_server.saying(wrong))
    vcon = call_of("hello")
    run = Run("links.check_and_tag", options(service), vcon)

    with pytest.raises(Exception, match="the answer is not what was asked for"):
        run()

    assert len(service.calls) == 2
    assert run.store.get(run.uuid).analysis == vcon.analysis
    assert counters() == {"conserver.link.openai.evaluation_failures": 1}


def test_what_is_measured(service: ModelServer) -> None:
    """By link, type and tag, without a UUID."""
    service.order(said(True))
    run_link("links.check_and_tag", options(service), on=call_of("hello"))
    labels = (("analysis_type", "tag_evaluation"), ("link", "link"), ("tag_name", "greeting"), ("tag_value", "proper"))
    snapshot = telemetry.metrics.snapshot()

    assert list(snapshot["histograms"]) == [("conserver.link.openai.evaluation_time", labels)]
    assert snapshot["counters"]["conserver.link.openai.tags_applied", labels] == 1
