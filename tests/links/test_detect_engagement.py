"""links.detect_engagement: did both sides speak, as an analysis and as a tag."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from conserver import outbound, telemetry
from conserver.testing import run_link, try_link
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


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("true", "true"),
        ("True.", "true"),
        (" 'false'\n", "false"),
        ("**FALSE**", "false"),
        ("The answer: true", "true"),
    ],
)
def test_the_answer_becomes_analysis_and_tag(service: ModelServer, said: str, value: str) -> None:
    """In whatever way the model spells it."""
    service.order(model_server.saying(said))

    vcon = run_link("links.detect_engagement", options(service, prompt="Both?"), on=call_of("hello"), times=2)

    assert vcon.tags == [f"engagement:{value}"]
    assert analyses(vcon, "engagement_analysis") == [
        {
            **{"type": "engagement_analysis", "dialog": 0, "vendor": "openai", "body": value, "encoding": "none"},
            "vendor_schema": {"model": "gpt-4.1", "prompt": "Both?", "is_engaged": value == "true"},
        }
    ]
    assert counters() == {"conserver.link.openai.engagement_detected": int(value == "true")}


def test_the_responses_api_gets_prompt_and_text(service: ModelServer) -> None:
    """The default prompt is the file beside the link."""
    run_link("links.detect_engagement", options(service), on=call_of("hello there"))
    asked = json.loads(service.calls[0].body)

    assert service.calls[0].path == "/v1/responses"
    assert (asked["model"], asked["temperature"]) == ("gpt-4.1", 0.2)
    assert asked["input"].endswith("'false' if not.\n\nhello there")


@pytest.mark.parametrize("said", ["I cannot tell", "true or false", "untrue", "1"])
def test_an_answer_that_is_neither_fails_after_a_second_try(service: ModelServer, said: str) -> None:
    """It is not taken for false."""
    service.order(model_server.saying(said), model_server.saying(said))
    vcon = call_of("hello")
    run = Run("links.detect_engagement", options(service), vcon)

    with pytest.raises(Exception, match="it says neither 'true' nor 'false', or both"):
        run()

    assert len(service.calls) == 2
    assert run.store.get(run.uuid).analysis == vcon.analysis
    assert counters() == {"conserver.link.openai.engagement_analysis_failures": 1}


def test_a_tag_that_is_missing_comes_from_the_stored_answer(service: ModelServer) -> None:
    """After a crash between the two, nothing is paid again."""
    vcon = call_of("hello")
    vcon.add_analysis(type="engagement_analysis", dialog=0, vendor="openai", body="false")

    after = run_link("links.detect_engagement", options(service), on=vcon, times=2)

    assert (after.tags, service.calls) == (["engagement:false"], [])


def test_without_credentials_every_vcon_passes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says why nothing happens."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    caplog.set_level(logging.WARNING)

    trial = try_link("links.detect_engagement", {}, on=call_of("hello"))

    assert (trial.result, analyses(trial.vcon, "engagement_analysis")) == (trial.vcon.uuid, [])
    assert "link link has no credentials, so every vCon just goes on" in caplog.text


def test_the_key_of_the_environment_is_for_openai_alone(monkeypatch: pytest.MonkeyPatch, service: ModelServer) -> None:
    """Existing configs rely on it; with a base_url it would be shown to somebody else."""
    from conserver.models import service_of
    from links.detect_engagement import Options

    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment\n")
    alone = service_of(Options())
    beside = service_of(Options(base_url=service.base_url))
    given = service_of(Options.model_validate({"OPENAI_API_KEY": KEY}))

    assert [one and (one.url, one.api_key) for one in (alone, beside, given)] == [
        ("https://api.openai.com/v1", "sk-of-the-environment"),
        (service.base_url, "none"),
        ("https://api.openai.com/v1", KEY),
    ]
