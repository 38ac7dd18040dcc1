"""conserver.compat: `vcon.Vcon`, and the modules of `lib` that keep nothing: what each member does."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conserver import compat, telemetry
from conserver.compat import config, dlq_utils, in_force, settings, version
from conserver.compat.lib import (
    ai_usage,
    context_utils,
    dialog_body,
    logging_utils,
    metrics,
    openai_client,
    phone_number_utils,
    redaction,
    vcon_compat,
    vcon_egress_compat,
)
from conserver.compat.lib.links import filters
from conserver.compat.storage.base import Storage
from conserver.compat.vcon import Vcon
from conserver.config import load_config
from conserver.errors import ConfigError, VconSealed
from conserver.settings import Settings
from tests.fakes.http_server import HttpServer

A = "018f3c5e-0000-8000-8000-00000000000a"

# Vcon


def test_a_vcon_is_a_copy_of_what_it_was_made_of() -> None:
    """A change of one is no change of the other, both ways."""
    given = {"uuid": "u", "parties": [{"name": "Ann"}]}
    vcon = Vcon(given)
    vcon.parties[0]["name"] = "Bob"
    vcon.to_dict()["parties"].clear()

    assert given == {"uuid": "u", "parties": [{"name": "Ann"}]}
    assert vcon.vcon_dict == {"uuid": "u", "parties": [{"name": "Bob"}]}
    assert (Vcon().vcon_dict, Vcon({}).analysis) == ({}, [])


def test_text_is_taken_for_json(caplog: pytest.LogCaptureFixture) -> None:
    """With a line in the log; what is none, or no object, makes an empty vCon."""
    vcons = [Vcon('{"uuid": "u"}'), Vcon("{"), Vcon("[1]")]

    assert [vcon.vcon_dict for vcon in vcons] == [{"uuid": "u"}, {}, {}]
    assert len(caplog.records) == 3
    with pytest.raises(ValueError, match="Expecting"):
        Vcon.build_from_json("{")


def test_tags_are_the_attachment_that_holds_them() -> None:
    """None without one; a tag may be there twice, and the first counts."""
    vcon = Vcon({"uuid": "u"})
    assert (vcon.tags, vcon.get_tag("a")) == (None, None)
    vcon.add_tag("a", "b:c")
    vcon.add_tag("a", 2)

    assert vcon.tags == {"purpose": "tags", "body": '["a:b:c", "a:2"]', "encoding": "json"}
    assert vcon.get_tag("a") == "b:c"


@pytest.mark.parametrize("body", [{"old": "1"}, ["old:1"], '{"old": "1"}', '["old:1"]'])
def test_a_tag_joins_whatever_shape_the_tags_have(body: Any) -> None:
    """Objects are flattened."""
    vcon = Vcon({"attachments": [{"type": "tags", "body": body}]})
    vcon.add_tag("new", "2")

    assert (vcon.get_tag("old"), vcon.get_tag("new"), len(vcon.attachments)) == ("1", "2", 1)
    assert json.loads(vcon.attachments[0]["body"]) == ["old:1", "new:2"]


def test_an_attachment_keeps_its_object_until_it_is_stored() -> None:
    """As the sample link's test wants it; with the encoding json it is text at once."""
    vcon = Vcon({})
    vcon.add_attachment(body={"a": 1}, type="x", encoding="none")
    vcon.add_attachment(body={"a": 1}, type="y", encoding="json")
    vcon.add_attachment(body="text", type="z")

    assert vcon.attachments == [
        {"type": "x", "body": {"a": 1}, "encoding": "none"},
        {"type": "y", "body": '{"a":1}', "encoding": "json"},
        {"type": "z", "body": "text", "encoding": "none"},
    ]


@pytest.mark.parametrize(
    ("body", "encoding", "message"),
    [
        ("x", "base64", "encoding 'base64' is none of json, none, base64url"),
        ("{", "json", "the body is no JSON, though its encoding is json"),
        ({}, "base64url", "a base64url body must be text, not dict"),
    ],
)
def test_a_body_must_be_what_its_encoding_says(body: Any, encoding: str, message: str) -> None:
    """For attachments and for analyses."""
    with pytest.raises(ValueError, match=message):
        Vcon({}).add_attachment(body=body, type="x", encoding=encoding)
    with pytest.raises(ValueError, match=message):
        Vcon({}).add_analysis(type="x", dialog=0, vendor="v", body=body, encoding=encoding)


def test_dialog_and_vendor_of_an_analysis_must_be_named() -> None:
    """Missing ones are told by Python."""
    with pytest.raises(TypeError, match="dialog"):
        Vcon({}).add_analysis(type="x", vendor="v", body="b")  # type: ignore[call-arg]


def test_nothing_is_added_to_a_signed_vcon() -> None:
    """It would be lost, or break the signature."""
    vcon = Vcon({"payload": "e30", "signatures": [{"header": {"uuid": A}, "signature": "AA"}]})
    for add in (
        lambda: vcon.add_party({}),
        lambda: vcon.add_dialog({}),
        lambda: vcon.add_tag("a", "b"),
        lambda: vcon.add_analysis(type="x", dialog=0, vendor="v", body="b"),
    ):
        with pytest.raises(VconSealed, match=f"vCon {A} is signed"):
            add()

    assert (vcon.uuid, vcon.parties, vcon.tags, len(vcon.vcon_dict)) == (A, [], None, 2)


# Metrics and logs


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> telemetry.Metrics:
    """The metrics of this process, empty."""
    mine = telemetry.Metrics()
    monkeypatch.setattr(telemetry, "metrics", mine)
    return mine


def test_numbers_go_to_the_metrics_without_uuids(counted: telemetry.Metrics, caplog: pytest.LogCaptureFixture) -> None:
    """A series for each vCon would fill every memory; a counter does not go back."""
    uuid = "018f3c5e-0000-8000-8000-00000000000a"
    metrics.increment_counter("c", attributes={"vcon.uuid": "x", "other": uuid, "n": 1, "none": None})
    metrics.increment_counter("c", -1)
    metrics.record_histogram("h", 0.2, {"link.name": "l"})
    metrics.add_updown_counter("u", 2)
    metrics.add_updown_counter("u", -2)
    snapshot = counted.snapshot()

    assert snapshot["counters"] == {("c", (("n", "1"),)): 1, ("u.up", ()): 2, ("u.down", ()): 2}
    assert list(snapshot["histograms"]) == [("h", (("link.name", "l"),))]
    assert [record.getMessage() for record in caplog.records] == ["counter 'c' cannot be decreased by -1: not counted"]


def test_extras_are_fields_of_the_line() -> None:
    """As the JSON lines of the existing conserver have them; the same logger twice changes nothing."""
    logging_utils.init_logger("acme")
    logger = logging_utils.init_logger("acme")
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(telemetry.JsonFormatter().format(record))  # type: ignore[method-assign]
    logger.addHandler(handler)
    logger.warning("said %s", "this", extra={"link_name": "mine", "fields": {"vcon": "u"}})
    logger.removeHandler(handler)

    [line] = map(json.loads, lines)
    assert (line["message"], line["link_name"], line["vcon"]) == ("said this", "mine", "u")
    assert len(logger.filters) == 1


# Filters


TAGGED = {"attachments": [{"type": "tags", "body": ["a:b"]}], "analysis": [{"type": "s", "body": "needs review"}]}


@pytest.mark.parametrize(
    ("only_if", "expected"),
    [
        (None, True),
        ({"section": "attachments", "type": "tags", "includes": "a:b"}, True),
        ({"section": "attachments", "purpose": "tags", "includes": "a"}, False),
        ({"section": "analysis", "type": "s", "includes": "review"}, True),
        ({"section": "analysis", "type": "s", "includes": "none"}, False),
        ({"section": "analysis"}, False),
        ({"section": "elsewhere", "type": "s", "includes": "x"}, False),
    ],
)
def test_only_if_says_which_vcons_are_meant(only_if: Any, expected: bool) -> None:
    """What cannot be applied means none."""
    assert filters.is_included({"only_if": only_if}, Vcon(TAGGED)) is expected


def test_a_vcon_that_is_none_meets_no_condition() -> None:
    """As links pass on what `get_vcon` has returned."""
    assert filters.is_included({"only_if": {"section": "analysis", "type": "s", "includes": "x"}}, None) is False
    assert filters.is_included(None, None) is True


def test_sampling_draws_with_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing or 0 is always, as it was."""
    monkeypatch.setattr(filters.random, "random", lambda: 0.3)

    assert [filters.randomly_execute_with_sampling({"sampling_rate": r}) for r in (0.4, 0.2, 0, None)] == [
        True,
        False,
        True,
        True,
    ]


# Models and usage


def test_a_client_is_made_for_the_first_complete_group() -> None:
    """Whatever else the options of the link hold."""
    azure = {"AZURE_OPENAI_ENDPOINT": "https://a.example", "AZURE_OPENAI_API_KEY": "k1", "temperature": "warm"}
    both = {**azure, "LITELLM_PROXY_URL": "http://l.example", "LITELLM_MASTER_KEY": "k2", "timeout": None}
    clients = [openai_client.get_openai_client(opts) for opts in (azure, both, {"openai_api_key": "k3"})]

    assert [type(client).__name__ for client in clients] == ["AzureOpenAI", "OpenAI", "OpenAI"]
    assert [client.api_key for client in clients] == ["k1", "k2", "k3"]
    assert [client.base_url.host for client in clients] == ["a.example", "l.example", "api.openai.com"]
    assert type(openai_client.get_async_openai_client(azure)).__name__ == "AsyncAzureOpenAI"


@pytest.mark.parametrize("opts", [None, {}, {"LITELLM_PROXY_URL": "http://l.example"}])
def test_options_without_a_service_are_refused(opts: Any) -> None:
    """With what is missing."""
    for get in (openai_client.get_openai_client, openai_client.get_async_openai_client):
        with pytest.raises(ValueError, match="no model service: give OPENAI_API_KEY"):
            get(opts)
    assert openai_client.get_vendor_from_opts(opts) == "openai"


def test_the_vendor_is_who_answers() -> None:
    """Behind a proxy by the name of the model."""
    proxy = {"LITELLM_PROXY_URL": "http://l.example", "LITELLM_MASTER_KEY": "k"}

    assert openai_client.get_vendor_from_opts({**proxy, "model": "vertex_ai/gemini-pro"}) == "google"
    assert openai_client.get_vendor_from_opts({**proxy, "model": "own"}) == "litellm"
    assert openai_client.get_vendor_from_opts({"OPENAI_API_KEY": "k", "model": "gpt-4"}) == "openai"


def test_usage_is_reported_and_a_failure_costs_nothing() -> None:
    """Without an URL nothing is sent."""
    with HttpServer(lambda exchange: exchange.answer(500)) as server:
        ai_usage.send_ai_usage_data_for_tracking("u", 1, 2, "tokens", "T", f"{server.url}/x", "tok", "m", sub_type="S")
        ai_usage.send_ai_usage_data_for_tracking("u", 1, 2, "tokens", "T", "", "tok", "m")

    report = json.loads(server.requests[0].body)
    assert {request.headers["authorization"] for request in server.requests} == {"Bearer tok"}
    assert (report["record_id"], report["sub_type"], report["output_units"]) == ("u", "S", 2)


# Small ones


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("5550100", "5550100"),
        ("(555) 010-0123", "+15550100123"),
        ("1-555-010-0123", "+15550100123"),
        ("+44 20 7946 0018", "+442079460018"),
        ("tel:+1 555 010 0123", "+15550100123"),
        ("555-010-0123 ext. 7", "+15550100123"),
        (None, ""),
    ],
)
def test_numbers_are_made_e164_without_a_package(given: Any, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the US where they name no country."""
    monkeypatch.setitem(__import__("sys").modules, "phonenumbers", None)

    assert phone_number_utils.get_e164_number(given) == expected


def test_the_package_for_numbers_decides_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one that knows a single number."""

    class NumberParseException(Exception):
        pass

    def parse(text: str, region: str) -> str:
        if text != "555 010 0123" or region != "US":
            raise NumberParseException("nobody has it")
        return text

    package = SimpleNamespace(
        parse=parse,
        NumberParseException=NumberParseException,
        PhoneNumberFormat=SimpleNamespace(E164=0),
        format_number=lambda number, form: f"+1 for {number}",
    )
    monkeypatch.setitem(__import__("sys").modules, "phonenumbers", package)

    assert phone_number_utils.get_e164_number("555 010 0123") == "+1 for 555 010 0123"
    with pytest.raises(ValueError, match="'000 000 0000' is no telephone number: nobody has it"):
        phone_number_utils.get_e164_number("000 000 0000")


@pytest.mark.parametrize(
    ("dialog", "expected"),
    [
        ({"body": "-_8", "encoding": "base64url"}, b"\xfb\xff"),
        ({"body": "-_8=", "encoding": "base64url"}, b"\xfb\xff"),
        ({"body": "+/8=", "encoding": "base64"}, b"\xfb\xff"),
        ({"body": "+/\n8="}, b"\xfb\xff"),
    ],
)
def test_an_inline_body_is_decoded(dialog: dict[str, str], expected: bytes) -> None:
    """With and without padding, with line breaks; no encoding means base64."""
    assert dialog_body.decode_inline_dialog_body(dialog) == expected


@pytest.mark.parametrize(
    ("dialog", "message"),
    [
        ({"body": "x", "encoding": "none"}, "a body with encoding 'none' holds no bytes"),
        ({"body": "+/8=", "encoding": "base64url"}, "the body is no base64url"),
        ({"body": "-_8=", "encoding": "base64"}, "the body is no base64"),
        ({"encoding": "base64"}, "the body must be text, not NoneType"),
    ],
)
def test_what_is_no_inline_body_is_refused(dialog: dict[str, str], message: str) -> None:
    """Nothing is guessed: a wrong alphabet is another content."""
    with pytest.raises(ValueError, match=message):
        dialog_body.decode_inline_dialog_body(dialog)


def test_secrets_are_left_out_of_options() -> None:
    """By their names, nested ones too."""
    opts = {
        "model": "m",
        "LITELLM_MASTER_KEY": "s",
        "send_ai_usage_data_to_url": "u",
        "more": {"api-token": "s", "a": 1},
    }

    assert redaction.safe_opts(opts) == {"model": "m", "more": {"a": 1}}
    assert [redaction.is_sensitive_name(name) for name in ("PASSWD", "proxy_url", "model")] == [True, True, False]


def test_old_names_of_members_are_renamed() -> None:
    """In place; of two the new one counts."""
    document = {
        "must_support": ["x"],
        "dialog": [{"mimetype": "a/b", "mediatype": "c/d"}],
        "analysis": [{"schema_version": "1", "type": "s"}],
        "attachments": [{"type": "t"}, {"type": "t", "purpose": "p"}],
    }
    again = vcon_compat.normalize_legacy_fields(document)

    assert again is document
    assert document == {
        "critical": ["x"],
        "dialog": [{"mediatype": "c/d"}],
        "analysis": [{"schema": "1", "type": "s"}],
        "attachments": [{"purpose": "t"}, {"purpose": "p"}],
    }


def test_an_older_version_is_written_for_those_who_want_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The configured one by `EGRESS_FORMAT_VERSION`; the document stays as it is."""
    document = {"vcon": "0.4.0", "uuid": "u", "attachments": [{"purpose": "t", "body": "{}", "encoding": "json"}]}
    unset = vcon_egress_compat.to_configured_legacy(document)
    monkeypatch.setenv("EGRESS_FORMAT_VERSION", "0.0.1")
    configured = vcon_egress_compat.to_configured_legacy(document)

    assert (unset, document["vcon"], vcon_egress_compat.SUPPORTED_VERSIONS) == (document, "0.4.0", ("0.0.1",))
    assert configured == vcon_egress_compat.to_legacy(document, "0.0.1")
    assert (configured["vcon"], configured["attachments"][0]["type"], configured["group"]) == ("0.0.1", "t", [])
    with pytest.raises(ValueError, match=r"cannot write vCons of version '0\.2\.0'"):
        vcon_egress_compat.to_legacy(document, "0.2.0")


def test_a_context_that_cannot_be_read_is_none() -> None:
    """Other programs write there, too."""
    taken = iter(["{", "[1]", None])
    client = SimpleNamespace(lpop=lambda key: next(taken))

    assert [context_utils.retrieve_context(client, "in", "u") for _ in range(3)] == [None, None, None]


def test_names_of_dead_letters() -> None:
    """Those that our queue uses."""
    assert dlq_utils.get_ingress_list_dlq_name("in") == "DLQ:in"
    assert dlq_utils.get_storage_dlq_name("s3") == "DLQ:storage:s3"


def test_the_version_is_that_of_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else ours."""
    for name in ("VERSION", "GIT_COMMIT", "BUILD_TIME"):
        monkeypatch.delenv(f"VCON_SERVER_{name}", raising=False)
    ours = version.get_version_info()
    monkeypatch.setenv("VCON_SERVER_VERSION", "7")

    assert ours == {"version": __import__("conserver").__version__, "git_commit": "unknown", "build_time": "unknown"}
    assert version.get_version_string() == "7 (commit unknown, built unknown)"


# config, settings, storages


@pytest.fixture
def no_config(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No conserver runs in this process."""
    monkeypatch.setattr(in_force, "_config", None)
    yield
    in_force._config = None


CONFIG = """
links: {tag: {module: links.tag, options: {tags: [a], api_key: "${KEY}"}}}
storages: {archive: {module: storages.file, options: {path: PATH}}}
chains: {main: {links: [tag], storages: [archive], ingress_lists: [in], timeout: 5}}
ingress_auth: {in: [k1]}
"""


@pytest.mark.usefixtures("no_config")
def test_the_config_is_the_one_in_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Outside of a conserver that of the environment; as the mapping of the file, without what it does not say."""
    (tmp_path / "config.yml").write_text(CONFIG)
    monkeypatch.setenv("CONSERVER_CONFIG_FILE", str(tmp_path / "config.yml"))
    monkeypatch.setenv("KEY", "s")
    outside = config.get_config()
    (tmp_path / "config.yml").write_text(CONFIG.replace("tags: [a]", "tags: [b]"))
    new, _ = load_config(tmp_path / "config.yml")
    assert new is not None
    compat.use(new)
    (tmp_path / "config.yml").write_text("broken: [")

    assert outside["links"] == {"tag": {"module": "links.tag", "options": {"tags": ["a"], "api_key": "s"}}}
    assert config.get_config()["links"]["tag"]["options"]["tags"] == ["b"]
    assert outside["chains"]["main"] == {
        "links": ["tag"],
        "storages": ["archive"],
        "ingress_lists": ["in"],
        "timeout": 5.0,
    }
    assert config.Configuration.get_ingress_auth() == {"in": ["k1"]}
    assert config.Configuration.get_storages()["archive"]["module"] == "storages.file"


@pytest.mark.usefixtures("no_config")
def test_a_config_that_is_broken_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the line, when a script asks for it."""
    (tmp_path / "config.yml").write_text("links: [")
    monkeypatch.setenv("CONSERVER_CONFIG_FILE", str(tmp_path / "config.yml"))

    with pytest.raises(ConfigError, match=r"config.yml:2:1: error\[syntax\]"):
        config.get_config()


@pytest.mark.usefixtures("no_config")
def test_a_storage_is_found_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the options of the config; one that is not there is said."""
    (tmp_path / "config.yml").write_text(CONFIG.replace("PATH", str(tmp_path / "vcons")))
    monkeypatch.setenv("CONSERVER_CONFIG_FILE", str(tmp_path / "config.yml"))
    monkeypatch.setenv("KEY", "s")
    storage = Storage("archive")

    assert (storage.storage_name, storage.module_name) == ("archive", "storages.file")
    assert storage.get("018f3c5e-0000-8000-8000-00000000000a") is None
    assert storage.delete("018f3c5e-0000-8000-8000-00000000000a") is False
    with pytest.raises(ConfigError, match="the config has no storage 'none'"):
        Storage("none")


def test_settings_are_what_this_conserver_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read when they are asked for; what nobody uses has the default that it had."""
    for name in settings.__all__:
        monkeypatch.delenv(name, raising=False)
    unset = {name: getattr(settings, name) for name in settings.__all__}
    monkeypatch.setenv("VCON_INDEX_EXPIRY", "5")
    monkeypatch.setenv("TICK_INTERVAL", "6")
    monkeypatch.setenv("VCON_SORTED_FORCE_RESET", "no")

    assert (unset["REDIS_URL"], unset["API_ROOT_PATH"], unset["TICK_INTERVAL"]) == ("redis://localhost", "/api", 5000)
    assert (unset["CONSERVER_API_TOKEN"], unset["VCON_STORAGE"], unset["ENV"]) == (None, "", "dev")
    assert (settings.VCON_INDEX_EXPIRY, settings.TICK_INTERVAL, settings.VCON_SORTED_FORCE_RESET) == (5, 6, False)
    assert Settings.from_env().workers == settings.CONSERVER_WORKERS
    with pytest.raises(AttributeError, match="settings has no 'NOTHING'"):
        _ = settings.NOTHING
