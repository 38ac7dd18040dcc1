"""links.analyze: a question to a model about each transcript, answered once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from conserver import Vcon, outbound, telemetry
from conserver.ambient import Work, working
from conserver.components import load_link
from conserver.config import LinkConfig
from conserver.errors import ConfigError, OutboundError, OutboundStatus, VconNotFound
from conserver.store import VconStore
from conserver.testing import run_link, throwaway_store, try_link, two_party_call
from links import analyze
from tests.fakes import model_server
from tests.fakes.model_server import ModelServer

KEY = "sk-very-secret-key"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with closed breakers and empty metrics, and waits that take no time."""
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", lambda _: None)
    monkeypatch.setattr(telemetry, "metrics", telemetry.Metrics())


@pytest.fixture
def service() -> Iterator[ModelServer]:
    """A model service of our own."""
    with ModelServer() as running:
        yield running


def options(service: ModelServer, **more: Any) -> dict[str, Any]:
    return {"base_url": service.base_url, "OPENAI_API_KEY": KEY, "prompt": "Summarise this:", "model": "gpt-4o", **more}


def call_of(*texts: str) -> Vcon:
    """A vCon with one dialog a text."""
    vcon = two_party_call()
    del vcon.dialog[:], vcon.analysis[:]
    for index, text in enumerate(texts):
        vcon.add_dialog({"type": "recording", "start": vcon.created_at, "parties": [0, 1]})
        vcon.add_analysis(type="transcript", dialog=index, vendor="example", body={"paragraphs": {"transcript": text}})
    return vcon


def summaries(vcon: Vcon) -> list[tuple[Any, str]]:
    return [(entry["dialog"], entry["body"]) for entry in vcon.analysis if entry["type"] == "summary"]


def counters() -> dict[str, float]:
    return {name: value for (name, _), value in telemetry.metrics.snapshot()["counters"].items()}


def test_each_transcript_gets_an_analysis_once(service: ModelServer) -> None:
    """The answer stands beside the dialog it is about; a second run asks and adds nothing."""
    vcon = run_link("links.analyze", options(service), on=call_of("hello there", "good bye"), times=2)

    assert summaries(vcon) == [(0, "2 words, beginning: hello there"), (1, "2 words, beginning: good bye")]
    assert len(service.calls) == 2


def test_what_is_written_says_who_answered_what(service: ModelServer) -> None:
    """Vendor, model and prompt are kept with the answer, and nothing else of the options."""
    entry = run_link("links.analyze", options(service), on=call_of("hello there")).analysis[-1]

    assert entry == {
        **{"type": "summary", "dialog": 0, "vendor": "openai", "encoding": "none"},
        "body": "2 words, beginning: hello there",
        "vendor_schema": {"model": "gpt-4o", "prompt": "Summarise this:"},
    }


def test_the_prompt_comes_before_the_text(service: ModelServer) -> None:
    """The messages are those of existing configs: the system's, and prompt, empty line, text."""
    run_link("links.analyze", options(service, system_prompt="Be kind."), on=call_of("hello there"))

    assert json.loads(service.calls[0].body)["messages"] == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Summarise this:\n\nhello there"},
    ]


def test_what_is_answered_or_says_nothing_is_skipped(service: ModelServer) -> None:
    """Dialogs with such an analysis, without a transcript, or with an empty one cost nothing."""
    vcon = call_of("done", " ", "to do")
    vcon.add_dialog({"type": "recording"})
    vcon.add_analysis(type="summary", dialog=0, vendor="somebody", body="by hand")
    vcon.add_analysis(type="transcript", dialog=3, vendor="other", body="elsewhere in the body")

    after = run_link("links.analyze", options(service), on=vcon)

    assert summaries(after) == [(0, "by hand"), (2, "2 words, beginning: to do")]


def test_a_transcript_of_several_dialogs_is_asked_about_once(service: ModelServer) -> None:
    """Its answer is about the same dialogs."""
    vcon = call_of("one call in two parts")
    vcon.analysis[0]["dialog"] = [0, 1]

    after = run_link("links.analyze", options(service), on=vcon, times=2)

    assert summaries(after) == [([0, 1], "5 words, beginning: one call in two parts")]


@pytest.mark.parametrize(
    ("body", "encoding", "location"),
    [
        ("plain text", "none", "body"),
        ('{"transcript": "plain text"}', "json", "body.transcript"),
        ({"segments": [{"text": "plain text"}]}, "json", "body.segments[0].text"),
        ({"segments": [{"text": "plain text"}]}, "json", "body.segments.0.text"),
    ],
)
def test_the_text_is_found_where_the_option_says(service: ModelServer, body: Any, encoding: str, location: str) -> None:
    """A dotted path into the analysis, through JSON in whatever form it is kept."""
    vcon = call_of("ignored")
    vcon.analysis[0] |= {"type": "words", "body": body, "encoding": encoding}

    after = run_link(
        "links.analyze", options(service, source={"analysis_type": "words", "text_location": location}), on=vcon
    )

    assert summaries(after) == [(0, "2 words, beginning: plain text")]


def test_half_a_source_is_filled_up_with_defaults(service: ModelServer) -> None:
    """Nested options are merged as well."""
    opts = analyze.Options.model_validate(options(service, source={"text_location": "body"}))

    assert opts.source.analysis_type == "transcript"


@pytest.mark.parametrize("location", ["body.nothing", "body.paragraphs.transcript.deeper", "body.paragraphs", "x[9]"])
def test_a_path_that_leads_nowhere_is_no_text(service: ModelServer, location: str) -> None:
    """Then there is nothing to ask."""
    vcon = run_link("links.analyze", options(service, source={"text_location": location}), on=call_of("hello"))

    assert (summaries(vcon), service.calls) == ([], [])


def test_filters_and_sampling_hold(service: ModelServer) -> None:
    """A vCon that is not selected goes on in the chain as it is."""
    no_tag = {"section": "attachments", "purpose": "tags", "includes": "sale:yes"}

    for more in ({"sampling_rate": 0}, {"only_if": no_tag}):
        trial = try_link("links.analyze", options(service, **more), on=call_of("hello"))
        assert (trial.result, summaries(trial.vcon)) == (trial.vcon.uuid, [])

    tagged = call_of("hello")
    tagged.add_tag("sale", "yes")
    assert summaries(run_link("links.analyze", options(service, only_if=no_tag), on=tagged))
    assert len(service.calls) == 1


def test_an_unreliable_service_is_asked_again(service: ModelServer) -> None:
    """429, 500 and half an answer on the way do not fail the link."""
    service.order(model_server.status(429, retry_after="1"), model_server.status(500), model_server.cut)

    vcon = run_link("links.analyze", options(service), on=call_of("hello there"))

    assert summaries(vcon) == [(0, "2 words, beginning: hello there")]
    assert len(service.calls) == 4


def test_a_failure_is_counted_and_raised(service: ModelServer) -> None:
    """The error names model, host and status, and no key."""
    service.order(model_server.status(401, message=f"no such key {KEY}"))

    with pytest.raises(OutboundStatus, match=r"model 'gpt-4o' at http://127.* answered 401; check the key") as caught:
        run_link("links.analyze", options(service), on=call_of("hello there"))

    assert KEY not in str(caught.value)
    assert counters() == {"conserver.link.openai.analysis_failures": 1}


def test_time_and_tokens_are_measured_without_uuids(service: ModelServer) -> None:
    """The series of a link do not grow with the number of vCons."""
    run_link("links.analyze", options(service), on=call_of("hello there"))
    run_link("links.analyze", options(service), on=call_of("good bye"))
    snapshot = telemetry.metrics.snapshot()

    assert list(snapshot["histograms"]) == [
        ("conserver.link.openai.analysis_time", (("analysis_type", "summary"), ("link", "link")))
    ]
    assert counters().keys() == {"conserver.model.input_tokens", "conserver.model.output_tokens"}


class Run:
    """A link on a vCon in a store, for what a failed run leaves behind."""

    def __init__(self, vcon: Vcon, given: dict[str, Any]) -> None:
        self.store: VconStore = throwaway_store()
        self.store.create(vcon)
        self.uuid = str(vcon.uuid)
        self.link = load_link(LinkConfig(name="summary", module="links.analyze", options=given))

    def __call__(self) -> Vcon:
        with working(Work(self.store.writer())):
            self.link.run(self.uuid, "summary", self.link.options)
        return self.store.get(self.uuid)


def test_answers_that_are_paid_for_survive_a_later_failure(service: ModelServer) -> None:
    """When the second of three calls fails, the first answer is stored, and the next run asks two questions."""
    run = Run(call_of("one", "two", "three"), options(service))
    service.order(model_server.ok, model_server.status(400))

    with pytest.raises(OutboundStatus):
        run()
    kept = summaries(run.store.get(run.uuid))
    after = run()

    assert kept == [(0, "1 words, beginning: one")]
    assert [dialog for dialog, _ in summaries(after)] == [0, 1, 2]
    assert len(service.calls) == 4


def test_an_answer_that_somebody_else_gave_meanwhile_is_kept_alone(service: ModelServer) -> None:
    """Two runs at the same time do not leave two analyses."""
    run = Run(call_of("hello"), options(service))

    def meanwhile(exchange: Any) -> None:
        with run.store.edit(run.uuid) as vcon:
            vcon.add_analysis(type="summary", dialog=0, vendor="other", body="first")
        model_server.ok(exchange)

    service.order(meanwhile)

    assert summaries(run()) == [(0, "first")]


def test_usage_is_reported_as_analyze(service: ModelServer) -> None:
    """And a report that fails neither fails the link nor asks the model again."""
    for url in (f"{service.url}/usage", "http://127.0.0.1:9/usage"):
        opts = options(service, send_ai_usage_data_to_url=url, ai_usage_api_token="t0ken")
        assert summaries(run_link("links.analyze", opts, on=call_of("hello there")))

    assert [report["sub_type"] for report in service.reports] == ["ANALYZE"]
    assert len(service.calls) == 2


def test_a_sealed_vcon_passes_through(service: ModelServer) -> None:
    """It shows no transcripts, so there is nothing to do."""
    signed = Vcon(
        {
            "payload": "eyJ1dWlkIjogIjAxOGYzYzVlLTAwMDAtODAwMC04MDAwLTAwMDAwMDAwMDAwMSJ9",
            "signatures": [{"signature": "x", "header": {"uuid": "018f3c5e-0000-8000-8000-000000000001"}}],
        }
    )

    trial = try_link("links.analyze", options(service), on=signed)

    assert (trial.result, trial.vcon.document, service.calls) == (signed.uuid, signed.document, [])


def test_a_missing_vcon_is_an_error(service: ModelServer) -> None:
    """Not a silent stop."""
    link = load_link(LinkConfig(name="summary", module="links.analyze", options=options(service)))

    with working(Work(throwaway_store().writer())), pytest.raises(VconNotFound):
        link.run("018f3c5e-0000-8000-8000-00000000dead", "summary", link.options)


def test_a_question_that_is_filtered_fails_the_link(service: ModelServer) -> None:
    """An empty answer is not stored as a summary."""
    service.order(model_server.no_text)

    with pytest.raises(OutboundError, match="answered without a text"):
        run_link("links.analyze", options(service), on=call_of("hello"))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "no model service: give OPENAI_API_KEY, or base_url"),
        ({"base_url": "http://x/v1", "sampling_rate": 50}, "sampling_rate"),
        ({"base_url": "http://x/v1", "only_if": {"section": "analysis"}}, "only_if"),
    ],
)
def test_options_that_cannot_work_are_found_by_the_check(given: dict[str, Any], said: str) -> None:
    """Before the first vCon, with the cure."""
    with pytest.raises(ConfigError, match=said):
        load_link(LinkConfig(name="summary", module="links.analyze", options=given))
