"""conserver.tokens: where tokens come from, what they allow, and when they count."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
from pathlib import Path

import pytest
import yaml

from conserver import listening, tokens
from conserver.api.state import Api
from conserver.config import load_config
from conserver.errors import SettingsError
from conserver.settings import Settings
from conserver.tokens import Caller, Tokens, digest_of, new_token, read_tokens
from tests.commands import Folder

CONFIG = {"chains": {"main": {"links": [], "ingress_lists": ["in"]}}}


def of_file(tmp_path: Path, text: str | bytes) -> Tokens:
    """Read *text* as a token file."""
    path = tmp_path / "tokens"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return read_tokens(Settings(api_token_file=path), None)


def refused(tmp_path: Path, text: str | bytes) -> str:
    """Return what is said of a token file that cannot be used, without its folder."""
    with pytest.raises(SettingsError) as told:
        of_file(tmp_path, text)
    return str(told.value).replace(f"{tmp_path}/", "")


# What they allow


@pytest.mark.parametrize(
    ("scope", "allows"),
    [
        ("read", {"read"}),
        ("write", {"read", "write"}),
        ("admin", {"read", "write", "admin"}),
        ("ingress:in", {"ingress:in"}),
    ],
)
def test_a_scope_includes_the_smaller_ones(scope: str, allows: set[str]) -> None:
    """And a feeder may feed, and nothing else."""
    caller = Caller("somebody", tokens.granted([scope]))

    assert {s for s in ("read", "write", "admin", "ingress:in", "ingress:in2") if caller.may(s)} == allows


def test_who_may_write_may_feed_every_list_and_a_feeder_its_own() -> None:
    """Those who only read feed none."""
    of = {scope: Caller("x", tokens.granted([scope])) for scope in ("read", "write", "admin", "ingress:in")}

    assert [scope for scope, caller in of.items() if caller.may_feed("in")] == ["write", "admin", "ingress:in"]
    assert [scope for scope, caller in of.items() if caller.may_feed("in2")] == ["write", "admin"]


# Where they come from


@pytest.mark.parametrize("given", ["geheim", digest_of("geheim"), "gehéim ✓"])
def test_the_token_of_the_environment_may_do_everything(given: str) -> None:
    """As it is, or as its digest, which alone opens nothing."""
    found = read_tokens(Settings(api_token=given), None)

    token = "geheim" if given.startswith("sha256:") else given
    assert found.caller(token) == Caller("CONSERVER_API_TOKEN", frozenset({"read", "write", "admin"}))
    assert found.caller(digest_of("geheim")) is None
    assert found.caller("") is None
    assert "gehe" not in repr(Settings(api_token="geheim"))


def test_a_file_has_a_token_or_a_name_with_scopes_and_digest_a_line(tmp_path: Path) -> None:
    """Empty lines and comments count only for the numbers of lines."""
    text = (
        f"\ufeff# who may what\n\nplain-token\n  {digest_of('by-digest')}  \r\n"
        f"reader\tread   {digest_of('r')}\nadapter ingress:in,ingress:in2,read {digest_of('a')}\n"
    )
    found = of_file(tmp_path, text)

    everything = frozenset({"read", "write", "admin"})
    assert found.caller("plain-token") == Caller("line-3", everything)
    assert found.caller("by-digest") == Caller("line-4", everything)
    assert found.caller("r") == Caller("reader", frozenset({"read"}))
    assert found.caller("a") == Caller("adapter", frozenset({"ingress:in", "ingress:in2", "read"}))
    assert len(found.by_digest) == 4


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("two words", "write a token alone, or NAME SCOPES DIGEST as 'conserver token' prints it"),
        ("geheim-name read geheim", "write a token alone, or NAME SCOPES DIGEST as 'conserver token' prints it"),
        (f"geheim geheim {digest_of('x')}", "a scope is read, write, admin or ingress:LIST, joined with commas"),
        (f"name read, {digest_of('x')}", "a scope is read, write, admin or ingress:LIST, joined with commas"),
        (f"name ingress: {digest_of('x')}", "a scope is read, write, admin or ingress:LIST, joined with commas"),
        ("sha256:geheim", "a digest is sha256: and 64 hexadecimal digits in lower case"),
        (digest_of("x").upper().replace("SHA", "sha"), "a digest is sha256: and 64 hexadecimal digits in lower case"),
    ],
)
def test_a_wrong_line_is_named_by_its_number_and_never_shown(tmp_path: Path, line: str, says: str) -> None:
    """It may be a token, written the wrong way."""
    assert refused(tmp_path, f"# the first\nright-geheim\n{line}\n") == f"tokens:3: {says}"


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    """It says which variable names it."""
    with pytest.raises(SettingsError) as gone:
        read_tokens(Settings(api_token_file=tmp_path / "nothing"), None)

    assert str(gone.value) == (
        f"CONSERVER_API_TOKEN_FILE='{tmp_path}/nothing' cannot be read: No such file or directory"
    )
    assert refused(tmp_path, b"\xff\xfe") == "CONSERVER_API_TOKEN_FILE='tokens' cannot be read: it is not UTF-8"


def test_a_wrong_digest_of_the_environment_is_refused() -> None:
    """Else it would be a token that everybody knows who has seen the digest."""
    with pytest.raises(SettingsError, match="CONSERVER_API_TOKEN: a digest is sha256: and 64 hexadecimal digits"):
        read_tokens(Settings(api_token="sha256:123"), None)


def test_tokens_of_the_config_have_their_names_there(tmp_path: Path) -> None:
    """They count beside those of environment and file."""
    entry = {"reader": {"digest": digest_of("r"), "scopes": ["read"]}}
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(CONFIG | {"api": {"tokens": entry}}))
    found = read_tokens(Settings(api_token="all"), load_config(path)[0])

    assert found.caller("r") == Caller("reader", frozenset({"read"}))
    assert found.caller("all") is not None
    assert found.caller("nothing") is None


def test_a_token_itself_in_the_config_is_refused_and_not_shown(tmp_path: Path) -> None:
    """The place is for its digest."""
    path = tmp_path / "config.yml"
    path.write_text(yaml.safe_dump(CONFIG | {"api": {"tokens": {"x": {"digest": "geheim", "scopes": ["read"]}}}}))

    config, findings = load_config(path)

    said = "\n".join(map(str, findings))
    assert config is None
    assert "must be sha256: and 64 hexadecimal digits; 'conserver token' makes one" in said
    assert "geheim" not in said


def test_a_token_is_compared_by_digest_with_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """In constant time: neither what is right in it nor whose it is can be measured."""
    compared: list[tuple[str, str]] = []
    original = hmac.compare_digest

    def compare(given: str, known: str) -> bool:
        compared.append((given, known))
        return original(given, known)

    monkeypatch.setattr(tokens.hmac, "compare_digest", compare)
    known = [digest_of(name) for name in ("first", "second", "third")]
    found = Tokens({digest: Caller(digest, frozenset()) for digest in known})

    found.caller("first")
    found.caller("wrong")

    assert compared == [(digest_of(given), digest) for given in ("first", "wrong") for digest in known]
    assert digest_of("first") == f"sha256:{hashlib.sha256(b'first').hexdigest()}"


# Making one


@pytest.mark.parametrize(
    ("name", "scopes"),
    [
        ("client", ["write"]),
        ("no", ["read"]),
        ("a:b", ["ingress:in", "read"]),
        ("Zoë-'1'", ["admin"]),
        ("x", ["ingress:my list", "ingress:a,b"]),
    ],
)
def test_what_conserver_token_prints_works_when_it_is_pasted(tmp_path: Path, name: str, scopes: list[str]) -> None:
    """Into the config, and as a line of the file; what a line cannot hold is not offered as one."""
    done = Folder(tmp_path).run("token", name, *(word for scope in scopes for word in ("--scope", scope)))
    lines = done.stdout.splitlines()
    token = lines[0].split()[1]
    start = lines.index("    api:")
    pasted = "\n".join(line.removeprefix("    ") for line in lines[start : start + 3])
    path = tmp_path / "config.yml"
    path.write_text(f"{yaml.safe_dump(CONFIG)}{pasted}\n")
    config, findings = load_config(path)

    assert done.returncode == 0, done.stderr
    assert config is not None, findings
    assert read_tokens(Settings(), config).caller(token) == Caller(name, tokens.granted(scopes))
    if scopes[0] == "ingress:my list":
        assert len(lines) == start + 3
    else:
        assert of_file(tmp_path, lines[-1]).caller(token) == Caller(name, tokens.granted(scopes))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["two words"], "'two words' is no name of a token: one word that does not begin with #"),
        (["#x"], "'#x' is no name of a token: one word that does not begin with #"),
        (["x", "--scope", "everything"], "'everything' is no scope: read, write, admin or ingress:LIST"),
    ],
)
def test_a_token_that_could_not_be_written_down_is_not_made(tmp_path: Path, arguments: list[str], says: str) -> None:
    """And nothing is printed that looks like one."""
    done = Folder(tmp_path).run("token", *arguments)

    assert done.returncode == 2
    assert says in done.stderr
    assert done.stdout == ""


def test_each_token_is_new_and_long() -> None:
    """Nobody guesses 256 bits."""
    made = {new_token()[0] for _ in range(100)}

    assert len(made) == 100
    assert min(map(len, made)) >= 43


# When they count


class Looking:
    """An Api that looks for changes when it is told to."""

    def __init__(self, folder: Path, *, tokens: dict[str, str] | None = None) -> None:
        self.file = folder / "tokens"
        self.config_file = folder / "config.yml"
        self.file.write_text("one\n")
        self.configure(**(tokens or {}))
        self.api = Api(Settings(config_file=self.config_file, api_token_file=self.file), "redis://127.0.0.1:1")

    def configure(self, **entries: str) -> None:
        api = {"tokens": {name: {"digest": digest_of(name), "scopes": [scope]} for name, scope in entries.items()}}
        self.write(yaml.safe_dump(CONFIG | {"api": api}), self.config_file)

    def write(self, text: str, path: Path | None = None) -> None:
        draft = self.file.with_suffix(".new")
        draft.write_text(text)
        os.replace(draft, path or self.file)

    def known(self) -> list[str]:
        self.api.look()
        return [token for token in ("one", "two", "three", "four") if self.api.tokens.caller(token)]


@pytest.fixture
def looking(tmp_path: Path) -> Looking:
    """An Api with one token, in its file."""
    return Looking(tmp_path)


def test_tokens_come_and_go_without_a_restart(looking: Looking) -> None:
    """In the file and in the config."""
    known = [looking.known()]
    looking.write("one\ntwo\n")
    known.append(looking.known())
    looking.configure(three="read")
    known.append(looking.known())
    looking.write("two\n")
    known.append(looking.known())
    looking.configure()
    known.append(looking.known())

    assert known == [["one"], ["one", "two"], ["one", "two", "three"], ["two", "three"], ["two"]]


@pytest.mark.parametrize("text", ["", "# nobody\n", "two words\n", None])
def test_a_file_that_is_emptied_or_broken_leaves_the_last_good_tokens(
    looking: Looking, caplog: pytest.LogCaptureFixture, text: str | None
) -> None:
    """An empty one would open the API to everybody; log and config_error say so until it is right again."""
    if text is None:
        looking.file.unlink()
    else:
        looking.write(text)
    with caplog.at_level(logging.ERROR):
        known = looking.known()
    error = looking.api.config_error
    looking.write("two\n")

    assert known == ["one"]
    assert error.startswith("the last tokens stay in force: ")
    assert [record.getMessage() for record in caplog.records] == [error]
    assert looking.known() == ["two"]
    assert looking.api.config_error == ""


def test_a_token_can_be_revoked_while_the_config_is_broken(looking: Looking) -> None:
    """Somebody may be in a hurry."""
    looking.write("one\ntwo\n")
    both = looking.known()
    looking.write("chains: [", looking.config_file)
    looking.write("two\n")

    assert both == ["one", "two"]
    assert looking.known() == ["two"]
    assert looking.api.config_error.startswith("the config that was read before stays in force: ")
    assert list(looking.api.config.chains) == ["main"]


def test_a_broken_token_file_does_not_keep_a_new_config_out(looking: Looking) -> None:
    """Each by itself."""
    looking.write("two words")
    looking.configure(three="read")

    assert looking.known() == ["one"]
    assert looking.api.config.api.tokens.keys() == {"three"}


# Where the API listens


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_without_a_token_it_listens_on_loopback(tmp_path: Path, host: str) -> None:
    """Whatever address of it."""
    (tmp_path / "config.yml").write_text(yaml.safe_dump(CONFIG))

    listening.check(Settings(api_host=host, config_file=tmp_path / "config.yml"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "localhost.example.com", "127.0.0.1.example.com"])
def test_without_a_token_it_refuses_to_listen_elsewhere(tmp_path: Path, host: str) -> None:
    """With one it does, wherever that token is."""
    config_file = tmp_path / "config.yml"
    config_file.write_text(yaml.safe_dump(CONFIG))
    settings = Settings(api_host=host, config_file=config_file)

    with pytest.raises(SettingsError) as told:
        listening.check(settings)

    assert str(told.value).startswith(f"CONSERVER_API_HOST={host!r}: without a token the API listens on loopback only")
    listening.check(Settings(api_host=host, config_file=config_file, api_token="x"))
    config_file.write_text(
        yaml.safe_dump(CONFIG | {"api": {"tokens": {"x": {"digest": digest_of("x"), "scopes": ["read"]}}}})
    )
    listening.check(settings)


def test_conserver_api_ends_at_once_if_it_may_not_listen_there(tmp_path: Path) -> None:
    """The line says what to do."""
    done = Folder(tmp_path).run("api", "--host", "0.0.0.0", "--port", "0")

    assert done.returncode != 0
    assert "without a token the API listens on loopback only; set CONSERVER_API_TOKEN" in done.stderr
