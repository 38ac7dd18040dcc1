"""conserver.addresses: what the URL of a server may say, and what of it is shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conserver import addresses
from conserver.addresses import NotAnAddress

SECRET = "ge%3Ah%2Fe%40im"
PLAIN = "ge:h/e@im"


@pytest.mark.parametrize(
    ("url", "options"),
    [
        ("redis://", {}),
        ("redis://host", {"host": "host"}),
        ("redis://host:6380/2", {"host": "host", "port": 6380, "db": 2}),
        (f"redis://:{SECRET}@host/2", {"host": "host", "db": 2, "password": PLAIN}),
        (
            f"redis://user:{SECRET}@[::1]:1/0",
            {"host": "::1", "port": 1, "db": 0, "username": "user", "password": PLAIN},
        ),
        ("unix:///run/a%20b.sock?db=3", {"path": "/run/a b.sock", "db": 3}),
        (f"unix://user:{SECRET}@/run/r.sock", {"path": "/run/r.sock", "username": "user", "password": PLAIN}),
        (f"unix:///run/r.sock?password={SECRET}", {"path": "/run/r.sock", "password": PLAIN}),
    ],
)
def test_a_server_is_named_by_tcp_or_by_a_socket(url: str, options: dict[str, Any]) -> None:
    """With user, password and database, percent-encoded where they have to be."""
    address = addresses.parse(url)
    told = dict(address.options)
    told.pop("connection_class", None)

    assert told == options
    assert (address.service, address.sentinels, address.tls) == ("", (), False)


@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", {"ssl_check_hostname": True}),
        ("?ssl_cert_reqs=none", {"ssl_cert_reqs": "none", "ssl_check_hostname": False}),
        ("?ssl_check_hostname=false", {"ssl_check_hostname": False}),
        (
            "?ssl_ca_certs=/ca.crt&ssl_certfile=/a.crt&ssl_keyfile=/a.key&ssl_password=pw",
            {
                "ssl_ca_certs": "/ca.crt",
                "ssl_certfile": "/a.crt",
                "ssl_keyfile": "/a.key",
                "ssl_password": "pw",
                "ssl_check_hostname": True,
            },
        ),
    ],
)
def test_tls_checks_certificates_and_names_unless_told_not_to(query: str, options: dict[str, Any]) -> None:
    """The name in the certificate is checked by every version of redis-py; sentinels are spoken to alike."""
    server = addresses.parse(f"rediss://host:1/0{query}")
    sentinel = addresses.parse(f"rediss+sentinel://host:1/name/0{query}")

    assert server.tls
    assert {name: value for name, value in server.options.items() if name.startswith("ssl_")} == options
    assert sentinel.options == {"db": 0, **options}
    assert sentinel.sentinel_options == {"ssl": True, **options}


@pytest.mark.parametrize(
    ("url", "sentinels", "service", "options"),
    [
        ("redis+sentinel://host/name", (("host", 26379),), "name", {}),
        ("redis+sentinel://a:1,b,[::1]:3/name/4", (("a", 1), ("b", 26379), ("::1", 3)), "name", {"db": 4}),
        (f"redis+sentinel://:{SECRET}@a:1,b:2/name", (("a", 1), ("b", 2)), "name", {"password": PLAIN}),
        ("redis+sentinel://me:pw@a:1/name?db=2", (("a", 1),), "name", {"username": "me", "password": "pw", "db": 2}),
    ],
)
def test_sentinels_are_named_with_the_service(
    url: str, sentinels: tuple[tuple[str, int], ...], service: str, options: dict[str, Any]
) -> None:
    """Any number of them, on port 26379 unless said otherwise; user and password are for the server."""
    address = addresses.parse(url)

    assert (address.sentinels, address.service, address.options) == (sentinels, service, options)
    assert address.sentinel_options == {}


def test_sentinels_have_a_user_and_a_password_of_their_own() -> None:
    """They do not get those of the server, nor the server theirs."""
    address = addresses.parse(f"redis+sentinel://me:pw@a/name?sentinel_username=guard&sentinel_password={SECRET}")

    assert address.options == {"username": "me", "password": "pw"}
    assert address.sentinel_options == {"username": "guard", "password": PLAIN}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://user:geheim@host:6380/2?password=geheim", "redis://host:6380/2"),
        ("rediss://:geheim@host?ssl_password=geheim", "rediss://host"),
        ("redis://", "redis://localhost"),
        ("unix://user:geheim@/run/r.sock?db=1", "unix:///run/r.sock"),
        (
            "redis+sentinel://u:geheim@a:1,[::1]:2,c/name/0?sentinel_password=geheim",
            "redis+sentinel://a:1,[::1]:2,c/name/0",
        ),
    ],
)
def test_what_is_shown_has_no_secret(url: str, shown: str) -> None:
    """Neither user nor password nor options, also not in the text of the value."""
    assert addresses.shown(url) == shown
    assert addresses.parse(url).shown == shown
    assert "geheim" not in repr(addresses.parse(url))


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("localhost:6379", "is no URL of a server: write redis://"),
        ("http://:geheim@localhost", "is no URL of a server"),
        ("redis://:ge#heim@localhost", "is no URL of a server"),
        ("redis://:ge/heim@localhost", "is no URL of a server"),
        ("redis://:ge?heim@localhost", "is no URL of a server"),
        ("redis://:ge heim@localhost", "is no URL of a server"),
        ("redis://host:port", "is no URL of a server"),
        ("redis://host:0", "is no URL of a server"),
        ("redis://host:99999", "is no URL of a server"),
        ("redis://host?db=geheim", "is no URL of a server"),
        ("redis://host/geheim", "names a database that is no number"),
        ("redis://:geheim@a:1,b:2/0", "has several hosts, which only redis+sentinel:// may have"),
        ("redis+sentinel://:geheim@a:1", "names no service: write redis+sentinel://HOST[:PORT]/SERVICE[/DB]"),
        ("redis+sentinel://:geheim@a:1/name/geheim", "names a database that is no number"),
        ("redis+sentinel://:geheim@a:1,b:x/name", "is no URL of a server"),
        ("redis://host?sentinel_password=geheim", "sentinel_password, which is for redis+sentinel:// only"),
        ("redis://host?ssl_ca_certs=/a", "has the option ssl_ca_certs, which is for TLS: write rediss://..."),
        ("redis+sentinel://a/b?ssl_ca_certs=/a", "which is for TLS: write rediss+sentinel://..."),
        ("rediss://host?ssl_cert_reqs=geheim", "has an ssl_cert_reqs that does not exist: write one of none, optional"),
        ("rediss://host?ssl_ca_cert=/a", "has an option that does not exist: did you mean ssl_ca_certs? there are db,"),
        ("redis://host?geheim=1", "has an option that does not exist: there are db, username, password, ssl_ca_certs,"),
        ("redis://host?retry_on_timeout=true", "has an option that does not exist: there are"),
        ("redis://host?decode_responses=true", "has an option that does not exist: there are"),
    ],
)
def test_what_is_wrong_with_a_url_is_told_without_a_secret(url: str, words: str) -> None:
    """Also when it is a password with a character that means something in a URL; timeouts and retries are ours."""
    with pytest.raises(NotAnAddress) as told:
        addresses.parse(url)

    assert words in str(told.value)
    assert "heim" not in str(told.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    """OpenSSL would not say which one it is."""
    there, missing = tmp_path / "ca.crt", tmp_path / "client.crt"
    there.write_text("")
    url = f"rediss://host?ssl_ca_certs={there}"

    assert addresses.parse(url).missing_file() == ""
    assert addresses.parse(f"{url}&ssl_certfile={missing}").missing_file() == f"ssl_certfile={missing}"
