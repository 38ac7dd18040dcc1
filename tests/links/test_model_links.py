"""What every link that asks a model does alike: asks once, keeps no errors, passes what it cannot read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conserver import Vcon, outbound, telemetry
from conserver.ambient import Work, working
from conserver.components import check, load_link
from conserver.config import LinkConfig
from conserver.errors import ConfigError, OutboundError, VconNotFound, VconSealed
from conserver.testing import run_link, throwaway_store, try_link
from tests.asking import KEY, SIGNED, Run, analyses, call_of
from tests.fakes import model_server
from tests.fakes.model_server import ModelServer

#: Each link with the options that it needs beside a service, and the type of what it adds.
LINKS = {
    "analyze_and_label": ({}, "labeled_analysis"),
    "analyze_vcon": ({}, "json_analysis"),
    "check_and_tag": (
        {
            **{"tag_name": "greeting", "tag_value": "proper", "evaluation_question": "Was it a proper greeting?"},
            "source": {"text_location": "body.transcript"},
        },
        "tag_evaluation",
    ),
    "detect_engagement": ({}, "engagement_analysis"),
    "hugging_llm_link": ({}, "llm_analysis"),
}
EACH = pytest.mark.parametrize("name", LINKS)

CONFIG = """
links:
  labels:
    module: links.analyze_and_label
    options:
      OPENAI_API_KEY: your-openai-api-key
      prompt: "Identify the key topics. Return a JSON object with a single key 'labels' containing an array of strings."
      model: gpt-3.5-turbo
      sampling_rate: 1
      temperature: 0.2
      source: {analysis_type: transcript, text_location: body.paragraphs.transcript}
      response_format: {type: json_object}
  whole:
    module: links.analyze_vcon
    options:
      OPENAI_API_KEY: your-openai-api-key
      system_prompt: You analyze conversation data.
      remove_body_properties: true
  greeting:
    module: links.check_and_tag
    options:
      OPENAI_API_KEY: your-openai-api-key
      tag_name: "portal:eval_proper_greeting"
      tag_value: true
      evaluation_question: Did the specialist greet the caller?
      model: gpt-5
      verbosity: low
      minimal_reasoning: true
      response_format: {type: json_object}
  engaged:
    module: server.links.detect_engagement
    options: {model: gpt-4.1, temperature: 0.2}
  hugging:
    module: links.hugging_llm_link
    options: {HUGGINGFACE_API_KEY: your-api-key, use_local_model: false, max_length: 1000, temperature: 0.7}
chains:
  main:
    links: [labels, whole, greeting, engaged, hugging]
    ingress_lists: [main_in]
    enabled: 1
"""


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with closed breakers and empty metrics, no key in the environment, and quick waits."""
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", lambda _: None)
    monkeypatch.setattr(telemetry, "metrics", telemetry.Metrics())
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def service() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


def options(name: str, service: ModelServer, **more: Any) -> dict[str, Any]:
    if name == "hugging_llm_link":
        reached: dict[str, Any] = {
            "API_URL": f"{service.base_url}/chat/completions",
            "HUGGINGFACE_API_KEY": KEY,
        }
    else:
        reached = {"base_url": service.base_url, "OPENAI_API_KEY": KEY}
    return {**reached, **LINKS[name][0], **more}


def added(name: str, vcon: Vcon) -> list[dict[str, Any]]:
    return analyses(vcon, LINKS[name][1])


@EACH
def test_a_second_run_asks_and_adds_nothing(name: str, service: ModelServer) -> None:
    """What is paid for is paid for once."""
    vcon = run_link(f"links.{name}", options(name, service), on=call_of("hello there", "good bye"), times=2)

    assert [entry["dialog"] for entry in added(name, vcon)] in ([0, 1], [0], [[0, 1]])
    assert len(service.calls) == len(added(name, vcon))


@EACH
def test_no_key_gets_into_the_vcon(name: str, service: ModelServer) -> None:
    """Nor the address of the service."""
    text = run_link(f"links.{name}", options(name, service), on=call_of("hello there")).dumps()

    assert KEY not in text
    assert service.url not in text


@EACH
def test_an_unreliable_service_is_asked_again(name: str, service: ModelServer) -> None:
    """429 with Retry-After, 500 and half an answer do not fail the link."""
    service.order(model_server.status(429, retry_after="1"), model_server.status(500), model_server.cut)

    vcon = run_link(f"links.{name}", options(name, service), on=call_of("hello there"))

    assert len(added(name, vcon)) == 1
    assert len(service.calls) == 4


@EACH
@pytest.mark.parametrize(
    "order",
    [
        model_server.status(401, message=f"wrong key {KEY}"),
        model_server.status(500),
        model_server.no_text,
        model_server.empty_choices,
        model_server.invalid_json,
        model_server.cut,
    ],
    ids=["401", "500", "no-text", "empty", "invalid", "cut"],
)
def test_a_failure_is_raised_and_never_stored(name: str, service: ModelServer, order: Any) -> None:
    """The vCon stays as it was, the error has no key, and the next run does the work."""
    service.order(*[order] * 6)
    vcon = call_of("hello there")
    run = Run(f"links.{name}", options(name, service), vcon)

    with pytest.raises(OutboundError) as caught:
        run()

    assert KEY not in str(caught.value)
    assert run.store.get(run.uuid).analysis == vcon.analysis
    service._orders.clear()
    assert len(added(name, run())) == 1


@EACH
def test_a_slow_answer_ends_with_the_timeout(name: str, service: ModelServer) -> None:
    """A link does not wait longer than its options say."""
    service.order(model_server.slow(30))

    with pytest.raises(OutboundError, match="no answer in time"):
        run_link(f"links.{name}", options(name, service, timeout=0.3, retry_secs=0), on=call_of("hello there"))


@EACH
def test_what_somebody_else_added_meanwhile_stays_alone(name: str, service: ModelServer) -> None:
    """Two runs at the same time do not leave two analyses."""
    run = Run(f"links.{name}", options(name, service), call_of("hello there"))

    def meanwhile(exchange: Any) -> None:
        with run.store.edit(run.uuid) as vcon:
            vcon.add_analysis(type=LINKS[name][1], dialog=0, vendor="other", body="first")
        model_server.ok(exchange)

    service.order(meanwhile)

    assert [entry["body"] for entry in added(name, run())] == ["first"]


@EACH
def test_filters_and_sampling_hold(name: str, service: ModelServer) -> None:
    """A vCon that is not selected goes on in the chain as it is."""
    no_tag = {"section": "attachments", "purpose": "tags", "includes": "sale:yes"}

    for more in ({"sampling_rate": 0}, {"only_if": no_tag}):
        trial = try_link(f"links.{name}", options(name, service, **more), on=call_of("hello"))
        assert (trial.result, added(name, trial.vcon)) == (trial.vcon.uuid, [])
    assert service.calls == []


@EACH
def test_a_missing_vcon_is_an_error(name: str, service: ModelServer) -> None:
    """Not a silent stop."""
    link = load_link(LinkConfig(name="link", module=f"links.{name}", options=options(name, service)))

    with working(Work(throwaway_store().writer())), pytest.raises(VconNotFound):
        link.run("018f3c5e-0000-8000-8000-00000000dead", "link", link.options)


@pytest.mark.parametrize("name", [name for name in LINKS if name != "analyze_vcon"])
def test_a_signed_vcon_passes_through(name: str, service: ModelServer) -> None:
    """It shows no transcripts, so there is nothing to do."""
    trial = try_link(f"links.{name}", options(name, service), on=SIGNED)

    assert (trial.result, trial.vcon.document, service.calls) == (trial.before.uuid, SIGNED, [])


def test_a_signed_vcon_cannot_be_analysed_as_a_whole(service: ModelServer) -> None:
    """The model could be shown the envelope; there is no place for the answer, so nothing is paid."""
    with pytest.raises(VconSealed, match="is signed: link 'link' cannot add an analysis"):
        run_link("links.analyze_vcon", options("analyze_vcon", service), on=SIGNED)

    assert service.calls == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("analyze_and_label", "no model service: give OPENAI_API_KEY, or base_url"),
        ("analyze_vcon", "no model service: give OPENAI_API_KEY, or base_url"),
        ("check_and_tag", "option 'tag_name' is missing"),
        ("hugging_llm_link", "give HUGGINGFACE_API_KEY, or API_URL of an endpoint of your own, or use_local_model"),
    ],
)
def test_an_absent_option_block_is_refused_with_what_is_missing(name: str, said: str) -> None:
    """Before the first vCon."""
    with pytest.raises(ConfigError, match=said):
        load_link(LinkConfig(name="link", module=f"links.{name}", options={}))


def test_a_config_of_the_existing_conserver_is_accepted(tmp_path: Path) -> None:
    """Its options in their spellings, on links without and with a key."""
    (tmp_path / "config.yml").write_text(CONFIG.replace("server.links", "links"))

    config, findings = check(tmp_path / "config.yml", {"VCON_REDIS_EXPIRY": "0"})

    assert [str(finding) for finding in findings] == []
    assert config is not None


@EACH
def test_what_is_asked_can_be_sent_whatever_was_said(name: str, service: ModelServer) -> None:
    """A transcript may hold what is no character, half of an emoji say."""
    vcon = run_link(f"links.{name}", options(name, service), on=call_of("hello \ud83d there"))

    assert len(added(name, vcon)) == 1
    json.loads(service.calls[0].body)
