"""models: calls to language models, over a fake service that is really there and misbehaves on order."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from conserver import models, outbound, telemetry
from conserver.errors import ConfigError, OutboundError, OutboundStatus
from conserver.models import ModelOptions, chat, vendor_of
from conserver.usage import safe_options
from tests.fakes import model_server
from tests.fakes.model_server import ModelServer

KEY = "sk-very-secret-key"
MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "Summarise.\n\none two three"}]
UUID = "018f3c5e-0000-8000-8000-000000000001"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with closed breakers and empty metrics."""
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(telemetry, "metrics", telemetry.Metrics())


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which take no time."""
    noted: list[float] = []
    monkeypatch.setattr(outbound, "_sleep", noted.append)
    return noted


@pytest.fixture
def service() -> Iterator[ModelServer]:
    with ModelServer() as running:
        yield running


def options(service: ModelServer, **more: Any) -> ModelOptions:
    return ModelOptions.model_validate({"base_url": service.base_url, "OPENAI_API_KEY": KEY, "model": "gpt-4o", **more})


def ask(opts: ModelOptions) -> models.ChatResult:
    return chat(opts, MESSAGES, vcon_uuid=UUID, sub_type="TEST")


def counted(name: str) -> dict[Any, float]:
    return {labels: value for (n, labels), value in telemetry.metrics.snapshot()["counters"].items() if n == name}


# A call that goes well


def test_the_model_is_asked_and_its_tokens_are_counted(service: ModelServer) -> None:
    """The request holds what was asked, the result the text and what it cost."""
    result = ask(options(service))
    asked = json.loads(service.calls[0].body)

    assert (result.text, result.input_tokens, result.output_tokens) == ("3 words, beginning: one two three", 6, 6)
    assert asked == {"model": "gpt-4o", "messages": MESSAGES, "temperature": 0.0}
    assert service.calls[0].headers["authorization"] == f"Bearer {KEY}"
    assert counted("conserver.model.input_tokens") == {(("model", "gpt-4o"), ("vendor", "openai")): 6}
    assert counted("conserver.model.output_tokens") == {(("model", "gpt-4o"), ("vendor", "openai")): 6}


def test_a_temperature_of_null_is_not_sent(service: ModelServer) -> None:
    """Some models accept no other temperature than their own."""
    ask(options(service, temperature=None))

    assert "temperature" not in json.loads(service.calls[0].body)


def test_a_response_format_is_passed_on(service: ModelServer) -> None:
    """Links that want JSON can ask for it."""
    chat(options(service), MESSAGES, vcon_uuid=UUID, sub_type="TEST", response_format={"type": "json_object"})

    assert json.loads(service.calls[0].body)["response_format"] == {"type": "json_object"}


def test_a_service_that_does_not_count_tokens_will_do(service: ModelServer) -> None:
    """A missing usage counts as nothing."""
    service.order(model_server.no_usage)

    assert ask(options(service)).input_tokens == 0


# Which service


def test_azure_is_asked_in_its_own_way(service: ModelServer) -> None:
    """Deployment in the path, version in the query, the key in a header of its own."""
    opts = ModelOptions(AZURE_OPENAI_ENDPOINT=service.url, AZURE_OPENAI_API_KEY=KEY, model="my-gpt")  # type: ignore[arg-type]

    result = ask(opts)

    assert result.text.startswith("3 words")
    assert service.calls[0].path == "/openai/deployments/my-gpt/chat/completions?api-version=2024-10-21"
    assert service.calls[0].headers["api-key"] == KEY


def test_the_first_complete_group_is_used() -> None:
    """LiteLLM, then Azure, then OpenAI; half a group is none."""
    everything = {
        **{"LITELLM_PROXY_URL": "http://litellm", "LITELLM_MASTER_KEY": "l"},
        **{"AZURE_OPENAI_ENDPOINT": "http://azure", "AZURE_OPENAI_API_KEY": "a", "OPENAI_API_KEY": "o"},
    }
    without_litellm = everything | {"LITELLM_MASTER_KEY": ""}
    without_azure = without_litellm | {"AZURE_OPENAI_ENDPOINT": None}

    chosen = [
        models.service_of(ModelOptions.model_validate(given)) for given in (everything, without_litellm, without_azure)
    ]

    assert [(service.kind, service.url, service.api_key) for service in chosen if service] == [
        ("litellm", "http://litellm", "l"),
        ("azure", "http://azure", "a"),
        ("openai", "https://api.openai.com/v1", "o"),
    ]


@pytest.mark.parametrize("name", ["OPENAI_API_KEY", "openai_api_key", "api_key"])
def test_the_key_has_three_names(name: str) -> None:
    """All spellings of existing configs mean the same; a line break at the end is not part of a key."""
    service = models.service_of(ModelOptions.model_validate({name: f"{KEY}\n"}))

    assert service is not None
    assert service.api_key == KEY


def test_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch, service: ModelServer) -> None:
    """Credentials come from the options alone, whatever the SDK would find elsewhere."""
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_BASE_URL", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "http://from-the-environment")

    ask(ModelOptions(base_url=service.base_url))

    assert "from-the-environment" not in str(service.calls[0])
    assert service.calls[0].headers["authorization"] == "Bearer none"


def test_organization_and_project_are_sent(service: ModelServer) -> None:
    """Under both spellings of existing configs."""
    ask(options(service, organization_key="org-1", project="proj-1"))

    assert service.calls[0].headers["openai-organization"] == "org-1"
    assert service.calls[0].headers["openai-project"] == "proj-1"


def test_options_without_a_service_are_refused() -> None:
    """The config check says what to give, before the first vCon."""
    with pytest.raises(ValidationError, match="no model service: give OPENAI_API_KEY, or base_url, or LITELLM"):
        ModelOptions(model="gpt-4o")


def test_a_refusal_of_options_does_not_show_them() -> None:
    """Keys do not get into the error of a neighbouring option."""
    with pytest.raises(ValidationError) as caught:
        ModelOptions.model_validate({"OPENAI_API_KEY": KEY, "timeout": -1})

    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "vendor"),
    [
        ({"api_key": KEY, "model": "gpt-4o"}, "openai"),
        (
            {"AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com", "AZURE_OPENAI_API_KEY": KEY, "model": "claude"},
            "azure",
        ),
        ({"litellm": 1, "model": "openai/gpt-4o"}, "openai"),
        ({"litellm": 1, "model": "anthropic/claude-3"}, "anthropic"),
        ({"litellm": 1, "model": "vertex_ai/gemini-pro"}, "google"),
        ({"litellm": 1, "model": "groq/llama-3"}, "groq"),
        ({"litellm": 1, "model": "bedrock/anthropic.claude-3"}, "bedrock"),
        ({"litellm": 1, "model": "claude-3-5-sonnet"}, "anthropic"),
        ({"litellm": 1, "model": "o3-mini"}, "openai"),
        ({"litellm": 1, "model": "mixtral-8x7b"}, "mistral"),
        ({"litellm": 1, "model": "command-r"}, "cohere"),
        ({"litellm": 1, "model": "in-house"}, "litellm"),
        ({"base_url": "https://api.groq.com/openai/v1", "model": "llama-3"}, "groq"),
        ({"base_url": "https://api.mistral.ai/v1", "model": "codestral"}, "mistral"),
        ({"base_url": "http://localhost:11434/v1", "model": "llama3"}, "meta"),
        ({"base_url": "http://localhost:8000/v1", "model": "qwen"}, "openai-compatible"),
    ],
)
def test_the_vendor_is_who_really_answers(given: dict[str, Any], vendor: str) -> None:
    """Behind a gateway that is the maker of the model, not the protocol that it speaks."""
    if given.pop("litellm", None):
        given |= {"LITELLM_PROXY_URL": "https://ai.example", "LITELLM_MASTER_KEY": KEY}

    assert vendor_of(ModelOptions.model_validate(given)) == vendor


# Answers that have to be something


class Verdict(BaseModel):
    applies: bool


def verdict(opts: ModelOptions, **more: Any) -> bool:
    return models.chat_json(opts, MESSAGES, Verdict, vcon_uuid=UUID, sub_type="TEST", **more).value.applies


def test_json_is_asked_for_and_checked(service: ModelServer) -> None:
    """The service is told, and what comes is what the schema says."""
    service.order(model_server.saying('Gladly:\n```json\n{"applies": true}\n```'))

    assert verdict(options(service)) is True
    assert json.loads(service.calls[0].body)["response_format"] == {"type": "json_object"}


def test_an_answer_that_is_not_what_was_asked_for_is_asked_for_once_more(service: ModelServer) -> None:
    """Both are paid for, and both are counted."""
    service.order(model_server.saying("yes"), model_server.saying('{"applies": false}'))

    assert verdict(options(service)) is False
    assert len(service.calls) == 2
    assert list(counted("conserver.model.input_tokens").values()) == [12]


@pytest.mark.parametrize(
    ("more", "again", "calls"), [({}, True, 2), ({}, False, 1), ({"retry_secs": 0}, True, 1)], ids=str
)
def test_then_it_is_an_error_that_holds_the_answer(
    service: ModelServer, more: dict[str, Any], again: bool, calls: int
) -> None:
    """Two calls, or one where the budget or the caller allows no more; the message quotes nothing."""
    service.order(*[model_server.saying("the customer said 4711")] * 2)

    with pytest.raises(
        models.InvalidAnswer, match=r"^model 'gpt-4o': the answer is not what .*: it holds no JSON$"
    ) as caught:
        verdict(options(service, **more), again=again)

    assert (caught.value.text, len(service.calls)) == ("the customer said 4711", calls)


def test_the_second_question_has_what_is_left_of_the_budget(service: ModelServer) -> None:
    """The two together take no longer than one may."""
    seen: list[float] = []

    def answer(opts: ModelOptions) -> models.ChatResult:
        seen.append(opts.retry_secs)
        return models.ChatResult("no", 0, 0)

    with pytest.raises(models.InvalidAnswer):
        models.valid(options(service, retry_secs=100), answer, int)

    assert seen[0] == 100
    assert 0 < seen[1] < 100


# The Responses API


def test_the_responses_api_is_asked_and_counted(service: ModelServer) -> None:
    """One text in, one text out."""
    result = models.respond(options(service), "one two three", vcon_uuid=UUID, sub_type="TEST")

    assert result == models.ChatResult("3 words, beginning: one two three", 3, 6)
    assert service.calls[0].path == "/v1/responses"
    assert json.loads(service.calls[0].body) == {"model": "gpt-4o", "input": "one two three", "temperature": 0.0}
    assert list(counted("conserver.model.output_tokens").values()) == [6]


@pytest.mark.parametrize("order", [model_server.cut, model_server.invalid_json, model_server.status(500)])
def test_a_response_that_is_none_is_asked_for_again(service: ModelServer, waits: list[float], order: Any) -> None:
    """As with a chat completion."""
    service.order(order)

    assert models.respond(options(service), "one", vcon_uuid=UUID, sub_type="TEST").text.startswith("1 words")
    assert len(service.calls) == 2


def test_a_response_without_text_says_why(service: ModelServer) -> None:
    """The same question would be cut off again."""
    service.order(model_server.no_text)

    with pytest.raises(OutboundError, match=r"answered without a text \(finish_reason 'incomplete'\)"):
        models.respond(options(service), "one", vcon_uuid=UUID, sub_type="TEST")


# What models are particular about


@pytest.mark.parametrize("known", [False, True])
def test_a_model_that_refuses_a_temperature_is_asked_without(
    service: ModelServer, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    """Existing configs give one to models that accept only their own; the second time it is known."""
    monkeypatch.setattr(models, "_own_temperature", set())
    for _ in range(1 + known):
        service._orders.clear()
        service.order(*[model_server.no_temperature] * 2)
        assert ask(options(service, temperature=0.2, model="gpt-5")).text.startswith("3 words")

    asked = ["temperature" in json.loads(call.body) for call in service.calls]
    assert asked == [True, False, False][: 2 + known]


def test_what_is_no_character_is_replaced(service: ModelServer) -> None:
    """A transcript that was cut in the middle of an emoji can be asked about."""
    chat(options(service), [{"role": "user", "content": "one \ud83d two"}], vcon_uuid=UUID, sub_type="TEST")

    assert json.loads(service.calls[0].body)["messages"][0]["content"] == "one ? two"


def test_prices_give_a_cost(service: ModelServer) -> None:
    """By a million tokens; without prices there is no such number."""
    ask(options(service))
    assert counted("conserver.model.cost") == {}

    ask(options(service, price_per_million_input=2, price_per_million_output=10))

    assert list(counted("conserver.model.cost").values()) == [pytest.approx(6 * 2e-6 + 6 * 1e-5)]


def test_an_answer_without_text_is_counted(service: ModelServer) -> None:
    """It is paid for all the same."""
    service.order(model_server.no_text)

    with pytest.raises(OutboundError):
        ask(options(service))

    assert list(counted("conserver.model.input_tokens").values()) == [6]


# Calls that do not go well


def test_a_busy_service_is_asked_again_when_it_says(service: ModelServer, waits: list[float]) -> None:
    """Retry-After is obeyed."""
    service.order(model_server.status(429, retry_after="30"))

    assert ask(options(service)).text.startswith("3 words")
    assert (waits, len(service.calls)) == ([30.0], 2)


def test_the_waits_double_from_two_seconds(service: ModelServer, waits: list[float]) -> None:
    """Six calls at most, and the error says how many there were."""
    service.order(*[model_server.status(500)] * 9)

    with pytest.raises(OutboundStatus, match=r"model 'gpt-4o' at http://127.*: answered 500: .* \(6 attempts\)$"):
        ask(options(service))

    assert len(service.calls) == 6
    assert [longest / 2 <= wait <= longest for wait, longest in zip(waits, (2, 4, 8, 16, 32), strict=True)] == [
        True
    ] * 5


@pytest.mark.parametrize(
    "order",
    [model_server.cut, model_server.invalid_json, model_server.empty_choices, model_server.status(503)],
    ids=["cut", "invalid", "empty", "503"],
)
def test_an_answer_that_is_none_is_asked_for_again(service: ModelServer, waits: list[float], order: Any) -> None:
    """Half an answer, no JSON, no choice: the next call usually brings one."""
    service.order(order, order)

    assert ask(options(service)).text.startswith("3 words")
    assert len(service.calls) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_what_repeating_cannot_cure_is_not_repeated(service: ModelServer, waits: list[float], status: int) -> None:
    """A wrong key and a wrong request cost one call."""
    service.order(model_server.status(status, message=f"wrong: {KEY}"))

    with pytest.raises(OutboundStatus, match=rf"answered {status}\b") as caught:
        ask(options(service))

    assert (caught.value.status, len(service.calls)) == (status, 1)
    assert KEY not in str(caught.value)


def test_a_refused_key_says_what_to_check(service: ModelServer) -> None:
    """And quotes nothing, since services repeat parts of the key."""
    service.order(model_server.status(401, message="Incorrect API key provided: sk-ve*****key"))

    with pytest.raises(OutboundStatus, match=r"answered 401; check the key in the options$"):
        ask(options(service))


def test_a_choice_without_text_is_an_error_that_says_why(service: ModelServer) -> None:
    """The same question would be filtered again."""
    service.order(model_server.no_text)

    with pytest.raises(OutboundError, match=r"answered without a text \(finish_reason 'content_filter'\)"):
        ask(options(service))

    assert len(service.calls) == 1


@pytest.mark.parametrize("order", [model_server.drip, model_server.slow(30)], ids=["drip", "slow"])
def test_a_slow_answer_ends_with_the_timeout(service: ModelServer, order: Any) -> None:
    """The timeout holds for the whole answer, also when it comes byte by byte."""
    service.order(order)
    started = time.monotonic()

    with pytest.raises(OutboundError, match="no answer in time"):
        ask(options(service, timeout=0.5, retry_secs=0))

    assert time.monotonic() - started < 5


def test_repeating_can_be_left_to_the_chain(service: ModelServer, waits: list[float]) -> None:
    """With `retry_secs: 0` no thread waits."""
    service.order(model_server.status(429, retry_after="1"))

    with pytest.raises(OutboundStatus, match="answered 429"):
        ask(options(service, retry_secs=0))

    assert (waits, len(service.calls)) == ([], 1)


def test_a_service_that_is_not_there_says_so(waits: list[float]) -> None:
    """The error names the host and the reason."""
    with pytest.raises(OutboundError, match=r"at http://127.0.0.1:9: no answer \(ConnectError: .*refused"):
        ask(ModelOptions(base_url="http://127.0.0.1:9/v1"))


def test_a_key_that_is_no_header_is_not_shown(service: ModelServer) -> None:
    """A key with a line break in it fails without being quoted."""
    with pytest.raises(OutboundError, match="not valid in HTTP") as caught:
        ask(options(service, OPENAI_API_KEY=f"{KEY}\nx: y"))

    assert KEY not in str(caught.value)


# Usage


def test_usage_is_reported(service: ModelServer) -> None:
    """One report a call, with the token and the numbers."""
    ask(options(service, send_ai_usage_data_to_url=f"{service.url}/usage", ai_usage_api_token="t0ken"))
    report = service.reports[0]

    assert report.pop("created_at").endswith("Z")
    assert report == {
        **{"record_id": UUID, "type": "VCON_PROCESSING", "sub_type": "TEST", "unit_type": "tokens"},
        **{"input_units": 6, "output_units": 6, "ai_model": "gpt-4o"},
    }
    assert service.requests[-1].headers["authorization"] == "Bearer t0ken"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/usage", "nonsense", "{here}/no-such-path"])
def test_a_report_that_fails_changes_nothing(service: ModelServer, caplog: pytest.LogCaptureFixture, url: str) -> None:
    """The answer is kept, the model is not asked again, and the log says that the report is missing."""
    result = ask(options(service, send_ai_usage_data_to_url=url.format(here=service.url), ai_usage_api_token="t0ken"))

    assert (result.text[:7], len(service.calls)) == ("3 words", 1)
    assert "the usage of a model call is not reported" in caplog.text
    assert "t0ken" not in caplog.text


# The rest


def test_secret_options_are_left_out() -> None:
    """What is stored or logged of the options holds no key, at any depth."""
    opts = ModelOptions.model_validate(
        {"OPENAI_API_KEY": KEY, "model": "m", "LITELLM_PROXY_URL": "http://x", "send_ai_usage_data_to_url": "http://y"}
    )

    kept = safe_options(opts)

    assert {"model", "temperature", "base_url"} <= kept.keys()
    assert kept.keys().isdisjoint({"api_key", "LITELLM_PROXY_URL", "LITELLM_MASTER_KEY", "send_ai_usage_data_to_url"})
    assert safe_options({"a": {"password": "x", "b": 1}, "My-Token": "y"}) == {"a": {"b": 1}}
    assert KEY not in repr(opts)


def test_nothing_secret_or_personal_is_logged(
    service: ModelServer, waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the key nor the conversation, not even at DEBUG."""
    caplog.set_level(logging.DEBUG)
    service.order(model_server.status(500))

    ask(options(service, OPENAI_API_KEY=KEY))

    assert KEY not in caplog.text
    assert "one two three" not in caplog.text


def test_threads_share_one_client(service: ModelServer) -> None:
    """A client is made once a process and option set, however many threads ask first at the same time."""
    service = models.service_of(options(service))
    assert service is not None
    seen: list[object] = []
    threads = [threading.Thread(target=lambda: seen.append(models._client(service))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)

    assert len(seen) == 8
    assert len(set(map(id, seen))) == 1


def test_without_the_package_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch, service: ModelServer) -> None:
    """`openai` is an extra; who lacks it is told how to get it."""
    monkeypatch.setitem(sys.modules, "openai", None)

    with pytest.raises(ConfigError, match=r"models need a package: .*openai.* \(pip install 'conserver\[openai\]'\)"):
        ask(options(service))


def test_importing_models_does_not_import_the_sdk() -> None:
    """It takes most of a second, and `conserver check` imports every link."""
    code = "import sys, conserver.models; sys.exit('openai' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
