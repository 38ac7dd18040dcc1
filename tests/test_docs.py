"""The documentation is complete and true: what the code has is on its page, and what a page shows works.

Rules of `check` and their examples have tests of their own, in test_check_docs.py.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest
import typer
import yaml

from conserver.catalogue import describe
from conserver.cli import app
from conserver.components import check
from conserver.reference import options_table
from conserver.settings import Settings
from tests.commands import Folder
from tests.conftest import missing
from tests.waiting import wait_until
from tools import api_reference, component_reference

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
REFERENCE = DOCS / "reference"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])
#: Pages that somebody follows from top to bottom: whole configs, links and tests in them are run.
GUIDES = [ROOT / "README.md", DOCS / "quickstart.md", *sorted((DOCS / "how-to").glob("*.md"))]
SOURCES = sorted(file for folder in ("conserver", "links", "storages") for file in (ROOT / folder).rglob("*.py"))
COMPONENTS = sorted(
    (kind, file.stem if file.stem != "__init__" else file.parent.name)
    for kind in ("link", "storage")
    for file in [*(ROOT / f"{kind}s").glob("*.py"), *(ROOT / f"{kind}s").glob("*/__init__.py")]
)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in one language; "" for those that name none."""
    fenced = re.findall(r"^```([a-z]*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [code for named, code in fenced if named == language]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def mentioned(word: str, text: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text) is not None


# What the code has is documented


def commands(group: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Every command below *group*, with what a person types for it."""
    for name, command in getattr(group, "commands", {}).items():
        yield " ".join((*path, name)), command
        yield from commands(command, (*path, name))


COMMANDS = dict(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_is_in_the_reference(command: str) -> None:
    """A command has a heading of its own, and its section names each of its options."""
    text = (REFERENCE / "cli.md").read_text()

    section = re.search(rf"^## `conserver {command}`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    options = [parameter for parameter in COMMANDS[command].params if parameter.param_type_name == "option"]
    assert [o for option in options for o in option.opts if not mentioned(o, section[1]) and o != "--help"] == []


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_every_component_and_option_has_its_page(kind: str, name: str) -> None:
    """A link or storage has a page with a table of its options, which `make docs` writes from the code."""
    page = REFERENCE / f"{kind}s" / f"{name}.md"

    entry = describe(f"{kind}s.{name}", "link" if kind == "link" else "storage")
    text = page.read_text()
    assert text.startswith(f"# {kind}s.{name}\n")
    assert component_reference.page(page, options_table(entry.options)) == text
    assert [option.name for option in entry.options if f"\n| `{option.name}`" not in text] == []
    assert [option.name for option in entry.options if not option.description] == []


@pytest.mark.parametrize(("kind", "name"), COMPONENTS)
def test_every_component_says_what_it_touches(kind: str, name: str) -> None:
    """Its docstring has the paragraph `Reads: ... Writes: ...`, and what it needs is an extra of ours."""
    entry = describe(f"{kind}s.{name}", "link" if kind == "link" else "storage")

    assert (entry.reads != "", entry.writes != "") == (True, True)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert entry.needs in ("", *(f"conserver[{extra}]" for extra in extras))


@pytest.mark.parametrize("kind", ["link", "storage"])
def test_the_tables_of_all_components_are_those_of_the_code(kind: Literal["link", "storage"]) -> None:
    """Every link and storage, option, default, and what it reads and writes; `make docs` writes them."""
    path, written = list(component_reference.pages(kind))[-1]

    text = path.read_text()
    assert component_reference.page(path, written) == text
    assert [name for k, name in COMPONENTS if k == kind and text.count(f"| [{name}]({kind}s/{name}.md) |") < 1] == []


def test_every_page_of_a_component_has_its_component() -> None:
    """A page of a link or storage that is not there any more is a leftover."""
    pages = [(kind, page.stem) for kind in ("link", "storage") for page in (REFERENCE / f"{kind}s").glob("*.md")]

    assert sorted(pages) == COMPONENTS


def test_the_readme_names_every_component() -> None:
    """What is built stands in the status of the README."""
    status = (ROOT / "README.md").read_text().partition("## Status")[2]

    assert [name for _, name in COMPONENTS if f"`{name}`" not in status] == []


class Asked(Mapping[str, str]):
    """An empty environment that remembers what it was asked for."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0


def read_beside_settings() -> set[str]:
    """The environment variables that are read in other places."""
    pattern = re.compile(r"environ(?:\.get\(|\[)\"(\w+)\"")
    return {name for file in SOURCES for name in pattern.findall(file.read_text())}


def test_every_environment_variable_is_in_the_reference() -> None:
    """What changes the conserver from outside is on one page."""
    env = Asked()
    Settings.from_env(env)

    text = (REFERENCE / "environment.md").read_text()
    names = env.names | read_beside_settings()
    assert {"REDIS_URL", "CONSERVER_VCON_CONCURRENCY", "LOG_LEVEL", "UUID8_DOMAIN_NAME"} <= names
    assert [name for name in sorted(names) if f"`{name}`" not in text] == []


def templates(tree: ast.AST) -> Iterator[str]:
    """All text in a module; what is filled in later stands as `<>`."""
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "<>" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.value


def own_keys(tree: ast.AST) -> Iterator[str]:
    """The keys of one list, which `claims.own_key(list, what)` makes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "own_key":
            whats = [node.args[1]]
            if isinstance(whats[0], ast.IfExp):
                whats = [whats[0].body, whats[0].orelse]
            yield from (f"conserver:{{<>}}:{what}" for one in whats for what in templates(one))


def test_every_redis_key_is_in_the_reference() -> None:
    """Each key that the code makes is on the page of keys, and the page has no other of ours."""
    used = set()
    for file in SOURCES:
        tree = ast.parse(file.read_text())
        used |= {text for text in templates(tree) if re.fullmatch(r"(conserver|vcon|DLQ):[^\s'\"]+", text)}
        used |= set(own_keys(tree))
    # The name of a connection, and how a key of a list is put together.
    used -= {"conserver:<>:<>:<>", "conserver:{<>}:<>"}
    # A URI is no key.
    used = {key for key in used if "://" not in key}

    table = re.findall(r"^\| (.*?) \|", (REFERENCE / "keys.md").read_text(), re.MULTILINE)
    named = {re.sub(r"<.*?>", "<>", key) for cell in table for key in re.findall(r"`(.*?)`", cell)}
    shown = {key.replace("{vcon:<>}", "{<>}").replace("{DLQ:storage:<>}", "{<>}") for key in named}
    made = {key.replace("{vcon:<>}", "{<>}") for key in used}
    assert "conserver:{<>}:held:<>" in made
    assert sorted(made - shown) == []
    assert sorted(key for key in shown - made if key.startswith("conserver:")) == []


def test_every_metric_is_in_the_reference() -> None:
    """Each name that the code counts or measures is on the page of metrics, and each name of the page is counted."""
    cells = re.findall(r"^\| (.*?) \|", (REFERENCE / "metrics-and-logs.md").read_text(), re.MULTILINE)
    named = {name for cell in cells for name in re.findall(r"`(conserver(?:\.[a-z_]+)+)`", cell)}
    found = {text for file in SOURCES for text in templates(ast.parse(file.read_text()))}
    metrics = {text for text in found if re.fullmatch(r"conserver(\.[a-z_]+)+", text)}
    metrics -= {
        "conserver.links",
        "conserver.storages",
        "conserver.lock",
        "conserver.audit",
    }  # entry points, a file, a log
    metrics = {m for m in metrics if not (ROOT / m.replace(".", "/")).with_suffix(".py").exists()}

    assert "conserver.main_loop.count_vcons_processed" in metrics
    assert sorted(metrics - named) == []
    assert sorted(named - metrics) == []


def problem_names() -> Iterator[str]:
    """What the types of problems end with, as the API raises them."""
    for file in (ROOT / "conserver" / "api").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Problem":
                yield from (name for name in templates(node.args[1]) if re.fullmatch(r"[a-z-]+", name))


def test_every_type_of_problem_is_in_the_reference() -> None:
    """A client finds what a refusal means."""
    text = (REFERENCE / "api.md").read_text()

    names = set(problem_names())
    assert {"exists", "no-access", "server-full"} <= names
    assert sorted(name for name in names if f"`{name}`" not in text) == []


def test_the_endpoints_on_the_page_are_those_of_the_api() -> None:
    """What the OpenAPI document says is what stands there; `make docs` writes it."""
    text = api_reference.PAGE.read_text()

    described = api_reference.document()
    paths = [f"#### `{method.upper()} {path}`" for path, ways in described["paths"].items() for method in ways]
    assert api_reference.page(text, described) == text
    assert [path for path in paths if text.count(path + "\n") != 1] == []


def test_the_endpoints_that_other_pages_name_are_there() -> None:
    """As `DELETE /vcon/{uuid}`; other paths are those of services."""
    paths = api_reference.document()["paths"]
    there = [f"{method.upper()} {re.sub('{[^}]*}', '[^/]+', path)}" for path, ways in paths.items() for method in ways]
    named = {
        (name_of(page), match[1])
        for page in PAGES
        for match in re.finditer(r"`([A-Z]+ /vcons?(?:/[^`?]*)?)(?:\?[^`]*)?`", page.read_text())
    }

    assert named
    assert sorted(one for one in named if not any(re.fullmatch(way, one[1]) for way in there)) == []


def test_the_storages_that_can_be_listed_are_named() -> None:
    """Where `conserver storage copy` says of which it copies everything."""
    text = (REFERENCE / "cli.md").read_text()
    [named] = re.findall(r"that can list what they hold \(((?:`\w+`,\s)+)", text)

    can = {file for file in SOURCES if file.parts[-2] != "conserver" and "\ndef list_uuids(" in file.read_text()}
    assert re.findall(r"`(\w+)`", named) == sorted(
        file.stem if file.stem != "__init__" else file.parent.name for file in can
    )


# What the pages show is true


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_between_pages_leads_somewhere(page: Path) -> None:
    """The file is there, and has the heading."""
    broken = []
    for target in re.findall(r"\]\((?!https?:|mailto:)([^)\s]+)\)", prose(page)):
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            broken.append(target)

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_that_a_page_names_is_there(page: Path) -> None:
    """A path in the project that a page names leads to a file."""
    names = re.findall(r"`((?:conserver|tests|docs|lua|examples)/[\w./-]+?\.\w+)`", prose(page))

    assert [n for n in names if not (ROOT / n).exists() and not (ROOT / "conserver" / n).exists()] == []


@pytest.mark.parametrize(
    "page", [DOCS / "why.md", DOCS / "internals.md", DOCS / "faults.md", DOCS / "attacks.md"], ids=name_of
)
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    """What is said to be proven is."""
    tests = "\n".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    files = {file.name for file in (ROOT / "tests").rglob("test_*.py")}

    for name in re.findall(r"`(?:tests/(?:faults/)?)?(test_\w+)(?:\.py)?`", prose(page)):
        assert f"{name}.py" in files or f"def {name}(" in tests, name


def test_every_fault_has_a_test() -> None:
    """The page of faults has all of them, and each names who shows what comes of it."""
    rows = re.findall(r"^\| (F\d+) \|.*$", prose(DOCS / "faults.md"), re.MULTILINE)
    without = re.findall(r"^\| (F\d+) \|(?!.*`test_).*$", prose(DOCS / "faults.md"), re.MULTILINE)

    assert rows == [f"F{n}" for n in range(1, 37)]
    assert without == []


def test_the_names_of_internals_are_in_the_code() -> None:
    """A class, method or function that internals.md names in backticks is defined, or made, somewhere."""
    code = "\n".join(file.read_text() for file in SOURCES)
    names = re.findall(r"`(?:[\w./]+\.)?([A-Za-z_]\w+)`", prose(DOCS / "internals.md"))
    files = {file.stem for file in [*SOURCES, *(ROOT / "conserver" / "lua").glob("*.lua")]} | {"py", "lua", "md"}

    assert [n for n in names if n not in files and not mentioned(n, code)] == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_on_the_pages_compiles(page: Path) -> None:
    """No example has a slip of the pen."""
    for code in blocks(page, "python"):
        compile(code, f"{page.name}: {code.partition(chr(10))[0]}", "exec")


def shown_commands(page: Path) -> Iterator[list[str]]:
    for code in [*blocks(page, ""), *blocks(page, "sh"), *blocks(page, "ini")]:
        for line in code.splitlines():
            shown = re.match(r"(?:ExecStart=\S*/)?(conserver|make) (.*)", line)
            if shown and "[" not in shown[2].partition("=")[0] and "|" not in shown[2]:
                yield [shown[1], *shlex.split(shown[2], comments=True)]


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_commands_on_the_pages_are_understood(page: Path) -> None:
    """Each command that a guide shows exists and takes what it is given there."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for program, *words in shown_commands(page):
        if program == "make":
            assert set(words) <= targets, words
            continue
        length = 2 if words[0] in ("dlq", "storage") else 1
        command = COMMANDS[" ".join(words[:length])]

        command.make_context(words[0], words[length:])


def write_files(page: Path, folder: Path) -> list[Path]:
    """Write the files that a page shows, each a block that begins with a comment of its path."""
    files = []
    for code in blocks(page, "python"):
        path = re.match(r"# (\S+\.py)\n", code)
        if path:
            file = folder / path[1]
            file.parent.mkdir(exist_ok=True)
            file.write_text(code)
            files.append(file)
    return files


@pytest.mark.parametrize("page", GUIDES, ids=name_of)
def test_whole_configs_on_the_pages_have_no_errors(page: Path, tmp_path: Path) -> None:
    """A block with chains is a whole config: `check` finds no error in it, with the files that the page shows."""
    write_files(page, tmp_path)
    configs = [code for code in blocks(page, "yaml") if "chains" in (yaml.safe_load(code) or {})]
    for code in configs:
        (tmp_path / "config.yml").write_text(code)
        config, findings = check(tmp_path / "config.yml", {"OPENAI_API_KEY": "sk-made-up"})

        assert [str(finding) for finding in findings if finding.level == "error"] == []
        assert config is not None


@pytest.mark.parametrize(
    "page", [page for page in GUIDES if any("def test_" in code for code in blocks(page, "python"))], ids=name_of
)
def test_the_tests_on_a_page_pass(page: Path, tmp_path: Path) -> None:
    """The link or storage that a guide shows does what the tests beside it say."""
    files = write_files(page, tmp_path)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    options = [
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-W",
        "error",
        "-c",
        os.devnull,
        f"--rootdir={tmp_path}",
    ]
    tests = [str(file) for file in files if file.name.startswith("test_")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--import-mode=importlib", *tests],
        cwd=tmp_path,
        env=env,
        text=True,
        capture_output=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Folder, str]]:
    """`conserver run` on the config of the project, and the host and port of its API."""
    folder = Folder(tmp_path, config=(ROOT / "config.yml").read_text())
    folder.env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), folder.env["PATH"]])
    process = folder.start("run", CONSERVER_API_PORT="0")
    try:
        said = wait_until(lambda: re.search(r"^api: +http://(\S+)$", folder.said(), re.MULTILINE), 60, "the API")
        wait_until(lambda: answers(f"http://{said[1]}"), 60, "an answer of the API")
        yield folder, said[1]
    finally:
        process.terminate()
        process.wait(60)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


API_PAGE = DOCS / "how-to" / "use-the-api.md"
#: What a reader has done when a block has been typed: nothing waits in the list any more.
AT_REST = """
until [[ $(command curl -s "$API/lists/default") == *'"waiting":0,"returned":0,'*'"held":0,'* ]]; do sleep 0.1; done
"""


def test_the_curl_commands_on_the_page_of_the_api_work(running: tuple[Folder, str]) -> None:
    """From top to bottom, each with success, and the last line says that nothing is left to take."""
    if shutil.which("curl") is None:
        missing("no curl on PATH")
    folder, address = running
    shown = AT_REST.join(blocks(API_PAGE, "sh")).replace("localhost:8000", address)
    script = 'set -euo pipefail\ncurl() { command curl -sS --fail-with-body "$@"; echo; }\n' + shown
    checks = 'echo left: $(curl "$API/vcon/count?egress_list=done"), dead: $(curl "$API/dlq?ingress_list=default")\n'
    done = subprocess.run(
        ["bash", "-c", script + checks],
        cwd=folder.path,
        env={**folder.env, "TOKEN": "any"},
        text=True,
        capture_output=True,
        timeout=100,
        check=False,
    )

    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    said = done.stdout.splitlines()
    (shown_lines,) = [block.splitlines() for block in blocks(API_PAGE, "") if block.startswith('{"line"')]
    assert [line for line in shown_lines if line not in said] == []
    assert said[-1] == "left: 0, dead: []"
    assert json.loads((folder.path / "my-call.json").read_text())["subject"] == "A question about an invoice"


def test_the_python_on_the_page_of_the_api_works(
    running: tuple[Folder, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From top to bottom, as one program."""
    folder, address = running
    monkeypatch.setenv("TOKEN", "any")
    names: dict[str, Any] = {}
    for code in blocks(API_PAGE, "python"):
        exec(compile(code.replace("localhost:8000", address), API_PAGE.name, "exec"), names)
        wait_until(lambda: at_rest(names["api"]), 60, "the chain")
        if "/vcons/import" in code:
            # The command line's part of the page.
            folder.run("push", "default", "00000000-0000-4000-8000-000000000000")
            wait_until(lambda: at_rest(names["api"]), 60, "the chain")
    api = names["api"]
    said = capsys.readouterr().out.splitlines()
    taken = [line for line in said if line.startswith("01928e10")]
    left, dead = api.get("/vcon/count?egress_list=done").json(), api.get("/dlq?ingress_list=default").json()
    api.close()

    assert [line for line in said if line.startswith("201")] != []
    # The first one after the patch, the other one once although it was sent twice, and three lines.
    assert [line.split()[0][-2:] for line in taken] == ["46", "47", "51", "52", "53"]
    assert "01928e10-193e-8231-b9a2-279e0d16bc46 An invoice that was wrong" in taken
    assert any("there is no vCon 00000000" in line for line in said)
    assert (left, len(dead)) == (0, 1)


def at_rest(api: httpx.Client) -> bool:
    here = api.get("/lists/default").json()
    return not here["waiting"] and not here["held"] and not here["returned"]
