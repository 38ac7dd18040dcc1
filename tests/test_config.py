"""conserver.config: what a file means, and what is said about it."""

from __future__ import annotations

import os
import pickle
import time
from pathlib import Path
from typing import Any

import pytest

from conserver.config import Config, Finding, draft_config, load_config
from conserver.findings import Findings, secrets_of, without
from conserver.yamlnodes import read_yaml

CHAIN = "chains: {main: {links: [], ingress_lists: [main_in]}}\n"


def load(folder: Path, text: str | bytes, env: dict[str, str] | None = None) -> tuple[Config | None, list[Finding]]:
    file = folder / "config.yml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_config(file, env or {})


def lines(findings: list[Finding]) -> list[str]:
    return [f"{f.line}:{f.column}: {f.level}[{f.rule}] {f.message}" for f in findings]


def found(folder: Path, text: str | bytes, env: dict[str, str] | None = None) -> list[str]:
    return lines(load(folder, text, env)[1])


def good(folder: Path, text: str, env: dict[str, str] | None = None) -> Config:
    config, findings = load(folder, text, env)
    assert config is not None, findings
    return config


def read(text: str, env: dict[str, str] | None = None) -> Any:
    findings = Findings("f")
    value = read_yaml(text, env or {}, findings)
    assert findings.sorted() == []
    return value


EVERYTHING = """\
ingress_auth:
  main_in: [first-key, second-key]
  other_in: third-key
imports:
  plain: json
  packaged:
    module: decimal
    pip_name: decimal
links:
  label:
    module: links.tag
    options: {tags: [new]}
    pip_name: none
    timeout: 30
    retry: {attempts: 3, backoff_secs: 1, max_backoff_secs: 5}
    when: {has_tag: "vip:yes"}
storages:
  files:
    module: storages.file
    options: {path: /tmp/vcons, file_permissions: 0o644}
    timeout: 12.5
    required: true
tracers:
  audit:
    module: tracers.jlinc
    options: {dlq_vcon_on_error: true}
    pip_name: none
followers:
  peer:
    url: https://peer.example
    egress_list: out
    follower_ingress_list: main_in
    auth_token: hush
    pulling_interval: 60
    fetch_vcon_limit: 10
hooks:
chains:
  main:
    links: [label]
    ingress_lists: [main_in, other_in]
    egress_lists: [main_out]
    storages: [files]
    tracers: [audit]
    enabled: 1
    timeout: 300
    weight: 4
    concurrency: 2
    retry: {attempts: 2}
    pause_after: 5
"""


class TestWhatAFileMeans:
    def test_every_key_of_the_existing_conserver_and_of_ours_is_accepted(self, tmp_path: Path) -> None:
        """Nothing but the warnings that say what is different here."""
        config, findings = load(tmp_path, EVERYTHING)

        assert config is not None
        assert {finding.rule for finding in findings} == {"now-enforced", "not-built"}
        assert config.folder == tmp_path
        assert config.links["label"].options == {"tags": ["new"]}
        assert config.links["label"].retry is not None
        assert config.links["label"].retry.max_backoff_secs == 5
        assert config.links["label"].when is not None
        assert config.links["label"].when.has_tag == ("vip:yes",)
        assert config.storages["files"].options["file_permissions"] == 0o644
        assert config.storages["files"].required is True
        assert config.ingress_auth == {"main_in": ("first-key", "second-key"), "other_in": ("third-key",)}
        assert config.imports["plain"].module == "json"
        assert config.followers["peer"].pulling_interval == 60
        chain = config.chains["main"]
        assert (chain.links, chain.ingress_lists) == (("label",), ("main_in", "other_in"))
        assert (chain.enabled, chain.timeout, chain.weight, chain.concurrency) == (True, 300, 4, 2)
        assert (chain.pause_after, chain.tracers) == (5, ("audit",))

    @pytest.mark.parametrize(
        "text", ["", "\n", "# nothing yet\n", "---\n", "links:\nchains:\nstorages:\ntracers:\n", "~"]
    )
    def test_a_file_or_section_with_nothing_in_it_is_empty(self, tmp_path: Path, text: str) -> None:
        """The existing conserver fails every vCon over a null section."""
        config = good(tmp_path, text)

        assert (config.links, config.storages, config.chains) == ({}, {}, {})

    def test_null_fields_have_their_defaults(self, tmp_path: Path) -> None:
        """`options:` with nothing behind it is {}, and so on."""
        text = "links: {a: {module: links.tag, options: , retry: {attempts: 2, backoff_secs: }}}\n"
        text += "chains: {c: {links: , ingress_lists: [x], timeout: 0, weight: ~}}"
        config = good(tmp_path, text)

        assert config.links["a"].options == {}
        assert config.links["a"].retry is not None
        assert config.links["a"].retry.backoff_secs == 10
        assert config.chains["c"].links == ()
        assert config.chains["c"].timeout is None
        assert config.chains["c"].weight == 1

    def test_a_config_goes_through_pickle_and_cannot_be_changed(self, tmp_path: Path) -> None:
        """The supervisor hands it to spawned workers."""
        config = good(tmp_path, EVERYTHING.replace("/tmp/vcons", "'${DIR}'"), {"DIR": "/x"})

        copy = pickle.loads(pickle.dumps(config))

        assert copy == config
        assert copy.digest == config.digest
        with pytest.raises(ValueError, match="frozen"):
            copy.folder = Path("/")

    def test_a_config_may_fill_its_caches_while_it_is_pickled(self, tmp_path: Path) -> None:
        """A supervisor hands it to several workers at once, while other threads ask it for its lists."""
        draft = good(tmp_path, EVERYTHING)
        config = Config(file=draft.file, folder=draft.folder, chains=draft.chains)

        class Asks:
            def __reduce__(self) -> tuple[type, tuple[list[str]]]:
                return list, (list(config.lists),)

        config.hooks["asks"] = Asks()
        copy = pickle.loads(pickle.dumps(config))

        assert copy.hooks["asks"] == list(config.lists)

    def test_no_secret_is_in_the_repr(self, tmp_path: Path) -> None:
        """A config that somebody logs shows neither options nor keys."""
        config = good(tmp_path, EVERYTHING.replace("/tmp/vcons", "s3cret"))

        assert "s3cret" not in repr(config)
        assert "first-key" not in repr(config)
        assert "hush" not in repr(config)

    def test_the_digest_changes_with_the_meaning_alone(self, tmp_path: Path) -> None:
        """A comment is no reason for a reload, a new value of a variable is."""
        text = EVERYTHING.replace("[new]", "['${TAG}']")
        first = good(tmp_path, text, {"TAG": "a"}).digest
        commented = good(tmp_path, f"# hello\n{text}", {"TAG": "a"}).digest
        other = good(tmp_path, text, {"TAG": "b"}).digest

        assert first == commented
        assert first != other
        assert len(first) == 64

    def test_the_last_enabled_chain_has_a_shared_list(self, tmp_path: Path) -> None:
        """As with the existing conserver; one that is switched off has none."""
        text = "chains:\n"
        for name, enabled in (("a", "true"), ("b", "true"), ("c", "false")):
            text += f"  {name}: {{links: [], ingress_lists: [x, only_{name}], enabled: {enabled}}}\n"
        config = good(tmp_path, text)

        assert config.chain_of("x") == "b"
        assert config.chain_of("only_a") == "a"
        assert config.chain_of("only_c") is None
        assert config.chain_of("nobodys") is None

    def test_a_chain_that_needs_what_is_not_built_is_not_worked_on(self, tmp_path: Path) -> None:
        """Its list waits, and the other chain runs."""
        text = "chains: {a: {links: [], ingress_lists: [x], schedule: 0 2 * * *}, b: {links: [], ingress_lists: [y]}}"
        config = good(tmp_path, text)

        assert config.waiting == {"a": "chain 'a': schedule comes with a later version"}
        assert config.lists == {"y": "b"}
        assert config.chain_of("x") is None

    @pytest.mark.parametrize("section", ["tracers: {t: {module: x}}", "hooks: {h: {module: x}}"])
    def test_tracers_and_hooks_hold_up_every_chain(self, tmp_path: Path, section: str) -> None:
        """An audit that is left out silently would be worse than a chain that waits."""
        config = good(tmp_path, f"{CHAIN}{section}")

        assert list(config.waiting) == ["main"]

    @pytest.mark.parametrize(
        ("module", "vendor"),
        [
            ("links.openai_transcribe", "openai"),
            ("links.groq_whisper", "groq"),
            ("links.hugging_face_whisper", "hugging_face"),
            ("links.deepgram_link", "deepgram"),
        ],
    )
    def test_old_names_of_links_lead_to_transcribe(self, tmp_path: Path, module: str, vendor: str) -> None:
        """All options become vendor_options, unless the vendor is in them."""
        text = f"links:\n  a: {{module: {module}, options: {{x: 1}}}}\n"
        text += f"  b: {{module: {module}, options: {{vendor_options: {{}}}}}}\n"
        config = good(tmp_path, text)

        assert config.links["a"].module == "links.transcribe"
        assert config.links["a"].options == {"vendor": vendor, "vendor_options": {"x": 1}}
        assert config.links["b"].options == {"vendor": vendor, "vendor_options": {}}

    def test_two_hundred_links_are_read_quickly(self, tmp_path: Path) -> None:
        """A reload of a large config holds nobody up."""
        text = "links:\n" + "".join(f"  l{i}: {{module: links.tag, options: {{tags: [a, b]}}}}\n" for i in range(200))
        text += f"chains: {{main: {{links: [{', '.join(f'l{i}' for i in range(200))}], ingress_lists: [x]}}}}"
        began = time.process_time()
        config = good(tmp_path, text)

        assert time.process_time() - began < 1.0
        assert len(config.links) == 200


class TestScalars:
    @pytest.mark.parametrize(
        ("written", "meant"),
        [
            ("true", True),
            ("FALSE", False),
            ("yes", "yes"),
            ("no", "no"),
            ("off", "off"),
            ("12", 12),
            ("-3", -3),
            ("0", 0),
            ("0o644", 420),
            ("0x1F", 31),
            ("1.5", 1.5),
            ("1e3", 1000.0),
            ("1:30", "1:30"),
            ("2026-11-22", "2026-11-22"),
            ("1_000", "1_000"),
            ("'012'", "012"),
            ("!!str 012", "012"),
            ("!!int 7", 7),
            ("~", None),
            ("9" * 5000, "9" * 5000),
            ("+15551234567", 15551234567),
            ("grüße", "grüße"),
        ],
    )
    def test_scalars_are_read_by_yaml_1_2(self, written: str, meant: Any) -> None:
        """No surprises of YAML 1.1."""
        value = read(f"a: {written}")["a"]

        assert value == meant
        assert type(value) is type(meant)

    def test_keys_are_text(self) -> None:
        """`on:` and `1:` are names like any other."""
        assert list(read("{on: 1, 1: 2, true: 3, ~: 4}")) == ["on", "1", "true", "~"]

    def test_anchors_aliases_and_merge_keys_work(self) -> None:
        """Own keys win over merged ones, earlier ones over later ones."""
        text = "x-a: &a {p: 1, q: 1}\nx-b: &b {q: 2, r: 2}\nc: {<<: [*a, *b], p: 3}\nd: *a\n"

        assert read(text)["c"] == {"p": 3, "q": 1, "r": 2}
        assert read(text)["d"] == {"p": 1, "q": 1}

    def test_a_bom_and_windows_line_ends_do_no_harm(self, tmp_path: Path) -> None:
        """Editors put them there."""
        config, findings = load(tmp_path, b"\xef\xbb\xbf" + CHAIN.replace("\n", "\r\n").encode())

        assert config is not None
        assert findings == []


class TestVariables:
    @pytest.mark.parametrize(
        ("written", "meant"),
        [
            ("x-${A}-${B:-b}", "x-a-b"),
            ("'${A}'", "a"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY}", ""),
            ("cost $$5 or $${A}", "cost $5 or ${A}"),
            ("$A $", "$A $"),
            ("${EVIL}", "x: [1, 2]\n- y"),
        ],
    )
    def test_variables_are_replaced_in_scalars_that_are_parsed(self, written: str, meant: str) -> None:
        """What is in a variable stays a scalar, whatever it looks like."""
        env = {"A": "a", "EMPTY": "", "EVIL": "x: [1, 2]\n- y"}

        assert read(f"v: {written}", env)["v"] == meant

    def test_a_variable_may_be_a_number_or_a_boolean(self, tmp_path: Path) -> None:
        """Fields of ours take it as if it stood there."""
        text = (
            "chains:\n  main:\n    links: []\n    ingress_lists: ['${L}']\n    weight: ${W}\n    enabled: ${E:-false}\n"
        )
        config = good(tmp_path, text, {"L": "calls", "W": "3"})

        chain = config.chains["main"]
        assert (chain.weight, chain.enabled, chain.ingress_lists) == (3, False, ("calls",))

    def test_values_from_the_environment_are_never_shown(self, tmp_path: Path) -> None:
        """Not as a wrong number, not as an unknown name, not as a list."""
        text = """\
links: {known: {module: links.tag, timeout: "${S}"}}
chains:
  main: {links: [known, "x${S}"], ingress_lists: ["vcon:${S}", "${S}"], schedule: "${S}", weight: "${S}"}
  again: {links: [known], ingress_lists: ["${S}"], egress_lists: ["${S}"]}
"""
        told = found(tmp_path, text, {"S": "hunter2hunter"})

        assert "hunter2" not in "\n".join(told)
        assert "1:45: error[wrong-type] link 'known': timeout must be a number, not ***" in told
        assert "3:25: error[unknown-link] chain 'main' uses link ***, which is not defined" in told

    def test_values_with_a_secret_name_are_never_shown(self, tmp_path: Path) -> None:
        """Even if they stand in the file."""
        text = "followers: {f: {auth_token: {a: 1}, url: 5}}\nx-s: {api_key: 0123}\ningress_auth: {a: [12345]}\n"
        told = "\n".join(found(tmp_path, text))

        assert "0123" not in told
        assert "12345" not in told
        assert "url must be text, not 5" in told


CASES = {
    "tab": ("links:\n\ta: 1\n", ["2:1: error[syntax] a tab: YAML is indented with spaces"]),
    "tab after spaces": ("links:\n  \ta: b: c\n", ["2:3: error[syntax] a tab: YAML is indented with spaces"]),
    "half written": (
        "links:\n  a: {module: links.tag\n",
        [
            "2:6: error[syntax] while parsing a flow mapping: did not find expected ',' or '}'; "
            "it is not closed, or a ${VAR} in it needs quotes"
        ],
    ),
    "open quote": (
        "a: 'x\nb: 1\n",
        ["1:4: error[syntax] while scanning a quoted scalar: found unexpected end of stream; it is never closed"],
    ),
    "colon in value": (
        "links:\n  a: b: c\n",
        [
            "2:7: error[syntax] mapping values are not allowed in this context; put quotes around "
            "a value that contains ': '",
        ],
    ),
    "two documents": (
        "a: 1\n---\nb: 1\n",
        ["2:1: error[syntax] a second document begins here; the config is one, so delete the line '---'"],
    ),
    "control character": ("x-a: 1\nx-b: \x07\n", ["2:6: error[syntax] control character U+0007: delete it"]),
    "not UTF-8": (b"x-a: 1\nx-b: \xe4\n", ["2:6: error[syntax] byte 0xE4 is not UTF-8; save the file as UTF-8"]),
    "UTF-16": ("a: 1".encode("utf-16"), ["1:1: error[syntax] byte 0xFF is not UTF-8; save the file as UTF-8"]),
    "too large": (b"#" * (5 * 1024 * 1024 + 1), ["1:1: error[syntax] larger than 5 MB; is this the right file?"]),
    "too deep": ("[" * 1_000_000, ["1:1: error[syntax] nested deeper than 100 levels"]),
    "not a mapping": (
        "- a\n",
        ["1:1: error[wrong-type] the file must be a mapping with links, storages and chains, not a list"],
    ),
    "section of another kind": (
        "links: [a]\n",
        ["1:8: error[wrong-type] links must be a mapping of names, not a list"],
    ),
    "component of another kind": (
        "links: {a: links.tag}\nchains: {c: {links: [a], ingress_lists: [x]}}",
        ["1:12: error[wrong-type] link 'a' must be a mapping, not 'links.tag'"],
    ),
    "duplicate in a nested mapping": (
        "x-a:\n  b: {c: 1,\n      c: 2}\n",
        ["3:7: error[duplicate-key] key 'c' is here a second time; the first is in line 2"],
    ),
    "alias of itself": (
        "x-a: &a [*a]\n",
        ["1:6: error[bad-value] the alias in here refers to what it stands in"],
    ),
    "merge of itself": (
        "x-a: &a\n  <<: *a\n",
        ["1:6: error[bad-value] the alias in here refers to what it stands in"],
    ),
    "merge of text": ("x-a: {<<: b}\n", ["1:11: error[wrong-type] '<<' takes a mapping, or a list of mappings"]),
    "python tag": (
        "x-a: !!python/name:os.system x\n",
        ["1:6: error[bad-value] tag !!python/name:os.system is not supported; write the value without it"],
    ),
    "wrong tag": ("x-a: !!int b\n", ["1:6: error[bad-value] 'b' is no int"]),
    "key that is a list": (
        "x-a: {[b]: 1}\n",
        ["1:7: error[wrong-type] a key must be text, not a list or a mapping"],
    ),
    "leading zero": (
        "x-a: 089\n",
        ['1:6: error[bad-value] 089 has a leading zero; write 89 (decimal) or "089" (text)'],
    ),
    "variable without a name": (
        "x-a: ${1}\n",
        ["1:6: error[bad-value] '${' without the name of a variable and a '}'; write $${ for these two characters"],
    ),
    "chain with nothing in it": (
        "chains: {main: }\n",
        [
            "1:10: error[missing-field] chain 'main' has no links; write 'links: []' for a chain "
            "that only stores and forwards",
            "1:10: warning[no-ingress] chain 'main' has no ingress_lists, so no vCon ever gets into it",
        ],
    ),
    "empty module": (
        "imports: {a: ''}\n",
        ["1:11: error[bad-value] import 'a': module must not be empty"],
    ),
    "numbers": (
        "chains: {c: {links: [], ingress_lists: [1], weight: 1.5, timeout: true, concurrency: 0, pause_after: -1}}\n",
        [
            "1:41: error[wrong-type] chain 'c': ingress_lists[1] must be text, not 1; write \"1\" with quotes",
            "1:53: error[wrong-type] chain 'c': weight must be a whole number, not 1.5",
            "1:67: error[bad-value] chain 'c': timeout must be a number, not true or false",
            "1:86: error[bad-value] chain 'c': concurrency must be at least 1, not 0",
            "1:102: error[bad-value] chain 'c': pause_after must be at least 0, not -1",
        ],
    ),
    "retry": (
        "chains: {c: {links: [], ingress_lists: [x], retry: {attempt: 3}}}\n",
        [
            "1:45: error[missing-field] chain 'c' has no retry.attempts",
            "1:53: warning[unknown-field] chain 'c': retry has an unknown field 'attempt'; did you mean 'attempts'?",
        ],
    ),
    "when": (
        "x-l: &l {links: [a], ingress_lists: [x]}\nchains: {c: *l}\nlinks: {a: {module: "
        "links.tag, when: {has_tags: [b]}}}\n",
        ["3:39: error[bad-value] link 'a': when.has_tags is no condition; did you mean 'has_tag'?"],
    ),
    "inline options": (
        "links: {tag: {module: links.tag}}\nchains:\n  c:\n    ingress_lists: [x]\n    "
        "links:\n      - tag: {tags: [a]}\n",
        [
            "6:9: error[wrong-type] chain 'c': links are named here; the options of a link stand "
            "under links.<name>.options",
        ],
    ),
    "reserved list": (
        "chains: {c: {links: [], ingress_lists: ['vcon:x'], egress_lists: ['']}}\n",
        [
            "1:41: error[bad-value] chain 'c': 'vcon:x' cannot be a list: it must not be empty or "
            "begin with conserver: or vcon:",
            "1:67: error[bad-value] chain 'c': '' cannot be a list: it must not be empty or begin "
            "with conserver: or vcon:",
        ],
    ),
    "empty key of a partner": (
        "ingress_auth: {a: ['']}\n",
        ["1:19: error[bad-value] ingress_auth: a key of list 'a' is empty, which would let anybody in"],
    ),
    "unknown section": (
        "link: {}\nworkers: 4\n",
        [
            "1:1: warning[unknown-field] 'link' is no section of the config; did you mean 'links'?",
            "2:1: warning[unknown-field] 'workers' is no section of the config",
        ],
    ),
    "schedule of four fields": (
        "chains: {c: {links: [], ingress_lists: [x], schedule: '* * * *'}}\n",
        [
            "1:55: error[bad-schedule] chain 'c': schedule '* * * *' has 4 fields instead of 5: "
            "minute hour day month weekday, as in '30 2 * * *'",
            "1:55: warning[not-built] chain 'c': schedule comes with a later version; "
            "until then chain 'c' is not worked on and its vCons wait in 'x'",
        ],
    ),
    "circle through a router": (
        "links: {r: {module: links.tag_router, options: {tag_routes: {vip: x}}}}\n"
        "chains: {c: {links: [r], ingress_lists: [x]}}\n",
        [
            "1:67: warning[chain-feeds-itself] chain 'c' feeds itself: 'c' -> list 'x' -> 'c'; "
            "a vCon goes round until a link stops it"
        ],
    ),
    "some of the tracers": (
        "tracers: {a: {module: x}, b: {module: y}}\nchains: {c: {links: [], ingress_lists: [x], tracers: []}}\n",
        [
            "1:11: warning[not-built] tracer 'a': tracers come with a later version",
            "1:27: warning[not-built] tracer 'b': tracers come with a later version",
            "2:45: warning[now-enforced] chain 'c' has only the tracers named here "
            "(the existing conserver runs all in every chain)",
        ],
    ),
    "all at once": (
        "links:\n  a: {module: 5}\nchains:\n  c:\n    links: [a, b]\n    ingress_lists: [x]\n    weight: no\n",
        [
            "2:15: error[wrong-type] link 'a': module must be text, not 5; write \"5\" with quotes",
            "5:16: error[unknown-link] chain 'c' uses link 'b', which is not defined",
            "7:13: error[wrong-type] chain 'c': weight must be a whole number, not 'no'",
        ],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_findings_have_place_rule_and_cure(case: str, tmp_path: Path) -> None:
    """The exact text and position; docs/reference/check.md has one more case for each rule."""
    text, expected = CASES[case]
    config, findings = load(tmp_path, text)

    assert lines(findings) == expected
    assert (config is None) == any(finding.level == "error" for finding in findings)


class TestFiles:
    def test_a_missing_file_is_named_in_full(self, tmp_path: Path) -> None:
        """With what to do about it."""
        config, findings = load_config(tmp_path / "nope.yml", {})

        assert config is None
        message = f"{tmp_path}/nope.yml does not exist; create it, or name another one in CONSERVER_CONFIG_FILE"
        assert lines(findings) == [f"1:1: error[syntax] {message}"]

    def test_a_folder_is_no_file(self, tmp_path: Path) -> None:
        """The reason of the operating system is passed on."""
        _, findings = load_config(tmp_path, {})

        assert lines(findings) == [f"1:1: error[syntax] {tmp_path} cannot be read: Is a directory"]

    def test_a_finding_is_one_line_with_the_path_as_given(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So that editors can jump to it."""
        monkeypatch.chdir(tmp_path)
        Path("my.yml").write_text('"a\\nb": 1\n')
        _, (finding,) = load_config(Path("my.yml"), {})

        assert str(finding) == r"my.yml:1:1: warning[unknown-field] 'a\nb' is no section of the config"

    def test_the_environment_of_the_process_is_the_default(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As the command line uses it."""
        monkeypatch.setitem(os.environ, "CONFIG_TEST_LIST", "calls")
        (tmp_path / "c.yml").write_text("chains: {c: {links: [], ingress_lists: ['${CONFIG_TEST_LIST}']}}")
        config, _ = load_config(tmp_path / "c.yml")

        assert config is not None
        assert config.chain_of("calls") == "c"

    @pytest.mark.parametrize(
        "bomb",
        [
            "a0: &a0 [x,x,x,x,x,x,x,x]\n"
            + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 8)}]\n" for i in range(1, 12)),
            "a0: &a0 {x: 1}\n"
            + "".join(f"a{i}: &a{i} {{<<: [{','.join([f'*a{i - 1}'] * 8)}]}}\n" for i in range(1, 12)),
        ],
    )
    def test_a_yaml_bomb_is_refused_at_once(self, tmp_path: Path, bomb: str) -> None:
        """Billions of values out of a few hundred bytes."""
        began = time.process_time()
        told = found(tmp_path, bomb)

        assert told == [
            "1:1: error[syntax] more than 200,000 values, aliases counted wherever they are used; split the config"
        ]
        assert time.process_time() - began < 5

    def test_a_draft_has_what_can_be_understood(self, tmp_path: Path) -> None:
        """So that the components are checked in the same go."""
        (tmp_path / "c.yml").write_text("links: {a: {module: links.tag, timeout: soon}}\nchains: 5\n")
        config, findings = draft_config(tmp_path / "c.yml", {})

        assert config.links["a"].module == "links.tag"
        assert [finding.rule for finding in findings.sorted()] == ["unused-link", "wrong-type", "wrong-type"]


@pytest.mark.parametrize(
    ("egress", "warned"),
    [
        ("analysi", True),
        ("anlaysis", True),
        ("Analysis", True),
        ("analysis_", True),
        ("analysis1", False),
        ("results", False),
        ("analysis", False),
    ],
)
def test_only_a_slip_of_an_ingress_list_is_worth_a_warning(tmp_path: Path, egress: str, warned: bool) -> None:
    """Most egress lists are read by clients that the config does not know."""
    text = f"chains: {{a: {{links: [], ingress_lists: [x], egress_lists: [{egress}]}}, "
    told = found(tmp_path, text + "b: {links: [], ingress_lists: [analysis]}}")

    assert any("egress-without-consumer" in line for line in told) is warned


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("url", "peer.example", "bad-value] follower 'p': url must be the URL of an HTTP API, as in https://other"),
        (
            "url",
            "ftp://peer.example",
            "bad-value] follower 'p': url must be the URL of an HTTP API, as in https://other",
        ),
        ("url", "http://", "bad-value] follower 'p': url must be the URL of an HTTP API, as in https://other"),
        (
            "url",
            "http://peer:99999",
            "bad-value] follower 'p': url must be the URL of an HTTP API, as in https://other",
        ),
        ("url", "http://peer/?a=b", "bad-value] follower 'p': url must be the URL of an HTTP API, as in https://other"),
        ("egress_list", "''", "bad-value] follower 'p': egress_list must not be empty"),
        ("follower_ingress_list", "''", "bad-value] follower 'p': '' cannot be a list: it must not be empty or begin"),
        ("follower_ingress_list", "vcon:x", "bad-value] follower 'p': 'vcon:x' cannot be a list: it must not be empty"),
        (
            "follower_ingress_list",
            "analyis",
            "egress-without-consumer] follower 'p': no chain reads the list 'analyis'; did you mean 'analysis'?",
        ),
    ],
)
def test_a_follower_that_could_not_work_is_found(tmp_path: Path, field: str, value: str, said: str) -> None:
    """Before it has pulled anything to nowhere."""
    fields = {"url": "https://peer.example/api", "egress_list": "out", "follower_ingress_list": "analysis"}
    fields |= {"auth_token": "x", "pulling_interval": "5", "fetch_vcon_limit": "10", field: value}
    text = "followers: {p: {" + ", ".join(f"{name}: {given}" for name, given in fields.items()) + "}}\n"
    told = found(tmp_path, text + "chains: {c: {links: [], ingress_lists: [analysis]}}\n")

    assert len(told) == 1
    assert said in told[0]


def test_outbound_says_what_urls_of_vcons_may_reach(tmp_path: Path) -> None:
    """The section becomes the policy, and what it does not know or cannot mean is found."""
    (tmp_path / "good.yml").write_text("outbound: {allow_private: [10.1.0.0/16, audio.local], allow_file: true}\n")
    config, findings = load_config(tmp_path / "good.yml", {})

    assert findings == []
    assert config is not None
    assert config.outbound.admits("audio.local", "192.168.1.5")
    assert not config.outbound.admits("other.local", "192.168.1.5")
    assert found(tmp_path, "outbound: {allow_privat: [a], allow_private: 5}\n") == [
        "1:12: warning[unknown-field] outbound has an unknown field 'allow_privat'; did you mean 'allow_private'?",
        "1:46: error[wrong-type] outbound: allow_private must be a list, not 5",
    ]


@pytest.mark.parametrize(
    "value",
    [
        "postgres://user:geheim%21@host/db",
        "https://host/path?token=geheim%21&x=1",
        "Server=host;Password=geheim%21;Database=db",
    ],
)
def test_secrets_inside_of_urls_and_connection_strings_are_secrets(value: str) -> None:
    """Whatever the option is called; an error may repeat them, also in another spelling."""
    secrets = secrets_of({"url": value})

    assert secrets == {"geheim%21"}
    assert "geheim" not in without(secrets, f"cannot reach {value}")
