"""storages.chatgpt_files.service: options, and requests that fail (a fake)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from conserver import StorageError, outbound
from conserver.errors import OutboundError, OutboundStatus
from storages import chatgpt_files
from storages.chatgpt_files import Options, service
from tests.fakes.openai_files_server import KEY, OpenAIFilesServer
from tests.fakes.orders import Order, ok, status, with_body

WRONG = "sk-proj-wrong-secret-key-9fKe"


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Every test begins with closed breakers; waits are noted and take no time."""
    noted: list[float] = []
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", noted.append)
    return noted


@pytest.fixture(scope="module")
def same_server() -> Iterator[OpenAIFilesServer]:
    with OpenAIFilesServer() as server:
        yield server


@pytest.fixture
def server(same_server: OpenAIFilesServer) -> OpenAIFilesServer:
    """A server with nothing in it."""
    same_server.forget()
    return same_server


def options(server: OpenAIFilesServer, **more: Any) -> Options:
    given = {"api_key": KEY, "vector_store_id": "vs_calls", "base_url": server.base_url, **more}
    return Options.model_validate(given)


@pytest.fixture
def file_id(server: OpenAIFilesServer) -> str:
    """A file in the vector store."""
    return server.put("a.json", b"{}", store="vs_calls", name="x")


#: The requests, by name; they get the id of a file that is there.
REQUESTS: dict[str, Callable[[Options, str], Any]] = {
    "upload": lambda opts, _: service.upload(opts, "a.json", b"{}", "assistants"),
    "attach": lambda opts, file_id: service.attach(opts, file_id, {"name": "x"}),
    "entry": service.entry,
    "exists": service.exists,
    "search": lambda opts, _: service.search(opts, "x", [service.condition("name", "eq", "x")]),
    "newest_files": lambda opts, _: service.newest_files(opts, 10, "assistants"),
    "all_files": lambda opts, _: list(service.all_files(opts)),
    "store_status": lambda opts, _: service.store_status(opts),
    "remove": service.remove,
}
every_request = pytest.mark.parametrize("request_of", REQUESTS.values(), ids=REQUESTS)


def instead(body: bytes) -> Order:
    """Answer with this, and do nothing."""
    return lambda exchange, _: exchange.answer(200, body, content_type="application/json")


# Requests


@pytest.mark.parametrize("code", [408, 429, 500, 502, 503, 504])
def test_what_may_go_better_is_tried_again(server: OpenAIFilesServer, code: int) -> None:
    """Up to four times."""
    server.order(*[status(code)] * 3)
    service.store_status(options(server))

    assert len(server.requests) == 4


@every_request
def test_a_service_that_asks_for_time_gets_it(
    server: OpenAIFilesServer, file_id: str, request_of: Any, waits: list[float]
) -> None:
    """As long as Retry-After says."""
    server.order(status(429, retry_after="3"))
    request_of(options(server), file_id)

    assert waits == [3.0]


@every_request
def test_what_is_refused_is_not_asked_for_again(server: OpenAIFilesServer, file_id: str, request_of: Any) -> None:
    """Its reason is told."""
    server.order(status(400, "for a reason"))

    with pytest.raises(OutboundStatus, match=r'http://127.0.0.1:\d+: answered 400: "for a reason"$'):
        request_of(options(server), file_id)
    assert len(server.requests) == 1


@every_request
@pytest.mark.parametrize("code", [401, 403])
def test_a_wrong_key_is_told_without_a_part_of_it(
    server: OpenAIFilesServer, file_id: str, request_of: Any, code: int
) -> None:
    """Though OpenAI repeats its beginning and its end."""
    server.order(status(code, f"Incorrect API key provided: {KEY[:8]}****{KEY[-4:]}"))

    with pytest.raises(OutboundStatus) as told:
        request_of(options(server), file_id)
    hint = "check api_key and its rights, organization_key and project_key"
    assert str(told.value).endswith(f"{server.url}: answered {code}; {hint}")
    assert told.value.__suppress_context__


@every_request
def test_an_answer_that_is_not_openais_is_an_error(server: OpenAIFilesServer, file_id: str, request_of: Any) -> None:
    """It is not taken for an empty list, nor for a file that is there."""
    told = r"the answer is not (JSON|OpenAI's; is base_url the root of its API\?)"

    for body in ("<html>", "[]", "{}", "7", '{"data": [{}]}', '{"data": 7}', '{"id": 1}', '{"status": 1}'):
        server.order(instead(body.encode()))
        with pytest.raises(OutboundError, match=told):
            request_of(options(server), file_id)


def test_a_file_that_was_not_deleted_is_an_error(server: OpenAIFilesServer, file_id: str) -> None:
    """Whatever the status of the answer."""
    server.order(with_body(b'{"deleted": false}'))

    with pytest.raises(OutboundError, match="the answer is not OpenAI's"):
        service.remove(options(server), file_id)


@pytest.mark.parametrize("page", [[{"id": "file-a", "created_at": 1, "filename": "x"}], []])
def test_a_list_that_does_not_end_is_an_error(server: OpenAIFilesServer, page: list[Any]) -> None:
    """It is not gone through for ever."""
    file_id = server.put("x", b"x")
    body = json.dumps({"data": [{**one, "id": file_id} for one in page], "has_more": True}).encode()
    server.order(with_body(body), with_body(body))

    with pytest.raises(OutboundError, match="the list of files says that it goes on, and does not"):
        list(service.all_files(options(server)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"api_key": WRONG}, "answered 401; check api_key and its rights"),
        ({"organization_key": "org-other"}, "answered 401; check api_key .* organization_key"),
        ({"project_key": "proj_other"}, "answered 401; check api_key .* project_key"),
        ({"vector_store_id": "vs_none"}, "answered 404.* 'vs_none' not found"),
        ({"vector_store_id": "../files"}, "answered 404"),
    ],
    ids=["key", "organization", "project", "vector store", "path"],
)
def test_what_is_wrong_in_the_options_is_told_by_a_ping(
    server: OpenAIFilesServer, wrong: dict[str, str], message: str
) -> None:
    """With what to check."""
    with pytest.raises(StorageError, match=f"cannot read: GET {server.url}: {message}"):
        chatgpt_files.ping(options(server, **wrong))


def test_a_right_to_read_files_that_is_missing_is_told_by_a_ping(server: OpenAIFilesServer) -> None:
    """That to read the vector store is another one."""
    server.order(ok, status(403))

    with pytest.raises(StorageError, match="answered 403; check api_key and its rights"):
        chatgpt_files.ping(options(server))


def test_a_vector_store_that_has_expired_is_told_by_a_ping(server: OpenAIFilesServer) -> None:
    """It takes no files any more."""
    server.stores["vs_calls"].status = "expired"

    with pytest.raises(StorageError, match="vector store vs_calls has expired; make another one"):
        chatgpt_files.ping(options(server))


# Options


def test_the_options_of_the_existing_conserver_are_taken() -> None:
    """With their names and its default; keys as they come from files."""
    existing = {"organization_key": "org-1", "project_key": "proj_1", "api_key": "sk-1\n", "vector_store_id": "vs_1"}
    opts = Options.model_validate({**existing, "cleanup_local_files": True})

    assert (opts.purpose, opts.base_url, opts.timeout) == ("assistants", "https://api.openai.com/v1", 30)
    assert opts.api_key.get_secret_value() == "sk-1"


def test_organization_and_project_may_be_left_out(server: OpenAIFilesServer) -> None:
    """Those of the key count, then."""
    chatgpt_files.ping(options(server, organization_key=None, project_key=""))

    assert not {"openai-organization", "openai-project"} & set(server.requests[0].headers)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"api_key": " "}, "api_key"),
        ({"vector_store_id": ""}, "vector_store_id"),
        ({"base_url": "api.openai.com"}, "is no URL: write it as https://host/v1"),
        ({"purpose": "user data"}, "purpose"),
        ({"timeout": 0}, "timeout"),
    ],
    ids=["api_key", "vector_store_id", "base_url", "purpose", "timeout"],
)
def test_options_that_make_no_sense_are_refused(server: OpenAIFilesServer, wrong: dict[str, Any], message: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ValidationError, match=message):
        options(server, **wrong)


# The fake


def test_the_fake_speaks_with_openais_own_client(server: OpenAIFilesServer) -> None:
    """Which finds what our requests have made, and can have it back as little as we can."""
    openai = pytest.importorskip("openai")
    ours = service.upload(options(server), "a.json", b"{}", "assistants")
    service.attach(options(server), ours.id, {"name": "x"})
    service.entry(options(server), ours.id)

    with openai.OpenAI(api_key=KEY, base_url=server.base_url, max_retries=0) as client:
        [listed] = client.files.list(purpose="assistants")
        [found] = client.vector_stores.search(
            "vs_calls", query="anything", filters={"type": "eq", "key": "name", "value": "x"}
        )
        theirs = client.files.create(file=("b.json", b"{}"), purpose="assistants")
        entry = client.vector_stores.files.create_and_poll(theirs.id, vector_store_id="vs_calls", poll_interval_ms=1)
        client.files.delete(theirs.id)
        with pytest.raises(openai.BadRequestError, match="Not allowed to download files of purpose: assistants"):
            client.files.content(ours.id)

    assert (listed.id, found.file_id, found.filename) == (ours.id, ours.id, "a.json")
    assert entry.status == "completed"
    assert list(server.files) == [ours.id]
