"""storages.nats: its options, how it gets into a real NATS server, and its connections."""

from __future__ import annotations

import base64
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import nkeys
import pytest
from pydantic import ValidationError

from conserver import StorageError
from conserver.ambient import Work, working
from conserver.store import VconStore
from conserver.testing import throwaway_store, two_party_call
from storages import nats
from storages.nats import Options
from tests.nats import PUBLISHER, PUBLISHER_PASSWORD, NatsServer, nats_server
from tests.proxy import proxied
from tests.servers import Authority
from tests.waiting import wait_until

SECRET = "s3cret-of-a-test"


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    with nats_server() as running:
        yield running


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@cache
def store() -> VconStore:
    return throwaway_store()


def save(**options: Any) -> None:
    call = two_party_call()
    store().create(call)
    with working(Work(store().writer())):
        nats.save(str(call.uuid), Options(**options))


# Keys and JWTs, as `nsc` makes them


class Key:
    """A key of an operator, an account or a user."""

    def __init__(self, kind: int) -> None:
        self.seed = nkeys.encode_seed(os.urandom(32), kind).decode()
        self._pair = nkeys.from_seed(bytearray(self.seed.encode()))
        self.public = self._pair.public_key.decode()

    def vouch(self, name: str, subject: Key, claims: dict[str, Any]) -> str:
        """Return a JWT in which this key says who another one is."""
        head = {"typ": "JWT", "alg": "ed25519-nkey"}
        body = {"jti": name, "iat": 1, "iss": self.public, "name": name, "sub": subject.public}
        body["nats"] = {**claims, "version": 2}
        text = ".".join(_encoded(json.dumps(part).encode()) for part in (head, body))
        return f"{text}.{_encoded(self._pair.sign(text.encode()))}"


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


_OPERATOR, _ACCOUNT, _USER = nkeys.PREFIX_BYTE_OPERATOR, nkeys.PREFIX_BYTE_ACCOUNT, nkeys.PREFIX_BYTE_USER
_NO_LIMITS = {name: -1 for name in ("subs", "data", "payload", "imports", "exports", "conn", "leaf")}
_ROOM = {name: -1 for name in ("mem_storage", "disk_storage", "streams", "consumer")}


class Company:
    """An operator with an account for vCons."""

    def __init__(self) -> None:
        self._operator, self._account, system = Key(_OPERATOR), Key(_ACCOUNT), Key(_ACCOUNT)
        of_account = {"type": "account", "limits": _NO_LIMITS | _ROOM | {"wildcards": True}}
        of_system = {"type": "account", "limits": _NO_LIMITS | {"wildcards": True}}
        self.config = {
            "authorization": {},
            "operator": self._operator.vouch("operator", self._operator, {"type": "operator"}),
            "system_account": system.public,
            "resolver": "MEMORY",
            "resolver_preload": {
                self._account.public: self._operator.vouch("vcons", self._account, of_account),
                system.public: self._operator.vouch("system", system, of_system),
            },
        }

    def credentials(self) -> str:
        """Return the text of a credentials file for a new user."""
        user = Key(_USER)
        claims = {"type": "user", "pub": {}, "sub": {}, "subs": -1, "data": -1, "payload": -1}
        jwt = self._account.vouch("conserver", user, claims)
        return (
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n"
            "************************* IMPORTANT *************************\nKeep it safe.\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user.seed}\n------END USER NKEY SEED------\n"
        )


# Logins


@pytest.mark.parametrize("kind", ["token", "nkey_seed", "credentials", "credentials_path"])
def test_the_ways_to_log_in(kind: str, tmp_path: Path) -> None:
    """The right one comes in; a wrong one is told, without what it was, and what to check."""
    key, other, company = Key(_USER), Key(_USER), Company()
    config, right, wrong = {
        "token": ({"authorization": {"token": SECRET}}, SECRET, f"{SECRET}-not"),
        "nkey_seed": ({"authorization": {"users": [{"nkey": key.public}]}}, key.seed, other.seed),
        "credentials": (company.config, company.credentials().replace("\n", "\r\n"), Company().credentials()),
        "credentials_path": (company.config, company.credentials(), Company().credentials()),
    }[kind]
    values = [right, wrong]
    if kind == "credentials_path":
        for number, text in enumerate(values):
            (tmp_path / f"{number}.creds").write_text(text)
        values = [str(tmp_path / "0.creds"), str(tmp_path / "1.creds")]
    with nats_server(**config) as server:
        save(servers=[server.url], **{kind: values[0]})
        with pytest.raises(StorageError, match="'Authorization Violation'; check user, password, token, NKey") as told:
            save(servers=[server.url], **{kind: values[1]})
        with pytest.raises(StorageError, match="'Authorization Violation'"):
            save(servers=[server.url])

    assert not any(len(line) > 10 and line in repr(told.value) for line in wrong.splitlines())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"credentials_path: cannot read \S+: No such file"),
        (b"\xff", "cannot read .*: it is no text"),
        (b"", "there is no JWT of a user with its seed"),
        (b"-----BEGIN NATS USER JWT-----\nabc\n", "there is no JWT of a user with its seed"),
    ],
)
def test_a_credentials_file_that_cannot_be_used_is_told(text: bytes | None, message: str, tmp_path: Path) -> None:
    """Before anybody is asked."""
    file = tmp_path / "user.creds"
    if text is not None:
        file.write_bytes(text)

    with pytest.raises(StorageError, match=message):
        nats.ping(Options(credentials_path=str(file)))


def test_who_may_only_publish_can_save(server: NatsServer) -> None:
    """Into a stream that is there; a right that is missing is told at once."""
    save(**server.options)
    clerk = server.options | {"user": PUBLISHER, "password": PUBLISHER_PASSWORD, "create_stream": False}
    before = len(server.messages())
    save(**clerk)

    assert len(server.messages()) == before + 1
    with pytest.raises(StorageError, match=r"permissions violation for publish to .*stream\.names.*let the user do"):
        nats.ping(Options(**clerk))
    with pytest.raises(StorageError, match=r"permissions violation for publish to .*stream\.purge\."):
        nats.delete("0190c0de-1234-8567-8000-000000000001", Options(**clerk))
    with pytest.raises(StorageError, match=r"permissions violation for publish to .*calls\."):
        save(**clerk, subject="calls.{uuid}")
    with pytest.raises(StorageError, match=r"permissions violation for subscription to .*_mine\."):
        save(**clerk, inbox_prefix="_MINE")


# TLS


def tls(authority: Authority, **more: Any) -> dict[str, Any]:
    key = str(authority.server.with_suffix(".key"))
    return {"tls": {"cert_file": str(authority.server), "key_file": key, "ca_file": str(authority.ca), **more}}


def test_an_encrypted_connection(authority: Authority) -> None:
    """To a server that is vouched for, by a client that is; without either it is told what to do."""
    own = {"tls_cert": str(authority.client), "tls_key": str(authority.client.with_suffix(".key"))}
    with nats_server(**tls(authority, verify=True), authorization={}) as server:
        url = server.url.replace("nats:", "tls:")
        save(servers=[url], tls_ca=str(authority.ca), **own)

        with pytest.raises(StorageError, match=r"CERTIFICATE_VERIFY_FAILED.*; check tls_ca"):
            save(servers=[url], **own)
        with pytest.raises(StorageError, match="cannot publish"):
            save(servers=[url], tls_ca=str(authority.ca))
        with pytest.raises(StorageError, match=r"the files for TLS \(/nowhere\) cannot be used: No such file"):
            save(servers=[url], tls_ca="/nowhere")


def test_the_name_in_the_certificate_counts(authority: Authority) -> None:
    """A server with a certificate of another host is not the one that was meant."""
    files = {"cert_file": str(authority.elsewhere), "key_file": str(authority.elsewhere.with_suffix(".key"))}
    with (
        nats_server(tls=files, authorization={}) as server,
        pytest.raises(StorageError, match="address mismatch"),
    ):
        save(servers=[server.url], tls_ca=str(authority.ca))


def test_nothing_is_said_to_a_server_that_does_not_encrypt() -> None:
    """Where it was to: somebody in between could take that promise out of its greeting."""
    heard = []

    def greet(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b'INFO {"server_id":"x","version":"2.15.1","headers":true,"max_payload":1048576}\r\n')
            while data := connection.recv(65536):
                heard.append(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=greet, args=[listener])
        thread.start()
        with pytest.raises(StorageError, match="secure connection not available; let the server require TLS"):
            save(servers=[f"tls://127.0.0.1:{listener.getsockname()[1]}"], user="conserver", password=SECRET)
        thread.join(20)

    assert heard == []


# Connections


def test_threads_share_a_connection(server: NatsServer) -> None:
    """One for all of a process."""
    before = server.connections
    save(**server.options, timeout=19)
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda _: save(**server.options, timeout=19), range(64)))

    assert server.connections == before + 1


def test_one_server_of_several_is_enough(server: NatsServer) -> None:
    """Those that do not answer are passed over."""
    for turn in range(4):
        save(**server.options | {"servers": ["nats://127.0.0.1:1", server.url], "timeout": 15 + turn})


def test_if_no_server_answers_all_are_told() -> None:
    """Each with its reason."""
    with pytest.raises(StorageError, match=r"nats://127.0.0.1:1: .*refused|Connect") as told:
        save(servers=["nats://127.0.0.1:1", "tls://127.0.0.1:2"])

    assert "nats://127.0.0.1:1: " in str(told.value)
    assert "tls://127.0.0.1:2: " in str(told.value)


def test_a_connection_that_falls_silent_is_replaced(server: NatsServer) -> None:
    """A save says within its time that there is no answer, and what it had still to send is not sent later."""
    with proxied(f"redis://127.0.0.1:{server.port}") as proxy:
        away = server.options | {"servers": [proxy.url.replace("redis:", "nats:")], "timeout": 1}
        save(**away)
        count = len(server.messages())
        with proxy.blackhole(), pytest.raises(StorageError, match=r"no answer within 1 s|no answer in time"):
            save(**away)
        save(**away)

    assert len(server.messages()) == count + 1


def test_the_server_may_end_the_connection(server: NatsServer) -> None:
    """The save that meets it does not fail."""
    save(**server.options)
    server.stop()
    server.start()
    save(**server.options)
    wait_until(lambda: server.connections >= 1, 20)


FORKS = """
import json, os, sys
from conserver.ambient import Work, working
from conserver.store import VconStore
from conserver.testing import throwaway_store, two_party_call
from storages import nats

opts, store = nats.Options(**json.loads(sys.argv[1])), throwaway_store()
def save(subject):
    call = two_party_call()
    call.document["subject"] = subject
    store.create(call)
    with working(Work(store.writer())):
        nats.save(call.uuid, opts)
save("parent")
child = os.fork()
if not child:
    save("child")
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
save("parent again")
"""


def test_a_fork_has_a_connection_of_its_own(server: NatsServer) -> None:
    """Neither disturbs the other; the process ends without a word."""
    known = {message.seq for message in server.messages()}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-W", "ignore::DeprecationWarning", "-c", FORKS, json.dumps(server.options)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )

    assert (done.returncode, done.stderr) == (0, "")
    new = [message for message in server.messages() if message.seq not in known]
    assert [json.loads(message.data or b"")["subject"] for message in new] == ["parent", "child", "parent again"]


# Options


def test_what_is_no_uuid_has_no_subject(server: NatsServer) -> None:
    """It could be a pattern for all of them."""
    for odd_uuid in ("*", ">", "a.b", "0190c0de-1234-8567-8000-000000000001\n"):
        with pytest.raises(StorageError, match="is no UUID"):
            nats.delete(odd_uuid, Options(**server.options))
        with pytest.raises(StorageError, match="is no UUID"):
            nats.save(odd_uuid, Options(**server.options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"subject": "vcons"}, r"one of them \{uuid\}"),
        ({"subject": "vcons.{uuid}.{uuid}"}, r"one of them \{uuid\}"),
        ({"subject": "{uuid}"}, r"one of them \{uuid\}"),
        ({"subject": "vcons-{uuid}"}, r"one of them \{uuid\}"),
        ({"subject": "vcons..{uuid}"}, "tokens with dots"),
        ({"subject": "*.{uuid}"}, "tokens with dots"),
        ({"subject": "my vcons.{uuid}"}, "tokens with dots"),
        ({"subject": "$JS.{uuid}"}, "must not begin with"),
        ({"stream": "my.vcons"}, "stream"),
        ({"servers": []}, "servers"),
        ({"servers": ["http://host"]}, "number 1 is no server"),
        ({"servers": ["nats://host", "nats://me:s3cret@host"]}, "number 2 is no server"),
        ({"servers": ["nats://host:port"]}, "number 1 is no server"),
        ({"user": "me"}, "give user and password, both or neither"),
        ({"token": "s3cret", "nkey_seed": "SU" + 56 * "A"}, "give one of user, token"),
        ({"nkey_seed": "SA" + 56 * "A"}, "is no seed of a user"),
        ({"tls_key": "key.pem"}, "give tls_cert as well"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(options: dict[str, Any], message: str) -> None:
    """With what to write instead, and without what is secret in them."""
    with pytest.raises(ValidationError, match=message) as told:
        Options(**options)

    assert "s3cret" not in str(told.value)


def test_empty_options_are_none() -> None:
    """As they come from variables that are not set."""
    names = ("user", "password", "token", "nkey_seed", "credentials", "credentials_path", "tls_ca", "tls_cert")

    assert Options(**dict.fromkeys(names, "")) == Options()


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """With how to get it."""
    monkeypatch.delitem(sys.modules, "storages.nats.connection", raising=False)
    monkeypatch.setitem(sys.modules, "nats", None)

    with pytest.raises(StorageError, match=r"cannot publish .*\(pip install 'conserver\[nats\]'\)"):
        nats.ping(Options())
