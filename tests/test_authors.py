"""What authors of links get: `new`, `list`, `install`, and a how-to that can be followed to its end."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from conserver import catalogue, installing
from conserver.catalogue import components, describe
from conserver.configschema import config_schema
from conserver.errors import ConserverError
from conserver.findings import MEANINGS, RULES
from conserver.reference import options_table
from conserver.requirements import missing, parse
from tests.commands import CONFIG, ROOT, Folder
from tests.conftest import missing as lacking
from tests.wheels import metadata, write_wheel

RUN = "def run(vcon_uuid, link_name, opts):\n    return vcon_uuid\n"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """A folder with a config file."""
    return Folder(tmp_path)


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def python(place: Path, *args: str, path: str = str(ROOT), **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python somewhere as an author does."""
    environment = {**os.environ, "PYTHONPATH": path, **env}
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=place, env=environment, text=True, capture_output=True, timeout=100, check=False)


# new


@pytest.fixture(scope="module")
def drafted(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A folder in which a link and a storage were made."""
    folder = Folder(tmp_path_factory.mktemp("drafted"))
    for kind, name in (("link", "call_words"), ("storage", "shelf")):
        done = folder.run("new", kind, name)
        assert done.returncode == 0, done.stderr
        (folder.path / f"{kind}.said").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A folder in which a project of a link and one of a storage were made."""
    folder = Folder(tmp_path_factory.mktemp("packaged"))
    for kind, name in (("link", "call_words"), ("storage", "shelf")):
        done = folder.run("new", kind, name, "--package")
        assert done.returncode == 0, done.stderr
    return folder


def test_new_says_what_it_wrote_and_what_to_do(drafted: Folder) -> None:
    """The files are there; the part of the config and the commands can be copied."""
    said = (drafted.path / "link.said").read_text()

    wrote = [Path(line.removeprefix("wrote ")) for line in said.splitlines() if line.startswith("wrote ")]
    names = ["links/call_words.py", "tests/test_call_words.py", "docs/call_words.md", "conftest.py"]
    assert [str(file.relative_to(drafted.path)) for file in wrote] == names
    assert all(file.is_file() for file in wrote)
    assert "\nlinks:\n  call_words:\n    module: links.call_words\n" in said
    assert "  python -m pytest tests/test_call_words.py\n" in said
    assert "  conserver try links.call_words YOUR.vcon\n" in said


def test_what_new_writes_passes_check(drafted: Folder) -> None:
    """With the part of the config that it prints, and a chain, there is nothing to find."""
    parts = [(drafted.path / f"{kind}.said").read_text() for kind in ("link", "storage")]
    config = "".join(part.partition("In config.yml:\n\n")[2].partition("\nNext")[0] for part in parts)
    chain = "chains:\n  main:\n    links: [call_words]\n    storages: [shelf]\n    ingress_lists: [default]\n"
    (drafted.path / "config.yml").write_text(config + chain)
    done = drafted.run("check", "--strict")

    assert (done.returncode, done.stdout) == (0, "config.yml: 0 errors, 0 warnings\n")


def test_what_new_writes_passes_its_tests(drafted: Folder) -> None:
    """As a person runs them, with pytest alone and with every warning an error."""
    done = python(drafted.path, "-c", "import pytest, sys; sys.exit(pytest.main())", "-q", "-W", "error")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


@pytest.mark.parametrize("project", ["call-words-link", "shelf-storage"])
def test_what_new_packages_passes_its_tests(packaged: Folder, project: str) -> None:
    """Before it is installed, too."""
    done = python(packaged.path / project, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider")

    assert done.returncode == 0, done.stdout + done.stderr


def test_what_new_writes_has_types(packaged: Folder) -> None:
    """mypy finds nothing in it, however strict it is; for a link, the test of the how-to says the same."""
    pytest.importorskip("mypy")
    cache = f"--cache-dir={packaged.path / 'cache'}"
    done = python(packaged.path / "shelf-storage", "-m", "mypy", cache, MYPYPATH=str(ROOT))

    assert done.stdout == "Success: no issues found in 2 source files\n", done.stderr
    assert "strict = true" in (packaged.path / "shelf-storage/pyproject.toml").read_text()


@pytest.mark.parametrize(("kind", "name"), [("link", "call_words"), ("storage", "shelf")])
def test_the_page_that_new_writes_has_the_options(drafted: Folder, kind: Any, name: str) -> None:
    """The same table as on our own pages, made from the code."""
    (entry,) = [one for one in components(kind, drafted.path) if one.module == f"{kind}s.{name}"]

    page = (drafted.path / "docs" / f"{name}.md").read_text()
    assert page.startswith(f"# {kind}s.{name}\n")
    assert options_table(entry.options) in page
    assert (entry.reads != "", entry.writes != "") == (True, True)


def test_new_overwrites_nothing(folder: Folder) -> None:
    """One file that is there keeps all others from being written; a conftest.py stays as it is."""
    write(folder.path / "docs/mine.md", "my notes")
    write(folder.path / "conftest.py", "# mine\n")
    refused = folder.run("new", "link", "mine")
    folder.run("new", "link", "other")

    assert refused.returncode == 1
    assert f"nothing was written, since {folder.path}/docs/mine.md would be overwritten" in refused.stderr
    assert not (folder.path / "links/mine.py").exists()
    assert (folder.path / "docs/mine.md").read_text() == "my notes"
    assert (folder.path / "conftest.py").read_text() == "# mine\n"
    assert (folder.path / "links/other.py").is_file()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("tag", "links.tag is one of ours, which would be used instead"),
        ("Words", "'Words' is no name of a module: lower-case letters"),
        ("my-link", "'my-link' is no name of a module"),
        ("../up", "'../up' is no name of a module"),
        ("class", "no word of Python"),
        ("json", "the name of a module of Python"),
        ("conserver", "the name of a module of Python or of the conserver"),
    ],
)
@pytest.mark.parametrize("package", [[], ["--package"]], ids=["module", "package"])
def test_new_refuses_names_that_would_not_work(folder: Folder, name: str, why: str, package: list[str]) -> None:
    """With the reason, and without a file."""
    before = sorted(folder.path.rglob("*"))
    done = folder.run("new", "link", name, *package)

    assert (done.returncode, done.stdout) == (1, "")
    assert why in done.stderr
    assert sorted(folder.path.rglob("*")) == before


def test_new_writes_into_another_folder(folder: Folder) -> None:
    """The one that --folder names, which is made."""
    done = folder.run("new", "storage", "shelf", "--folder", "elsewhere")

    assert done.returncode == 0
    assert (folder.path / "elsewhere/storages/shelf.py").is_file()
    assert "Next, in elsewhere:" in done.stdout


# list


def listed(folder: Folder, what: str, *args: str, **env: str) -> Any:
    done = folder.run("list", what, "--format", "json", *args, **env)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_list_has_ours_those_of_packages_and_those_beside_the_config(folder: Folder) -> None:
    """Each with where it is from; what cannot be imported says why, and keeps nobody else from the list."""
    write(folder.path / "links/mine.py", f'"""Do nothing.\n\nReads: a. Writes: b.\n"""\n{RUN}')
    write(folder.path / "links/broken.py", "import acme_none\n")
    write(folder.path / "links/deadly.py", "import os\nos._exit(3)\n")
    site = folder.path / "site"
    write(site / "acme_link.py", f'"""From a package."""\ndefault_options = {{"tag": "new"}}\n{RUN}')
    write(site / "acme-1.2.dist-info/METADATA", metadata("acme", "1.2"))
    write(site / "acme-1.2.dist-info/entry_points.txt", "[conserver.links]\nacme = acme_link\n")
    found = {one["module"]: one for one in listed(folder, "links", PYTHONPATH=os.pathsep.join([str(site), str(ROOT)]))}

    assert found["links.tag"]["source"] == "conserver"
    assert (found["links.tag"]["reads"], found["links.tag"]["writes"]) == ("tags", "tags")
    mine, acme = found["links.mine"], found["acme"]
    assert (mine["source"], mine["summary"]) == (str(folder.path / "links"), "Do nothing.")
    assert (mine["reads"], mine["writes"]) == ("a", "b")
    assert (acme["source"], acme["summary"]) == ("acme 1.2", "From a package.")
    assert [(one["name"], one["type"], one["default"]) for one in acme["options"]] == [("tag", "text", "new")]
    assert "No module named 'acme_none'" in found["links.broken"]["error"]
    assert found["links.deadly"]["error"] == "links.deadly ends its process with exit code 3 when it is imported"


def test_list_never_shows_the_default_of_a_secret(folder: Folder) -> None:
    """Neither among the options, down to those inside of others, nor in the schema."""
    model = (
        "from pydantic import BaseModel, Field, SecretStr\n"
        "class Inner(BaseModel):\n    key: SecretStr = Field(default=SecretStr('geheim'), description='It.')\n"
        "class Options(BaseModel):\n    password: SecretStr = Field(default=SecretStr('geheim'), description='It.')\n"
        "    inner: Inner = Field(default=Inner(), description='In.')\n"
    )
    write(folder.path / "links/mine.py", f"{model}{RUN}")
    (mine,) = [one for one in listed(folder, "links") if one["module"] == "links.mine"]

    assert "geheim" not in json.dumps(mine)
    secrets = {one["name"]: (one["type"], one["default"]) for one in mine["options"] if one["secret"]}
    assert secrets == {"password": ("secret", None), "inner.key": ("secret", None)}
    assert "default" not in mine["schema"]["properties"]["password"]


def test_list_never_shows_a_key_among_default_options(folder: Folder) -> None:
    """Links of the existing conserver have such dicts, and what is no JSON in them becomes text."""
    write(
        folder.path / "links/mine.py", f'default_options = {{"api_key": "geheim", "words": {{1}}, "limit": 5}}\n{RUN}'
    )
    (mine,) = [one for one in listed(folder, "links") if one["module"] == "links.mine"]

    assert "geheim" not in json.dumps(mine)
    assert [(one["name"], one["type"]) for one in mine["options"]] == [
        ("api_key", "text"),
        ("words", "text"),
        ("limit", "integer"),
    ]


def test_list_knows_a_link_whose_options_have_no_schema(folder: Folder) -> None:
    """A type that JSON knows nothing of is no reason to say nothing."""
    model = "from typing import Callable\nfrom pydantic import BaseModel\nclass Options(BaseModel):\n    f: Callable\n"
    write(folder.path / "links/mine.py", f'"""Call."""\n{model}{RUN}')
    (mine,) = [one for one in listed(folder, "links") if one["module"] == "links.mine"]
    schema = folder.run("list", "links", "--format", "json-schema")

    assert (mine["summary"], mine["options"], mine["schema"], mine["error"]) == ("Call.", [], None, "")
    assert "links.mine" not in json.loads(schema.stdout)["$defs"]


def test_list_says_in_text_what_is_needed(folder: Folder) -> None:
    """A line for the summary, one for the options, and one for what must be installed first."""
    write(folder.path / "links/mine.py", f'"""Speak.\n\nReads: a. Writes: b. Needs: acme-speech>=2.\n"""\n{RUN}')
    done = folder.run("list", "links")

    assert "links.delay: Wait before the chain goes on.\n    options: seconds\n" in done.stdout
    assert "    missing: acme-speech>=2 (pip install 'acme-speech>=2')\n" in done.stdout


def test_list_has_every_rule(folder: Folder) -> None:
    """Those of the check and those for vCons, each with its sentence."""
    done = folder.run("list", "rules")
    rules = listed(folder, "rules")
    refused = folder.run("list", "rules", "--format", "json-schema")

    assert set(MEANINGS) == set(RULES)
    assert "config error    unknown-link: a chain uses a link that is not defined\n" in done.stdout
    assert "vcon   error    E1: `uuid` is there and is a UUID\n" in done.stdout
    assert [rule["id"] for rule in rules if rule["of"] == "config"] == list(RULES)
    assert refused.returncode == 2
    assert "rules have no JSON schema" in refused.stderr


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """The schema of a config with our own components."""
    return config_schema(components("link", ROOT), components("storage", ROOT))


def violations(schema: dict[str, Any], config: str) -> list[str]:
    validator = pytest.importorskip("jsonschema_rs").validator_for(schema)
    return [error.message for error in validator.iter_errors(yaml.safe_load(config))]


def test_the_schema_takes_configs_that_are_right(schema: dict[str, Any]) -> None:
    """Ours, and one with aliases, variables where numbers belong, empty sections, and modules of others."""
    assert violations(schema, (ROOT / "config.yml").read_text()) == []
    assert violations(schema, CONFIG) == []
    config = """
links:
  a: {module: links.delay, options: {seconds: "${SECS}"}}
  b: {module: links.webhook, options: {webhook_urls: [], timeout: 3}}
  c: {module: acme.anything, options: {whatever: 1}, retry: {attempts: "${N:-3}"}}
  d: {module: links.tag, options: {tags: {name: value}}}
  e: {module: links.delay}
  f: {module: links.wtf_transcribe, options: {vfun_server_url: http://vfun.example}}
storages:
chains:
  main: {links: [a], enabled: false}
imports: {x: acme_setup, y: {module: acme_other, pip_name: acme}}
"""
    assert violations(schema, config) == []


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("{module: links.delay, options: {seconds: [1]}}", "[1] is not"),
        ("{module: links.sampler, options: {method: often}}", '"often" is not'),
        ("{module: links.analyze, options: {source: {text_location: 5}}}", '5 is not of type "string"'),
        ("{module: links.wtf_transcribe, options: {}}", "is not valid under any"),
        ("{options: {}}", '"module" is a required property'),
    ],
)
def test_the_schema_finds_what_is_wrong_in_the_options_of_a_module(schema: dict[str, Any], link: str, why: str) -> None:
    """Each module has its own, down to options that are mappings."""
    (found,) = violations(schema, f"links:\n  a: {link}\n")

    assert why in found


def test_the_schema_of_the_command_is_that_one(folder: Folder) -> None:
    """With the modules of this folder, and the same for links and storages."""
    write(folder.path / "links/mine.py", f'default_options = {{"limit": 5}}\n{RUN}')
    printed = [json.loads(folder.run("list", what, "--format", "json-schema").stdout) for what in ("links", "storages")]

    assert printed[0] == printed[1]
    assert {"links.mine", "links.tag", "storages.file"} <= set(printed[0]["$defs"])
    wrong = "links:\n  a: {module: links.mine, options: {limit: many}}\n"
    assert len(violations(printed[0], wrong)) == 1


# install


@pytest.fixture
def shop(folder: Folder) -> Folder:
    """A folder whose pip finds three packages in a folder of wheels, and installs into `site`; there is no network."""
    wheels = folder.path / "wheels"
    write_wheel(wheels, "acme-speech", "1.0", {"acme_speech.py": RUN})
    write_wheel(wheels, "acme-speech", "2.0", {"acme_speech.py": RUN})
    write_wheel(wheels, "acme-jq", "3.1", {"acme_jq.py": ""})
    site = folder.path / "site"
    site.mkdir()
    folder.env |= {
        **{"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels), "PIP_TARGET": str(site), "PIP_NO_CACHE_DIR": "1"},
        "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)]),
    }
    return folder


def use(folder: Folder, module: str, pip_name: str) -> None:
    link = f"  one:\n    module: {module}\n    pip_name: {pip_name}\n"
    text = CONFIG.replace("links:\n  tag:", f"links:\n{link}  tag:").replace("[tag]\n", "[one, tag]\n", 1)
    (folder.path / "config.yml").write_text(text)


def test_install_installs_what_is_missing_and_nothing_twice(shop: Folder) -> None:
    """In the version that the config asks for; then the check is content, and there is nothing left to do."""
    use(shop, "acme_speech", "acme-speech<2")
    before = shop.run("check")
    done = shop.run("install")
    after, again = shop.run("check"), shop.run("install")

    assert "(pip install 'acme-speech<2')" in before.stdout
    assert done.returncode == 0, done.stderr
    assert "missing: acme-speech<2 (link 'one')" in done.stderr
    assert f"{sys.executable} -m pip install" in done.stdout
    assert [path.name for path in (shop.path / "site").glob("*.dist-info")] == ["acme_speech-1.0.dist-info"]
    assert after.returncode == 0, after.stdout
    assert (again.returncode, again.stdout) == (0, "")
    assert "all that its components need is installed" in again.stderr


def test_install_replaces_a_version_that_does_not_fit(shop: Folder) -> None:
    """What is there in another version than the config asks for is missing."""
    use(shop, "acme_speech", "acme-speech==1.0")
    shop.run("install")
    use(shop, "acme_speech", "acme-speech>=2")
    done = shop.run("install", "--dry-run")

    assert "missing: acme-speech>=2 (link 'one')" in done.stderr


def test_install_only_prints_when_asked_to(shop: Folder) -> None:
    """The command can be copied; nothing is installed."""
    use(shop, "acme_speech", "acme-speech<2")
    done = shop.run("install", "--dry-run")

    assert done.returncode == 0
    assert shlex.split(done.stdout)[-1] == "acme-speech<2"
    assert list((shop.path / "site").iterdir()) == []


def test_install_fails_when_pip_does(shop: Folder) -> None:
    """With pip's own words, and exit code 1."""
    use(shop, "acme_none", "acme-none")
    done = shop.run("install")

    assert done.returncode == 1
    assert "No matching distribution found for acme-none" in done.stdout + done.stderr
    assert "error: the packages were not installed" in done.stderr


def test_install_takes_no_options_of_pip_from_a_config(shop: Folder) -> None:
    """Whoever may write the config may not choose the index."""
    use(shop, "acme_speech", "'--index-url=http://evil.example/'")
    done = shop.run("install")

    assert done.returncode == 1
    assert "link 'one': pip_name '--index-url=http://evil.example/' is no package" in done.stderr


def test_neither_install_nor_check_shows_a_secret_of_a_package(shop: Folder) -> None:
    """Neither one that came from the environment nor one in a URL."""
    use(shop, "acme_none", "git+https://geheim:x-token@git.example/acme")
    shown = shop.run("install", "--dry-run")
    use(shop, "acme_none", "git+https://${TOKEN}@git.example/acme")
    hidden = shop.run("install", "--dry-run", TOKEN="geheim")
    found = shop.run("check", TOKEN="geheim")

    assert "git+https://***@git.example/acme" in shown.stdout
    assert "'***'" in hidden.stdout
    assert "there is no module acme_none (pip install '***')" in found.stdout
    assert "geheim" not in "".join(done.stdout + done.stderr for done in (shown, hidden, found))


def test_install_needs_no_environment_of_the_config(shop: Folder) -> None:
    """An image is built where the keys are not set; a file that cannot be read is refused."""
    use(shop, "acme_speech", "acme-speech<2")
    (shop.path / "config.yml").write_text((shop.path / "config.yml").read_text().replace("[seen]", "['${KEY}']"))
    fine = shop.run("install", "--dry-run")
    (shop.path / "config.yml").write_text("links:\n\ttag:\n")
    unreadable = shop.run("install")

    assert (fine.returncode, "acme-speech<2" in fine.stdout) == (0, True)
    assert unreadable.returncode == 1
    assert "error[syntax]" in unreadable.stdout


def test_our_own_extras_are_found_and_installed(shop: Folder) -> None:
    """`check` names the extra that a link needs; `install` brings the packages of it, and no other conserver."""
    lines = ["redis>=5", "acme-jq>=3 ; extra == 'jq'", "conserver[jq] ; extra == 'all'"]
    write(shop.path / "ours/conserver-0.1.0.dist-info/METADATA", metadata("conserver", "0.1.0", lines))
    shop.env["PYTHONPATH"] = os.pathsep.join([str(shop.path / "ours"), shop.env["PYTHONPATH"]])
    (shop.path / "config.yml").write_text(CONFIG.replace("module: links.tag", "module: links.jq_link"))
    found = shop.run("check")
    done = shop.run("install")
    after = shop.run("check")

    why = "link 'tag': links.jq_link needs acme-jq>=3, which is not installed (pip install 'conserver[jq]')"
    assert f"error[missing-package] {why}" in found.stdout
    assert shlex.split(done.stdout.splitlines()[0])[-1] == "acme-jq>=3"
    assert "missing: acme-jq>=3 (conserver[jq])" in done.stderr
    assert done.returncode == 0, done.stderr
    assert "missing-package" not in after.stdout


def test_without_pip_uv_does_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """For this Python; without either it is said how to get pip."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "pip" else find(name))
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\n")
    uv.chmod(uv.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path))

    assert installing.command() == [str(uv), "pip", "install", "--python", sys.executable]
    uv.unlink()
    with pytest.raises(ConserverError, match=r"has no pip, and there is no uv on PATH; .* -m ensurepip brings pip"):
        installing.command()


@pytest.mark.parametrize(
    ("text", "gone"),
    [
        ("pytest", []),
        ("pytest>=1", []),
        ("pytest<1", ["pytest<1"]),
        ("acme-none[x]==1 ; python_version > '3'", ["acme-none[x]==1"]),
        ("acme-none ; python_version < '3'", []),
    ],
)
def test_a_requirement_is_met_or_not(text: str, gone: list[str]) -> None:
    """By name, version and marker."""
    requirement = parse(text)

    assert requirement is not None
    assert missing(requirement) == gone


def test_an_extra_may_name_others_of_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is missing is the packages in the end, each once, and never the package itself."""
    lines = [
        "acme-x>=1 ; extra == 'x'",
        "acme-y ; extra == 'y'",
        "acme-x>=1 ; extra == 'y'",
        "acme[x,y] ; extra == 'all'",
    ]
    write(tmp_path / "acme-1.0.dist-info/METADATA", metadata("acme", "1.0", lines))
    monkeypatch.syspath_prepend(tmp_path)
    everything = parse("acme[all]")

    assert everything is not None
    assert missing(everything) == ["acme-x>=1", "acme-y"]


# The how-to


@pytest.fixture
def ten_minutes(tmp_path: Path) -> dict[str, str]:
    """The environment of somebody who has the conserver installed, and may install more: ours, with pip offline."""
    for name in ("pip", "mypy", "hatchling"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    if shutil.which("bash") is None:
        lacking("no bash on PATH")
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True, timeout=60)
    (site,) = venv.glob("lib/python*/site-packages")
    ours = [entry for entry in sys.path if entry.endswith("site-packages")]
    (site / "ours.pth").write_text("\n".join([*ours, str(ROOT)]) + "\n")
    for command in ("pip", "conserver"):
        script = venv / "bin" / command
        script.write_text(f'#!/bin/sh\nexec {venv}/bin/python -m {command} "$@"\n')
        script.chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("CONSERVER_", "PYTHON", "PIP_"))}
    return {
        **kept,
        "PATH": os.pathsep.join([str(venv / "bin"), os.environ["PATH"]]),
        **{"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1"},
        "MYPYPATH": str(ROOT),
    }


@pytest.mark.timeout(400)
def test_the_how_to_leads_to_a_packaged_link(ten_minutes: dict[str, str], tmp_path: Path) -> None:
    """Each command of the page, in order, with the files that it shows: all of them succeed, and there is a wheel."""
    page = (ROOT / "docs/how-to/write-a-link.md").read_text()
    blocks = re.findall(r"^```(sh|python|yaml)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    place, said = tmp_path, ""
    for language, code in blocks:
        if language == "python":
            (place / code.partition("\n")[0].removeprefix("# ")).write_text(code)
        elif language == "yaml":
            config = yaml.safe_load((place / "config.yml").read_text())
            (place / "config.yml").write_text(yaml.safe_dump(config | yaml.safe_load(code)))
        else:
            done = subprocess.run(
                ["bash", "-euc", code], cwd=place, env=ten_minutes, text=True, capture_output=True, timeout=100
            )
            said += done.stdout
            assert done.returncode == 0, code + done.stdout[-2000:] + done.stderr[-2000:]
            place = place / "keywords-link" if "cd keywords-link" in code else place

    assert "3 passed" in said
    assert "Success: no issues found" in said
    assert "config.yml: 0 errors, 0 warnings" in said
    assert "keywords: Keep which of some words were said, as an analysis.\n    from: keywords-link 0.1.0" in said
    (wheel,) = (place / "dist").glob("*.whl")
    assert wheel.name == "keywords_link-0.1.0-py3-none-any.whl"


def test_a_component_of_ours_is_described_by_its_name() -> None:
    """With the requirement that it needs, and options under the name that a config uses."""
    entry = describe("links.webhook")

    assert entry.summary == "POST the vCon as JSON to each URL, in order."
    assert {one.name: one.aliases for one in entry.options}["webhook-urls"] == ("webhook_urls",)
    assert catalogue.describe("links.jq_link").needs == "conserver[jq]"
