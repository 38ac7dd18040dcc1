"""storages.elasticsearch: options, logins, rights and certificates, with a fake of the server."""

from __future__ import annotations

import base64
import json
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from conserver import StorageError
from conserver.outbound import close_connections
from storages import elasticsearch
from storages.elasticsearch import Options
from tests.fakes.elasticsearch_server import API_KEY, PASSWORD, USER, ElasticsearchServer
from tests.fakes.orders import with_body
from tests.servers import Authority
from tests.storages.elasticsearch_saves import DOCUMENTS, UUID, get, options


@pytest.fixture
def server() -> Iterator[ElasticsearchServer]:
    with ElasticsearchServer() as server:
        yield server


def test_a_password_does_as_well_as_a_key(server: ElasticsearchServer) -> None:
    """Where both are given, the key counts, as in the existing conserver."""
    login = {"username": USER, "password": PASSWORD}
    elasticsearch.ping(Options(url=server.url, **login))
    elasticsearch.ping(Options(url=f"{server.url}/", api_key=API_KEY, **login))

    assert [request.headers["authorization"].split()[0] for request in server.requests][::3] == ["Basic", "ApiKey"]


def test_a_key_with_a_line_break_behind_it_is_taken(server: ElasticsearchServer) -> None:
    """As those have that come from a file."""
    elasticsearch.ping(Options(url=server.url, api_key=f" {API_KEY}\n"))

    assert server.requests[-1].headers["authorization"] == f"ApiKey {API_KEY}"


@pytest.mark.parametrize("login", [{}, {"api_key": "wrong-secret"}, {"username": USER, "password": "wrong-secret"}])
def test_a_login_that_is_refused_is_told_with_the_cure(server: ElasticsearchServer, login: dict[str, Any]) -> None:
    """Once, and without what is secret."""
    with pytest.raises(StorageError, match=r"answered 401: .*; check api_key, or username and password") as told:
        elasticsearch.ping(Options(url=server.url, **login))

    assert "wrong-secret" not in f"{told.value!r} {told.value.__cause__!r}"
    assert len(server.requests) == 1


def test_a_right_that_is_missing_for_an_index_is_told(server: ElasticsearchServer) -> None:
    """The server tells it document by document, with a status of success."""
    denied = {"docs": [{"_index": DOCUMENTS, "_id": UUID, "error": {"type": "security_exception", "reason": "x"}}]}
    server.order(with_body(json.dumps(denied).encode()))

    with pytest.raises(StorageError, match=r"index vcon_documents: security_exception; the key or the role needs read"):
        get(server, UUID)


def test_ping_does_what_a_save_needs(server: ElasticsearchServer) -> None:
    """It makes the index, and leaves nothing in it."""
    elasticsearch.ping(Options(**options(server)))

    assert list(server.indexes) == [DOCUMENTS]
    assert server.indexes[DOCUMENTS].documents == {}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def by_tls(authority: Authority) -> Iterator[ElasticsearchServer]:
    """The server with a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server, authority.server.with_suffix(".key"))
    server = ElasticsearchServer()
    server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
    with server:
        yield server
    close_connections()


def test_the_certificate_is_checked_with_the_authority_that_is_given(
    by_tls: ElasticsearchServer, authority: Authority, tmp_path: Path
) -> None:
    """Another one is not good enough, and a file that is changed counts from the next connection on."""
    file = tmp_path / "ca.crt"
    opts = Options(url=by_tls.url.replace("http:", "https:"), api_key=API_KEY, ca_certs=str(file))
    file.write_bytes(Authority(tmp_path / "stranger").ca.read_bytes())
    with pytest.raises(StorageError, match=r"CERTIFICATE_VERIFY_FAILED.*; give ca_certs, the file with the authority"):
        elasticsearch.ping(opts)
    close_connections()
    file.write_bytes(authority.ca.read_bytes())
    os.utime(file, ns=(1, 1))

    elasticsearch.ping(opts)
    with pytest.raises(StorageError, match=r"CERTIFICATE_VERIFY_FAILED.*; give ca_certs"):
        elasticsearch.ping(opts.model_copy(update={"ca_certs": None}))


@pytest.mark.parametrize(("text", "reason"), [(None, "No such file or directory"), ("no certificate", "certificate")])
def test_an_authority_that_cannot_be_read_is_told(tmp_path: Path, text: str | None, reason: str) -> None:
    """The existing conserver goes on without any check."""
    file = tmp_path / "ca.crt"
    if text:
        file.write_text(text)

    with pytest.raises(StorageError, match=rf"the file with authorities {file} cannot be used: .*{reason}"):
        elasticsearch.ping(Options(url="https://127.0.0.1:1", ca_certs=str(file)))


def cloud(text: str) -> str:
    return f"calls:{base64.b64encode(text.encode()).decode()}"


@pytest.mark.parametrize(
    ("said", "address"),
    [
        ("eu.cloud.example$a1b2$c3d4", "https://a1b2.eu.cloud.example"),
        ("eu.cloud.example:9243$a1b2$", "https://a1b2.eu.cloud.example:9243"),
        ("eu.cloud.example:443$a1b2:9244$c3d4", "https://a1b2.eu.cloud.example:443"),
    ],
)
def test_a_cloud_id_says_where_the_server_is(said: str, address: str) -> None:
    """As Elastic Cloud shows it; it counts more than a url."""
    assert Options(cloud_id=cloud(said), url="http://other:9200").address == address


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "give the url of the server, or a cloud_id"),
        ({"url": "localhost:9200"}, "is no URL of a server: write it as https://host:9200"),
        ({"url": "https://me:s3cret@host"}, "must hold no login: give username and password, or api_key"),
        ({"cloud_id": "calls:s3cret"}, "is no id of a deployment"),
        ({"cloud_id": cloud("evil/path?$a$b")}, "is no id of a deployment"),
        ({"url": "http://h", "username": "me"}, "give username and password, or neither of them"),
        ({"url": "http://h", "index_prefix": "Calls"}, "is nothing that names of indexes can begin with"),
        ({"url": "http://h", "index_prefix": "-*"}, "is nothing that names of indexes can begin with"),
        ({"url": "http://h", "format_version": "9"}, "format_version"),
    ],
)
def test_options_that_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    """With what to write, and without what is secret."""
    with pytest.raises(ValidationError, match=message) as told:
        Options(**wrong)

    assert "s3cret" not in str(told.value)


def test_options_of_the_existing_conserver_are_taken_as_they_are() -> None:
    """With its words for what is not given."""
    nothing = {"cloud_id": "", "api_key": "", "ca_certs": None, "index": "vcon_index", "name": "elasticsearch"}
    opts = Options(**nothing, url="https://host:9200", username="elastic", password="s3cret", index_prefix=" calls_ ")

    assert (opts.address, opts.index_prefix, opts.ca_certs) == ("https://host:9200", "calls_", None)
    assert "s3cret" not in repr(opts)
