"""conserver.components: what a component must be, what its options become, and what is said when it cannot be used."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conserver.catalogue import describe
from conserver.components import (
    Link,
    Storage,
    check,
    check_components,
    load_imports,
    load_link,
    load_storage,
    use_folder,
)
from conserver.config import LinkConfig, StorageConfig, draft_config, load_config
from conserver.errors import ConfigError

Write = Callable[[str, str], None]

RUN = "def run(vcon_uuid, link_name, opts):\n    return vcon_uuid\n"
SAVE = "def save(vcon_uuid, opts):\n    pass\n"


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    """Write a module beside the config; afterwards nothing of it is left in this process."""
    modules, path = set(sys.modules), list(sys.path)

    def write(name: str, text: str) -> None:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(text))
        use_folder(tmp_path)

    yield write
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if file.startswith(str(tmp_path)):
            del sys.modules[name]
    importlib.invalidate_caches()


def link(module: str, options: dict[str, Any] | None = None, **fields: Any) -> Link:
    return load_link(LinkConfig(name="mine", module=module, options=options or {}, **fields))


def storage(module: str, options: dict[str, Any] | None = None, **fields: Any) -> Storage:
    return load_storage(StorageConfig(name="mine", module=module, options=options or {}, **fields))


def refusal(module: str, options: dict[str, Any] | None = None, **fields: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        link(module, options, **fields)
    return str(caught.value)


def findings(folder: Path, text: str, env: dict[str, str] | None = None, limit_secs: float = 30.0) -> list[str]:
    (folder / "config.yml").write_text(text)
    config, _ = draft_config(folder / "config.yml", env or {})
    found = check_components(config, {"VCON_REDIS_EXPIRY": "0"}, limit_secs=limit_secs)
    return [f"{f.line}:{f.column}: {f.level}[{f.rule}] {f.message}" for f in found]


class TestLoading:
    def test_a_link_of_your_own_lives_with_ours(self, write: Write) -> None:
        """`links` is one namespace over our folder and the config's."""
        write("links/test_mine.py", RUN)

        assert link("links.test_mine").run("u", "mine", {}) == "u"
        assert link("links.tag").module == "links.tag"

    def test_a_link_of_your_own_lives_with_ours_in_site_packages(self, tmp_path: Path) -> None:
        """Also when `links` was imported before the folder came onto the path."""
        for place, name in (("site", "ours"), ("user", "mine")):
            (tmp_path / place / "links").mkdir(parents=True)
            (tmp_path / place / "links" / f"{name}.py").write_text(RUN)
        code = f"""
        import sys
        sys.path.insert(0, {str(tmp_path / "site")!r})
        import links.ours
        from pathlib import Path
        from conserver.components import use_folder
        use_folder(Path({str(tmp_path / "user")!r}))
        use_folder(Path({str(tmp_path / "user")!r}))
        import links.mine, links.ours
        assert sys.path.count({str(tmp_path / "user")!r}) == 1
        """
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}

        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=env,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

        assert done.stderr == ""
        assert done.returncode == 0

    def test_a_file_beside_the_config_hides_no_library(self, write: Write) -> None:
        """The folder comes last on the path."""
        write("json.py", "raise RuntimeError")

        assert "dumps" in dir(importlib.reload(importlib.import_module("json")))

    def test_any_module_may_be_a_component(self, write: Write) -> None:
        """The name is what Python imports."""
        write("acme_package/deep/links.py", RUN)
        write("acme_package/__init__.py", "")

        assert link("acme_package.deep.links").run("u", "mine", {}) == "u"

    def test_an_entry_point_may_be_a_component(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        """A package announces its links under short names."""
        write("acme_entry.py", RUN)
        entry = importlib.metadata.EntryPoint("acme", "acme_entry", "conserver.links")
        given = importlib.metadata.EntryPoints([entry])
        monkeypatch.setattr(importlib.metadata, "entry_points", lambda **wanted: given.select(**wanted))

        assert link("acme").run("u", "mine", {}) == "u"

    def test_a_storage_has_what_its_module_has(self, write: Write) -> None:
        """get, delete and ping are None where they are not there."""
        write("storages/test_full.py", f"{SAVE}def get(a, b): pass\ndef delete(a, b): pass\ndef ping(a): pass\n")
        write("storages/test_bare.py", SAVE)
        full = storage("storages.test_full", timeout=3, required=True)
        bare = storage("storages.test_bare")

        assert (full.get is None, full.delete is None, full.ping is None) == (False, False, False)
        assert (full.timeout, full.required) == (3, True)
        assert (bare.get, bare.delete, bare.ping) == (None, None, None)

    def test_fingerprints_follow_module_and_options(self, write: Write) -> None:
        """The note of what is done must be the same in every process, and not survive a change."""
        write("links/test_a.py", RUN)
        write("links/test_b.py", RUN)
        prints = [
            link("links.test_a", {"x": 1, "y": [2]}).fingerprint,
            link("links.test_a", {"y": [2], "x": 1}, timeout=5).fingerprint,
            link("links.test_a", {"x": 2, "y": [2]}).fingerprint,
            link("links.test_b", {"x": 1, "y": [2]}).fingerprint,
        ]

        assert prints[0] == prints[1] == "98cb6bf9efcb619d"
        assert len(set(prints)) == 3

    def test_imports_are_imported(self, write: Write, tmp_path: Path) -> None:
        """And one that fails says which it is."""
        write("acme_setup.py", "DONE = True")
        (tmp_path / "config.yml").write_text("imports: {setup: acme_setup, other: acme_none}")
        config, _ = load_config(tmp_path / "config.yml", {})
        assert config is not None
        with pytest.raises(ConfigError, match="import 'other': there is no module acme_none"):
            load_imports(config)

        assert sys.modules["acme_setup"].DONE is True

    def test_a_description_has_summary_and_options(self, write: Write) -> None:
        """For `conserver list` and the reference pages."""
        write("links/test_typed.py", f'"""Count things.\n\nMore."""\n{OPTIONS}{RUN}')
        write("links/test_dict.py", f'"""Add a tag."""\ndefault_options = {{"tag": "new"}}\n{RUN}')
        typed, plain = describe("links.test_typed"), describe("links.test_dict")

        assert typed.summary == "Count things."
        assert (typed.options[0].name, typed.options[0].type) == ("webhook-urls", "list of text")
        assert [(option.name, option.default) for option in plain.options] == [("tag", "new")]


OPTIONS = """
from pydantic import BaseModel, Field

class Options(BaseModel):
    urls: list[str] = Field(default=[], alias="webhook-urls")
    password: str = ""
    port: int = 80
    flag: bool = False
    anything: dict = {}

"""


class TestOptions:
    def test_defaults_are_merged_and_yours_win(self, write: Write) -> None:
        """One level deep, and the module's own dict stays as it is."""
        write("links/test_dict.py", f"default_options = {{'a': 1, 'b': {{'c': 1}}, 'd': []}}\n{RUN}")
        options = link("links.test_dict", {"b": {"x": 2}}).options
        options["d"].append(1)

        assert options == {"a": 1, "b": {"x": 2}, "d": [1]}
        assert link("links.test_dict").options == {"a": 1, "b": {"c": 1}, "d": []}

    def test_options_are_a_dict_without_any_declaration(self, write: Write) -> None:
        """Never None."""
        write("links/test_bare.py", RUN)

        assert link("links.test_bare").options == {}
        assert link("links.test_bare", {"x": 1}).options == {"x": 1}

    def test_typed_options_are_an_instance(self, write: Write) -> None:
        """With aliases such as webhook-urls."""
        write("links/test_typed.py", f"{OPTIONS}{RUN}")
        options = link("links.test_typed", {"webhook-urls": ["http://x"], "port": "8080"}).options

        assert type(options).__name__ == "Options"
        assert (options.urls, options.port) == (["http://x"], 8080)

    def test_a_variable_is_a_number_where_a_number_is_wanted_and_text_where_text_is(
        self, write: Write, tmp_path: Path
    ) -> None:
        """A password of digits is still a password."""
        write("links/test_typed.py", f"{OPTIONS}{RUN}")
        write("links/test_dict.py", f"default_options = {{'password': '', 'port': 80, 'flag': False}}\n{RUN}")
        block = "{password: '', port: 0}"
        text = "links:\n"
        for name in ("typed", "dict"):
            text += f"  {name}:\n    module: links.test_{name}\n    options:\n"
            text += '      password: ${P}\n      port: ${N}\n      flag: ${F}\n      anything: {n: "${N}"}\n'
        text += f"x-unused: {block}\n"
        (tmp_path / "config.yml").write_text(text)
        config, _ = load_config(tmp_path / "config.yml", {"P": "1234", "N": "8080", "F": "true"})
        assert config is not None
        typed = load_link(config.links["typed"]).options
        plain = load_link(config.links["dict"]).options

        assert (typed.password, typed.port, typed.flag) == ("1234", 8080, True)
        assert plain == {"password": "1234", "port": 8080, "flag": True, "anything": {"n": "8080"}}
        assert {type(value) for value in plain.values()} == {str, int, bool, dict}
        assert type(plain["anything"]["n"]) is str

    def test_an_empty_variable_is_an_empty_text(self, write: Write, tmp_path: Path) -> None:
        """`${P}` does not turn into null."""
        write("links/test_bare.py", RUN)
        (tmp_path / "config.yml").write_text("links:\n  a:\n    module: links.test_bare\n    options:\n      p: ${P}\n")
        config, _ = load_config(tmp_path / "config.yml", {"P": ""})
        assert config is not None

        assert load_link(config.links["a"]).options == {"p": ""}

    def test_yes_and_no_are_understood_where_a_boolean_is_wanted(self, write: Write, tmp_path: Path) -> None:
        """With a word about it, and only there."""
        write("links/test_typed.py", f"{OPTIONS}{RUN}")
        write("links/test_dict.py", f"default_options = {{'flag': True, 'language': 'en'}}\n{RUN}")
        text = """\
links:
  typed: {module: links.test_typed, options: {flag: yes, password: no}}
  plain: {module: links.test_dict, options: {flag: no, language: no}}
"""
        told = findings(tmp_path, text)

        assert link("links.test_typed", {"flag": "yes"}).options.flag is True
        assert link("links.test_dict", {"flag": "no", "language": "no"}).options == {"flag": False, "language": "no"}
        assert told == [
            "2:53: warning[deprecated] link 'typed': write 'flag: true' instead of 'yes', which is text in YAML 1.2",
            "3:52: warning[deprecated] link 'plain': write 'flag: false' instead of 'no', which is text in YAML 1.2",
        ]

    def test_wrong_options_are_found_where_they_stand(self, write: Write, tmp_path: Path) -> None:
        """Each at its own line and column, the unknown ones too, without a secret."""
        write("links/test_typed.py", f"{OPTIONS}{RUN}")
        text = """\
links:
  a:
    module: links.test_typed
    options:
      webhook-urls: [x, [hidden]]
      urls: [y]
      password: [secret]
      port: "${PORT}"
      flag: 7
      after_link: {x: 1}
"""
        told = findings(tmp_path, text, {"PORT": "hunter2"})

        assert told == [
            "5:25: error[bad-options] link 'a': option 'webhook-urls.1' must be a valid string, not a list",
            "6:7: warning[unknown-option] link 'a' has no option 'urls'",
            "7:17: error[bad-options] link 'a': option 'password' must be a valid string, not a list",
            "8:13: error[bad-options] link 'a': option 'port' must be a valid integer, not ***",
            "9:13: error[bad-options] link 'a': option 'flag' must be a valid boolean, not 7",
        ]

    def test_what_is_too_short_is_told_in_plain_words(self, write: Write, tmp_path: Path) -> None:
        """Not in those of Python's types."""
        write(
            "links/test_short.py",
            """
            from pydantic import BaseModel, Field, SecretStr

            class Options(BaseModel):
                name: str = Field(min_length=1)
                api_key: SecretStr = Field(min_length=1)
                hosts: tuple[str, ...] = Field(min_length=1)
                ports: tuple[str, ...]

            def run(vcon_uuid, link_name, opts):
                return vcon_uuid
            """,
        )
        options = '{name: "", api_key: "", hosts: [], ports: "80"}'
        told = findings(tmp_path, f"links:\n  a: {{module: links.test_short, options: {options}}}\n")

        assert [finding.partition("option ")[2] for finding in told if "bad-options" in finding] == [
            "'name' must have at least 1 character, not ''",
            "'api_key' must have at least 1 character, not ***",
            "'hosts' must have at least 1 item, not a list",
            "'ports' must be a valid list, not '80'",
        ]

    def test_a_validator_cannot_give_a_secret_away(self, write: Write) -> None:
        """Its message is not ours."""
        write(
            "links/test_strict.py",
            """
            from pydantic import BaseModel, field_validator

            class Options(BaseModel):
                api_key: str

                @field_validator("api_key")
                @classmethod
                def check(cls, value):
                    raise ValueError(f"bad key {value}")
            """
            + textwrap.indent(f"\n{RUN}", " " * 12),
        )

        assert refusal("links.test_strict", {"api_key": "hush-hush"}) == ("link 'mine': option 'api_key' bad key ***")

    def test_options_that_fail_on_their_own_are_a_finding(self, write: Write) -> None:
        """A bug in a validator is not the end of the check."""
        write(
            "links/test_buggy.py",
            f"""
            from pydantic import BaseModel, model_validator

            class Options(BaseModel):
                @model_validator(mode="before")
                @classmethod
                def check(cls, value):
                    return {{}}["missing"]

            {textwrap.indent(RUN, " " * 12).strip()}
            """,
        )

        assert refusal("links.test_buggy") == "link 'mine': the Options of links.test_buggy fail: KeyError"

    def test_default_options_must_be_a_dict(self, write: Write) -> None:
        """A list of options is a slip of the author."""
        write("links/test_dict.py", f"default_options = []\n{RUN}")

        assert refusal("links.test_dict") == "link 'mine': default_options of links.test_dict must be a dict, not list"


class TestWhatCannotBeUsed:
    def test_a_missing_module_is_not_a_missing_package(self, write: Write) -> None:
        """A misspelt name gets a suggestion, never a pip command."""
        write("links/test_mine.py", RUN)

        assert refusal("links.test_mien") == (
            "link 'mine': there is no module links.test_mien; did you mean 'links.test_mine'?"
        )
        # That links.test_mine begins like the second one says nothing.
        for name in ("acme_zzz.links", "links.nowhere_zzz"):
            assert refusal(name) == (
                f"link 'mine': there is no module {name}; is it spelt right, and in the folder of the config?"
            )

    def test_a_missing_module_with_a_pip_name_names_the_command(self) -> None:
        """The config says where it comes from."""
        assert refusal("acme_zzz", pip_name="acme-zzz==2") == (
            "link 'mine': there is no module acme_zzz (pip install 'acme-zzz==2')"
        )

    def test_a_missing_package_of_ours_names_the_extra(self, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
        """As the distribution's own metadata has it."""
        write("links/test_speech.py", f"import acme_speech\n{RUN}")
        needs = ["redis>=5", "acme-speech<3,>=1 ; extra == 'all'", "Acme.Speech<3,>=1 ; extra == 'transcribe'"]
        monkeypatch.setattr(importlib.metadata, "requires", lambda name: needs)

        assert refusal("links.test_speech") == (
            "link 'mine': cannot import links.test_speech: No module named 'acme_speech' "
            "(pip install 'conserver[transcribe]')"
        )

    def test_a_missing_package_of_others_names_its_pip_name(self, write: Write) -> None:
        """Or asks for it: the name of a module is not the name of a package."""
        write("links/test_speech.py", f"import acme_speech.deep\n{RUN}")
        reason = "link 'mine': cannot import links.test_speech: No module named 'acme_speech'"

        assert refusal("links.test_speech", pip_name="acme>=1") == f"{reason} (pip install 'acme>=1')"
        assert refusal("links.test_speech") == f"{reason} (install the package that has it, and name it as pip_name)"

    def test_a_module_that_fails_says_in_which_of_its_lines(self, write: Write) -> None:
        """The error's type and message with it."""
        write("links/test_fails.py", "def prepare():\n    raise ValueError('no\\nluck')\n\nprepare()\n")
        write("links/test_inner.py", "import conserver.nothing\n")
        write("links/test_syntax.py", "x = 1\ndef run(:\n")

        assert refusal("links.test_fails") == (
            "link 'mine': links.test_fails fails when it is imported: ValueError: no luck (links/test_fails.py:2)"
        )
        assert refusal("links.test_inner") == (
            "link 'mine': cannot import links.test_inner: No module named 'conserver.nothing' (links/test_inner.py:1)"
        )
        assert refusal("links.test_syntax").endswith("(links/test_syntax.py:2)")

    def test_names_of_the_existing_conserver_are_told_apart_from_packages(self, write: Write) -> None:
        """Nobody should install a package called lib."""
        write("links/test_old.py", "from lib.vcon_rediss import VconRedis\n")

        assert refusal("links.test_old") == (
            "link 'mine': cannot import links.test_old: No module named 'lib'; "
            "of the existing conserver's names it is none that is here: see docs/reference/compat.md"
        )

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("x = 1", "links.test_it has no run(vcon_uuid, link_name, opts)"),
            ("run = 5", "run of links.test_it is no function; it must be run(vcon_uuid, link_name, opts)"),
            ("def run(a, b): pass", "run(a, b) of links.test_it must be run(vcon_uuid, link_name, opts)"),
            ("def run(a, b, c, d): pass", "run(a, b, c, d) of links.test_it must be run(vcon_uuid, link_name, opts)"),
            (
                "async def run(a, b, c): pass",
                "run of links.test_it is async; it must be a plain run(vcon_uuid, link_name, opts)",
            ),
        ],
    )
    def test_a_link_needs_run(self, write: Write, text: str, message: str) -> None:
        """With three parameters, and not async."""
        write("links/test_it.py", text)

        assert refusal("links.test_it") == f"link 'mine': {message}"

    def test_a_link_may_have_parameters_with_defaults(self, write: Write) -> None:
        """As existing links do."""
        write(
            "links/test_it.py", "default_options = {}\ndef run(vcon_uuid, link_name, opts=default_options, *more): pass"
        )

        assert callable(link("links.test_it").run)

    def test_a_storage_needs_save_and_right_parameters_everywhere(self, write: Write) -> None:
        """All that is wrong with it at once."""
        write("storages/test_it.py", "def get(uuid): pass\ndef ping(): pass\n")
        with pytest.raises(ConfigError) as caught:
            storage("storages.test_it")

        assert str(caught.value) == (
            "storage 'mine': storages.test_it has no save(vcon_uuid, opts); "
            "storage 'mine': get(uuid) of storages.test_it must be get(vcon_uuid, opts); "
            "storage 'mine': ping() of storages.test_it must be ping(opts)"
        )

    def test_a_package_that_hides_ours_is_named(self, tmp_path: Path) -> None:
        """An __init__.py beside one's own links takes all of ours away."""
        (tmp_path / "links").mkdir()
        (tmp_path / "links" / "__init__.py").write_text("")
        told = findings(tmp_path, "links: {a: {module: links.tag}}")

        assert told == [
            f"1:21: error[import-failed] link 'a': there is no module links.tag; {tmp_path}/links/__init__.py "
            "hides the links that come with the conserver, so delete it"
        ]


class TestCheck:
    def test_modules_that_misbehave_do_not_stop_the_check(self, write: Write, tmp_path: Path) -> None:
        """Each gets its finding, in the order of the file, and the good ones none."""
        modules = {
            "exits": "import os\nos._exit(3)",
            "leaves": "raise SystemExit(2)",
            "crashes": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)",
            "hangs": "import time\ntime.sleep(600)",
            "forks": f"import os\nos.fork()\n{RUN}",
            "prints": f"import os, sys\nprint('{{' * 200_000)\nsys.stderr.write('x')\nos.chdir('/')\n{RUN}",
            "closes": f"import os\nos.close(0)\nos.close(1)\nos.close(2)\n{RUN}",
            "threads": f"import threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n{RUN}",
            "lingers": f"import os, time\nif os.fork() == 0:\n    time.sleep(600)\n{RUN}",
            "good": RUN,
        }
        text = "links:\n"
        for name, code in modules.items():
            write(f"links/test_{name}.py", code)
            text += f"  {name}: {{module: links.test_{name}}}\n"
        text += "  hangs_too: {module: links.test_hangs}\n"
        began = time.monotonic()
        told = findings(tmp_path, text, limit_secs=3)

        assert told == [
            "2:19: error[import-failed] link 'exits': links.test_exits ends its process with exit code 3 "
            "when it is imported",
            "3:20: error[import-failed] link 'leaves': links.test_leaves fails when it is imported: SystemExit: 2 "
            "(links/test_leaves.py:1)",
            "4:21: error[import-failed] link 'crashes': links.test_crashes is killed by SIGSEGV when it is imported",
            "5:19: error[import-failed] link 'hangs': links.test_hangs takes longer than 3 s when it is imported",
            "12:23: error[import-failed] link 'hangs_too': links.test_hangs takes longer than 3 s when it is imported",
        ]
        assert time.monotonic() - began < 60

    def test_the_check_imports_nothing_into_its_own_process(self, write: Write, tmp_path: Path) -> None:
        """The supervisor stays clean."""
        write("links/test_clean.py", RUN)
        findings(tmp_path, "links: {a: {module: links.test_clean}}")

        assert "links.test_clean" not in sys.modules

    def test_check_finds_mistakes_of_file_and_components_at_once(self, write: Write, tmp_path: Path) -> None:
        """Nobody wants to fix one to be told of the next."""
        write("links/test_it.py", "")
        text = "links:\n  a:\n    module: links.test_it\n    timeout: soon\n"
        text += "chains: {c: {links: [b], ingress_lists: [x]}}\n"
        (tmp_path / "config.yml").write_text(text)
        config, found = check(tmp_path / "config.yml", {})

        assert config is None
        rules = [finding.rule for finding in found]
        assert rules == ["no-run", "wrong-type", "never-expires", "unknown-link"]

    def test_check_gives_a_config_when_there_are_only_warnings(self, write: Write, tmp_path: Path) -> None:
        """Those are for `--strict`."""
        write("links/test_it.py", RUN)
        (tmp_path / "config.yml").write_text("links: {a: {module: links.test_it}}")
        config, found = check(tmp_path / "config.yml", {})

        assert config is not None
        assert [finding.rule for finding in found] == ["unused-link"]

    def test_a_value_that_could_not_be_read_is_told_once(self, write: Write, tmp_path: Path) -> None:
        """A variable that is not set is not a bad option on top."""
        write("links/test_typed.py", f"{OPTIONS}{RUN}")
        text = "links: {a: {module: links.test_typed, options: {port: '${PORT}'}}}\n"
        (tmp_path / "config.yml").write_text(f"{text}chains: {{c: {{links: [a], ingress_lists: [x]}}}}")
        _, found = check(tmp_path / "config.yml", {"VCON_REDIS_EXPIRY": "0"})

        assert [finding.rule for finding in found] == ["missing-env"]

    @pytest.mark.parametrize(
        ("storages", "env", "warned"),
        [
            ("[]", {}, True),
            ("[keeps]", {}, True),
            ("[keeps, gives]", {}, False),
            ("[keeps]", {"VCON_REDIS_EXPIRY": "0"}, False),
            ("[keeps], schedule: '30 2 * * *'", {}, False),
        ],
    )
    def test_a_chain_whose_vcons_never_expire_is_told(
        self, write: Write, tmp_path: Path, storages: str, env: dict[str, str], warned: bool
    ) -> None:
        """Unless some storage gives a vCon back, nothing expires at all, or the chain waits anyway."""
        write("storages/test_keeps.py", SAVE)
        write("storages/test_gives.py", f"{SAVE}def get(vcon_uuid, opts): pass\n")
        text = "storages: {keeps: {module: storages.test_keeps}, gives: {module: storages.test_gives}}\n"
        text += f"chains: {{c: {{links: [], ingress_lists: [x], storages: {storages}}}}}\n"
        (tmp_path / "config.yml").write_text(text)
        _, found = check(tmp_path / "config.yml", env)

        assert ("never-expires" in [finding.rule for finding in found]) is warned
