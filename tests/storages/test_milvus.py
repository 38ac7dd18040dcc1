"""storages.milvus without an engine: what a vCon says, its embedding (a fake service), and options."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from conserver import StorageError, Vcon
from conserver.ambient import Work, working
from conserver.errors import OutboundError
from conserver.telemetry import metrics
from conserver.testing import throwaway_store, two_party_call
from storages import milvus
from storages.milvus import Options, embedding, words
from tests.fakes.model_server import ModelServer, cut, empty_choices, invalid_json, status

UUID = "0190c0de-1234-8567-8000-000000000001"
KEY = "sk-very-secret"


@pytest.fixture
def service() -> Iterator[ModelServer]:
    with ModelServer() as server:
        yield server


def options(service: ModelServer, **more: Any) -> Options:
    return Options(**{"base_url": service.base_url, "api_key": KEY, "embedding_dim": 8, **more})


def embed(service: ModelServer, text: str = "A kettle", **more: Any) -> list[float]:
    return embedding.embed(text, options(service, **more), vcon_uuid=UUID)


def said(**members: Any) -> str:
    return str(words.row_of(Vcon({"uuid": UUID, **members}), "m")["text"])


def sums() -> Counter[str]:
    total: Counter[str] = Counter()
    for (name, _), value in metrics.snapshot()["counters"].items():
        total[name] += value
    return total


def test_the_text_is_the_one_of_the_existing_conserver() -> None:
    """Its parts, in its order, so that a text which is there already is known again."""
    text = said(
        dialog=[{"type": "text", "body": "Hi there"}, {"type": "recording", "body": "QUJD"}],
        parties=[{"name": "Ada", "role": "agent"}, {"partyId": 7}, {"tel": "+1"}],
        metadata={"title": "Kettle", "description": "It is cold", "created": "2026"},
        analysis=[
            {"type": "summary", "body": "A kettle is replaced."},
            {"type": "transcript", "body": {"text": "My kettle does not boil."}},
            {"type": "labels", "body": "not this"},
        ],
    )

    assert text == (
        "My kettle does not boil. A kettle is replaced. Party: agent Ada. Party: 7. "
        "Title: Kettle. Description: It is cold. Created: 2026. Hi there"
    )


@pytest.mark.parametrize(
    ("body", "more"),
    [
        ("spoken words", {}),
        ('{"text": "spoken words"}', {"encoding": "json"}),
        ({"transcript": "spoken words"}, {}),
        ({"paragraphs": {"transcript": "spoken words"}}, {}),
        ({"transcript": {"text": "spoken words"}, "segments": [{"text": "not twice"}]}, {}),
        ({"segments": [{"text": "spoken"}, {"text": ""}, 7, {"text": "words"}]}, {}),
    ],
    ids=["text", "json", "transcript", "paragraphs", "wtf", "segments"],
)
def test_a_transcript_may_have_any_of_its_forms(body: Any, more: dict[str, Any]) -> None:
    """Those of the services that make transcripts."""
    assert said(analysis=[{"type": "transcript", "body": body, **more}]) == "spoken words"


@pytest.mark.parametrize(
    ("entry", "text"),
    [
        ({"body": "SGVsbG8", "encoding": "base64url"}, "Hello"),
        ({"body": "_w", "encoding": "base64url"}, ""),
        ({"body": "Hello", "encoding": "none"}, "Hello"),
        ({"body": ["Hello"]}, ""),
        ({}, ""),
    ],
    ids=["base64url", "no-text", "none", "list", "nothing"],
)
def test_a_text_dialog_is_read_as_it_is_encoded(entry: dict[str, Any], text: str) -> None:
    """What is no text says nothing."""
    assert said(dialog=[{"type": "text", **entry}]) == text


def test_what_is_odd_says_nothing() -> None:
    """And is no error."""
    row = words.row_of(
        Vcon(
            {
                "uuid": UUID,
                "metadata": "x",
                "created_at": 7,
                "subject": {},
                "analysis": [{}, {"type": "transcript"}, {"type": "summary", "body": {"text": [1]}}],
                "dialog": [{"type": "text", "body": None}],
                "parties": [{"name": ["Ada"]}],
            }
        ),
        "m",
    )

    assert row == {
        "party_id": "party_index:0",
        "text": "",
        "created_at": "",
        "subject": "",
        "metadata_title": "",
        "has_transcript": True,
        "has_summary": True,
        "party_count": 1,
        "embedding_model": "m",
        "embedding_version": "1.0",
    }


def test_what_is_too_long_is_cut_between_characters() -> None:
    """The limits of the fields count bytes, and half a character is none."""
    long = "é" * 40_000
    parties = [{"name": "x" + long}, *[{}] * 40_000]
    row = words.row_of(Vcon({"subject": long, "parties": parties, "metadata": {"title": "\ud800" + long}}), long)

    sizes = {name: len(value.encode()) for name, value in row.items() if isinstance(value, str)}
    assert (sizes["text"], sizes["party_id"], sizes["embedding_model"]) == (65534, 99, 50)
    assert (sizes["subject"], sizes["metadata_title"], row["party_count"]) == (254, 255, 32767)


@pytest.mark.parametrize(
    ("party", "name"),
    [
        ({"uuid": "u", "tel": "+1"}, "u"),
        ({"tel": "+1", "mailto": "a@b"}, "tel:+1"),
        ({"mailto": "a@b", "name": "Ada"}, "mailto:a@b"),
        ({"name": "Ada", "role": "agent"}, "agent:Ada"),
        ({"name": "Ada"}, "Ada"),
        ({"role": "agent"}, "agent"),
        ({"userId": 7}, "7"),
    ],
    ids=["uuid", "tel", "mailto", "both", "name", "role", "other"],
)
def test_a_party_is_named_as_the_existing_conserver_does(party: dict[str, Any], name: str) -> None:
    """By the first party that has a name."""
    assert words.row_of(Vcon({"parties": [{}, party]}), "m")["party_id"] == name


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("2026-01-02T03:04:05.678901+02:00", "2026-01-02T01:04:05.678Z"),
        ("2026-01-02T03:04:05", "2026-01-02T03:04:05.000Z"),
        ("yesterday", ""),
        ("0001-01-01T00:00:00+14:00", ""),
        (None, ""),
    ],
)
def test_a_date_fits_into_its_field(given: Any, stored: str) -> None:
    """In UTC, so that texts compare as dates do."""
    assert words.row_of(Vcon({"created_at": given}), "m")["created_at"] == stored


def test_the_embedding_is_that_of_the_text(service: ModelServer) -> None:
    """Asked for as OpenAI's protocol wants it."""
    vector = embed(service, organization="org", project="proj")
    [request] = service.calls

    assert (len(vector), any(vector)) == (8, True)
    assert (request.method, request.path) == ("POST", "/v1/embeddings")
    assert json.loads(request.body) == {"model": "text-embedding-3-small", "input": "A kettle"}
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert (request.headers["openai-organization"], request.headers["openai-project"]) == ("org", "proj")


def test_azure_and_litellm_are_asked_in_their_own_way(service: ModelServer) -> None:
    """With the credentials that links take."""
    azure = {"AZURE_OPENAI_ENDPOINT": service.url, "AZURE_OPENAI_API_KEY": "az", "embedding_model": "my deployment"}
    proxy = {"LITELLM_PROXY_URL": service.url, "LITELLM_MASTER_KEY": "lite"}
    for more in (azure, proxy):
        embed(service, **more)
    first, second = service.calls

    assert first.path == "/openai/deployments/my%20deployment/embeddings?api-version=2024-10-21"
    assert (first.headers["api-key"], second.headers["authorization"]) == ("az", "Bearer lite")
    assert second.path == "/embeddings"


@pytest.mark.parametrize("order", [cut, status(429, retry_after="1"), status(500), status(503)])
def test_what_may_go_better_is_tried_again(service: ModelServer, order: Any) -> None:
    """A Retry-After is obeyed."""
    service.order(order)

    assert len(embed(service)) == 8
    assert len(service.calls) == 2


@pytest.mark.parametrize(
    ("code", "cure"),
    [(401, "check the key in the options"), (404, "check embedding_model, and base_url if it is set"), (400, "check")],
)
def test_a_refusal_says_what_to_check(service: ModelServer, code: int, cure: str) -> None:
    """Neither the key nor the text is in it."""
    service.order(status(code, f"key {KEY} may not see A kettle"))
    with pytest.raises(OutboundError, match=f"answered {code}; {cure}") as told:
        embed(service)

    assert KEY not in f"{told.value!r} {told.value.__cause__!r}"
    assert "kettle" not in f"{told.value!r} {told.value.__cause__!r}"
    assert len(service.calls) == 1


def with_vector(vector: Any) -> Any:
    """Answer with this for an embedding."""
    body = json.dumps({"data": [{"embedding": vector}]}).encode()
    return lambda exchange: exchange.answer(200, body, content_type="application/json")


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (invalid_json, "the answer is not JSON"),
        (empty_choices, "the answer is no embedding"),
        (with_vector(None), "the answer is no embedding"),
        (with_vector(["a"]), "the answer is no embedding"),
        (with_vector([1, 2]), "the embedding has 2 numbers, but embedding_dim is 8"),
        (with_vector([0.0] * 8), "the embedding says nothing"),
        (with_vector([math.nan] * 8), "the embedding says nothing"),
    ],
    ids=["no-json", "empty", "null", "words", "short", "zeros", "nan"],
)
def test_what_is_no_embedding_is_an_error(service: ModelServer, order: Any, reason: str) -> None:
    """It is not stored, nor are zeros instead."""
    service.order(order)

    with pytest.raises(OutboundError, match=reason):
        embed(service)


def test_a_text_that_is_too_long_for_the_model_is_embedded_in_halves(service: ModelServer) -> None:
    """The embedding of the whole is their mean, and as long as they are."""
    text = "word " * 400
    service.order(status(400), with_vector([1] + [0] * 7), with_vector([0, 1] + [0] * 6))
    whole = embed(service, text)
    given = [json.loads(request.body)["input"] for request in service.calls]

    assert [len(part) for part in given] == [2000, 1000, 1000]
    assert given[1] + given[2] == text
    assert whole == pytest.approx([math.sqrt(0.5), math.sqrt(0.5), *[0] * 6])


def test_what_is_refused_however_short_is_an_error(service: ModelServer) -> None:
    """The halves come to an end."""
    service.order(*[status(400)] * 20)
    with pytest.raises(OutboundError, match="answered 400"):
        embed(service, "word " * 2000)

    assert len(service.calls) == 5


def test_what_it_cost_is_counted_and_reported(service: ModelServer) -> None:
    """As the links do."""
    before = sums()["conserver.model.input_tokens"]
    embed(service, send_ai_usage_data_to_url=f"{service.url}/usage")
    [report] = service.reports

    assert sums()["conserver.model.input_tokens"] == before + 2
    assert (report["sub_type"], report["record_id"], report["input_units"]) == ("MILVUS_EMBEDDING", UUID, 2)


def test_options_of_existing_configs_are_taken() -> None:
    """All of them, with the types that they have there."""
    opts = Options(
        host="localhost",
        port="19530",
        collection_name="vcons",
        embedding_model="text-embedding-3-small",
        embedding_dim=1536,
        api_key=KEY,
        organization=None,
        create_collection_if_missing=False,
        skip_if_exists=True,
        index_type="IVF_FLAT",
        metric_type="L2",
        nlist=128,
        m=16,
        ef_construction=200,
    )

    assert opts == Options(api_key=KEY)
    assert (opts.model, opts.port, opts.skip_if_exists) == ("text-embedding-3-small", 19530, True)
    assert KEY not in repr(opts)


@pytest.mark.parametrize(
    ("kind", "params"),
    [
        ("IVF_FLAT", {"nlist": 128}),
        ("IVF_SQ8", {"nlist": 128}),
        ("IVF_PQ", {"nlist": 128, "m": 8, "nbits": 8}),
        ("HNSW", {"M": 16, "efConstruction": 200}),
        ("ANNOY", {"n_trees": 50}),
        ("FLAT", {}),
        ("AUTOINDEX", {}),
    ],
)
def test_each_index_has_its_parameters(kind: Any, params: dict[str, int]) -> None:
    """Those of the existing conserver."""
    index = Options(api_key=KEY, index_type=kind).index

    assert index == {"index_type": kind, "metric_type": "L2", "params": params}


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({}, "no model service"),
        ({"api_key": KEY, "host": "http://milvus:19530"}, "is no name of a host"),
        ({"api_key": KEY, "collection_name": "v-cons"}, "collection_name"),
        ({"api_key": KEY, "index_type": "TREE"}, "index_type"),
    ],
    ids=["service", "host", "collection", "index"],
)
def test_options_that_cannot_work_are_refused(wrong: dict[str, Any], reason: str) -> None:
    """Before the first vCon."""
    with pytest.raises(ValidationError, match=reason):
        Options(**wrong)


def save(vcon: Vcon, opts: Options) -> None:
    """Save a vCon that is in a store of its own."""
    store = throwaway_store()
    store.create(vcon, replace=True)
    with working(Work(store.writer())):
        milvus.save(str(vcon.uuid), opts)


def test_without_the_package_the_cure_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the failure is counted."""
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    before = sums()["conserver.storage.milvus.storage_failures"]
    with pytest.raises(
        StorageError, match=r"cannot save to collection vcons at localhost:19530: .*conserver\[milvus\]"
    ):
        save(two_party_call(), Options(api_key=KEY))

    assert sums()["conserver.storage.milvus.storage_failures"] == before + 1


def test_a_signed_vcon_is_refused() -> None:
    """There is nothing in it that could be embedded."""
    signed = Vcon({"payload": "e30", "signatures": [{"header": {"uuid": UUID}, "protected": "e30", "signature": "x"}]})

    with pytest.raises(StorageError, match="is signed: there is nothing in it that could be embedded"):
        save(signed, Options(api_key=KEY))


@pytest.mark.parametrize("uuid", ['a" or id >= 0 or "', "a'b", "a\\", "", "x" * 101])
def test_what_is_no_uuid_cannot_get_into_a_filter(uuid: str) -> None:
    """Nothing is asked, and nothing deleted."""
    with pytest.raises(StorageError, match="is no UUID, so it cannot be asked for"):
        milvus.delete(uuid, Options(api_key=KEY))
