"""links.hugging_llm_link: a model of Hugging Face, there or here."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from conserver import outbound, telemetry
from conserver.components import load_link
from conserver.config import LinkConfig
from conserver.errors import ConfigError, OutboundError
from conserver.testing import run_link
from links import hugging_llm_link
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


def chat(service: ModelServer, **more: Any) -> dict[str, Any]:
    return {"API_URL": f"{service.base_url}/chat/completions", "HUGGINGFACE_API_KEY": KEY, **more}


def generation(service: ModelServer, **more: Any) -> dict[str, Any]:
    return {"API_URL": f"{service.url}/models/mine", **more}


SAID = '{"summary": "A kettle.", "sentiment": "calm", "key_points": ["it is broken"]}'


def body_of(entry: dict[str, Any]) -> Any:
    return json.loads(entry["body"])


def test_all_transcripts_become_one_analysis(service: ModelServer) -> None:
    """What the model says as JSON is JSON; beside it stand model and parameters."""
    service.order(model_server.saying(SAID))

    vcon = run_link("links.hugging_llm_link", chat(service), on=call_of("hello there", "good bye"), times=2)
    [entry] = analyses(vcon, "llm_analysis")
    parameters = {"max_length": 1000, "temperature": 0.7}
    model = "meta-llama/Llama-2-70b-chat-hf"

    assert body_of(entry) == {"analysis": json.loads(SAID), "model": model, "parameters": parameters}
    assert entry["vendor_schema"] == {"opts": {"model": model, **parameters}}
    assert (entry["vendor"], entry["encoding"], entry["dialog"]) == ("huggingface", "json", [0, 1])


def test_an_answer_in_words_is_kept_as_text(service: ModelServer) -> None:
    """Models that were not trained for JSON do what they can."""
    service.order(model_server.saying("It was about a kettle."))

    vcon = run_link("links.hugging_llm_link", chat(service), on=call_of("hello"))

    assert body_of(analyses(vcon, "llm_analysis")[0])["analysis"] == "It was about a kettle."
    assert analyses(vcon, "llm_analysis")[0]["dialog"] == 0


def test_a_chat_completion_is_asked_for(service: ModelServer) -> None:
    """With the key, the model and its parameters; the tokens are counted."""
    run_link("links.hugging_llm_link", chat(service, model="m", max_length=7, temperature=0), on=call_of("hello"))
    request = service.calls[0]
    asked = json.loads(request.body)
    tokens = [name for name, _ in telemetry.metrics.snapshot()["counters"]]

    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert (asked["model"], asked["max_tokens"], asked["temperature"]) == ("m", 7, 0)
    assert asked["messages"][0]["content"].endswith("\n\nhello")
    assert tokens == ["conserver.model.input_tokens", "conserver.model.output_tokens"]


@pytest.mark.parametrize(
    ("temperature", "drawn"), [(0.7, {"do_sample": True, "temperature": 0.7}), (0, {"do_sample": False})]
)
def test_text_generation_is_asked_of_other_urls(service: ModelServer, temperature: float, drawn: Any) -> None:
    """An endpoint of one's own, which may need no key."""
    run_link("links.hugging_llm_link", generation(service, temperature=temperature), on=call_of("hello"))
    request = service.calls[0]

    assert "authorization" not in request.headers
    assert json.loads(request.body)["parameters"] == {"max_new_tokens": 1000, "return_full_text": False, **drawn}


def test_a_prompt_that_comes_back_is_cut_off(service: ModelServer) -> None:
    """Some endpoints give it in front of the answer, whatever they are asked for."""

    def echo(exchange: Any) -> None:
        asked = json.loads(exchange.request.body)["inputs"]
        model_server.saying(f"{asked} It was calm.")(exchange)

    service.order(echo)
    vcon = run_link("links.hugging_llm_link", generation(service), on=call_of("hello"))

    assert body_of(analyses(vcon, "llm_analysis")[0])["analysis"] == "It was calm."


@pytest.mark.parametrize(
    ("order", "said"),
    [
        (model_server.empty_choices, "the answer holds no text"),
        (model_server.saying(" "), "answered without a text"),
        (model_server.invalid_json, "the answer is not JSON"),
        (model_server.status(503, message="loading"), r"answered 503.*loading.*\(6 attempts\)"),
    ],
    ids=["empty", "blank", "invalid", "503"],
)
def test_text_generation_that_fails_is_never_stored(service: ModelServer, order: Any, said: str) -> None:
    """As with a chat completion."""
    service.order(*[order] * 6)
    vcon = call_of("hello")
    run = Run("links.hugging_llm_link", generation(service), vcon)

    with pytest.raises(OutboundError, match=said):
        run()

    assert run.store.get(run.uuid).analysis == vcon.analysis
    assert counters() == {"conserver.link.huggingface.llm_failures": 1}


def test_an_answer_of_the_wrong_shape_is_an_error(service: ModelServer) -> None:
    """An error that comes with status 200, say."""
    service.order(lambda exchange: exchange.answer(200, b'{"error": "busy"}', content_type="application/json"))

    with pytest.raises(OutboundError, match=r"the answer holds no text \(KeyError\)"):
        run_link("links.hugging_llm_link", generation(service), on=call_of("hello"))


def test_without_a_transcript_nothing_is_asked(service: ModelServer) -> None:
    """Nor where the text stands elsewhere in it."""
    vcon = call_of("hello")
    vcon.analysis[0]["body"] = {"paragraphs": {"transcript": "hello"}}

    assert analyses(run_link("links.hugging_llm_link", chat(service), on=vcon), "llm_analysis") == []
    assert service.calls == []


# A local model: an injected one, since a real one needs gigabytes


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What a made-up package `transformers` was asked for."""
    noted: list[tuple[Any, ...]] = []

    def pipeline(task: str, *, model: str) -> Any:
        noted.append((task, model))

        def generate(prompt: str, **parameters: Any) -> Any:
            noted.append((prompt.rpartition("\n\n")[2], parameters))
            return [{"generated_text": SAID if model == "good" else " "}]

        return generate

    module = ModuleType("transformers")
    module.__spec__ = sys.__spec__
    module.pipeline = pipeline  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "transformers", module)
    hugging_llm_link._generator.cache_clear()
    return noted


def test_a_local_model_is_loaded_once_and_asked(asked: list[tuple[Any, ...]]) -> None:
    """Without a key, and without any request."""
    given = {"use_local_model": True, "model": "good", "max_length": 5}

    for text in ("hello", "good bye"):
        vcon = run_link("links.hugging_llm_link", given, on=call_of(text))
        assert body_of(analyses(vcon, "llm_analysis")[0])["analysis"] == json.loads(SAID)

    parameters = {"max_new_tokens": 5, "return_full_text": False, "do_sample": True, "temperature": 0.7}
    assert asked == [("text-generation", "good"), ("hello", parameters), ("good bye", parameters)]


def test_a_local_model_that_says_nothing_fails(asked: list[tuple[Any, ...]]) -> None:
    """It is counted, and nothing is stored."""
    with pytest.raises(Exception, match="the local model 'mute' answered without a text"):
        run_link("links.hugging_llm_link", {"use_local_model": True, "model": "mute"}, on=call_of("hello"))

    assert counters() == {"conserver.link.huggingface.llm_failures": 1}


def test_a_local_model_without_its_package_is_found_by_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    with pytest.raises(ConfigError, match=r"package transformers \(pip install 'conserver\[transformers\]'\)"):
        load_link(LinkConfig(name="link", module="links.hugging_llm_link", options={"use_local_model": True}))
