"""What is around the code: the wheel, the pins, make, the setup script, the images' files, the examples."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conserver.vcon import validate
from tests.conftest import missing

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("conserver", "links", "storages")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirements(texts: list[str], extras: frozenset[str] = frozenset()) -> list[Requirement]:
    """Those that apply on this machine, with these extras."""
    found = [Requirement(text) for text in texts]
    wanted = [{"extra": extra} for extra in extras or {""}]
    return [one for one in found if not one.marker or any(one.marker.evaluate(extra) for extra in wanted)]


def declared() -> list[Requirement]:
    extras = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    return [one for one in requirements([*PROJECT["dependencies"], *extras]) if one.name != "conserver"]


def pins() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            pin = Requirement(line)
            [version] = [one.version for one in pin.specifier if one.operator == "=="]
            found.setdefault(canonicalize_name(pin.name), []).append(version)
    return found


def docker_steps() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, the rest)."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in text.splitlines() if line.strip()]


def copied_from_context() -> list[str]:
    copies = [rest.split() for word, rest in docker_steps() if word == "COPY" and "--from" not in rest]
    return [source for words in copies for source in words[:-1]]


def make(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    if not shutil.which("make", path="/usr/bin:/bin"):
        missing("make is not installed")
    return subprocess.run(
        ["make", *arguments],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", **env},
        capture_output=True,
        text=True,
        check=False,
    )


def targets() -> list[str]:
    return re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.fixture
def clean_copy(tmp_path: Path) -> Path:
    """The files that an install needs, in a folder of their own."""
    folder = tmp_path / "clone"
    for name in ("pyproject.toml", "constraints.txt", "README.md", "LICENSE", "tools", *PACKAGES):
        source = ROOT / name
        copy: Callable[..., object] = shutil.copytree if source.is_dir() else shutil.copy
        folder.mkdir(exist_ok=True)
        copy(source, folder / name)
    return folder


@pytest.fixture
def setup(clean_copy: Path) -> ModuleType:
    """tools/setup.py of the clean copy."""
    spec = importlib.util.spec_from_file_location("conserver_setup", clean_copy / "tools" / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def installs(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The extras of each install that the setup script would do; its environment has a pip in name only."""
    done: list[list[str]] = []

    def make_venv() -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(setup.VENV)], check=True)

    monkeypatch.setattr(setup, "make_venv", make_venv)
    monkeypatch.setattr(setup, "install", done.append)
    return done


def test_the_wheel_has_every_module_and_script(tmp_path: Path) -> None:
    """What is in the three packages of the tree is in the wheel, Lua scripts included, and the tests are not."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    [wheel] = tmp_path.glob("conserver-*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    expected = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.suffix in (".py", ".lua", ".md", ".txt", ".typed") and "__pycache__" not in path.parts
    }

    assert expected <= names
    assert {name.split("/")[0] for name in expected} == set(PACKAGES)
    assert any(name.endswith(".lua") for name in expected)
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == set(PACKAGES)


@pytest.mark.parametrize("package", ["links", "storages"])
def test_links_and_storages_are_namespace_packages(package: str) -> None:
    """A user's own links/mine.py lives beside ours only while neither folder has an __init__.py."""
    assert not (ROOT / package / "__init__.py").exists()


def test_constraints_pin_what_the_project_asks_for() -> None:
    """Each requirement of pyproject.toml has a version in constraints.txt, and one that fits."""
    pinned = pins()
    loose = [str(one) for one in declared() if canonicalize_name(one.name) not in pinned]
    unfit = [
        f"{one} has {version}"
        for one in declared()
        for version in pinned.get(canonicalize_name(one.name), [])
        if not one.specifier.contains(version)
    ]

    assert loose == []
    assert unfit == []


def test_constraints_pin_what_comes_along() -> None:
    """What the requirements themselves require is pinned too: an install tomorrow is the install of today."""
    pinned = pins()
    waiting, seen = declared(), set()
    while waiting:
        one = waiting.pop()
        key = (canonicalize_name(one.name), frozenset(one.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            waiting += requirements(metadata.requires(one.name) or [], frozenset(one.extras))
        except metadata.PackageNotFoundError:
            continue  # not installed here; that it is pinned is asserted below

    assert sorted({name for name, _ in seen} - set(pinned)) == []


def test_bare_make_prints_help_for_every_target() -> None:
    """Who types `make` sees each target with what it does."""
    shown = make()

    assert shown.returncode == 0
    assert len(targets()) > 5
    assert re.findall(r"^make ([a-z-]+) +\S", shown.stdout, re.MULTILINE) == targets()


@pytest.mark.parametrize("target", ["setup", "run", "test", "check"])
def test_make_without_a_python_says_what_to_install(target: str) -> None:
    """The message names what is needed and how to get it."""
    answer = make(target, "PYTHON=")

    assert answer.returncode != 0
    assert "Python 3.11 or later is needed, and none was found on PATH" in answer.stderr
    assert "apt-get install python3 python3-venv" in answer.stderr


def test_a_second_setup_does_nothing(setup: ModuleType, installs: list[list[str]]) -> None:
    """Once set up, a call returns without installing."""
    setup.main([])
    setup.main([])

    assert installs == [[]]


def test_setup_adds_extras_to_those_it_has(setup: ModuleType, installs: list[list[str]]) -> None:
    """`make check` after `make test` keeps what the tests need, and `make setup` after both has nothing to do."""
    setup.main(["test"])
    setup.main(["dev"])
    setup.main(["test"])
    setup.main([])

    assert installs == [["test"], ["dev", "test"]]


@pytest.mark.parametrize("file", ["pyproject.toml", "constraints.txt"])
def test_setup_follows_a_change_of_its_files(setup: ModuleType, installs: list[list[str]], file: str) -> None:
    """An update of the project installs what it newly needs."""
    setup.main([])
    with (setup.ROOT / file).open("a") as appended:
        appended.write("# changed\n")
    setup.main([])

    assert installs == [[], []]


def test_setup_repairs_what_was_cut_off(
    setup: ModuleType, installs: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An install that failed or was killed half way is done again by the next call."""
    monkeypatch.setattr(setup, "install", lambda extras: sys.exit("setup: pip could not install the conserver"))
    with pytest.raises(SystemExit, match="pip could not install"):
        setup.main([])
    monkeypatch.setattr(setup, "install", installs.append)
    setup.main([])

    assert installs == [[]]


def test_setups_at_the_same_time_install_once(clean_copy: Path) -> None:
    """`make run` in two terminals of a fresh clone is one install."""
    code = f"""
import importlib.util, subprocess, sys, time
spec = importlib.util.spec_from_file_location("conserver_setup", {str(clean_copy / "tools" / "setup.py")!r})
setup = importlib.util.module_from_spec(spec)
spec.loader.exec_module(setup)
setup.make_venv = lambda: subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(setup.VENV)], check=True)
setup.install = lambda extras: print("installed")
input()
setup.main([])
"""
    command = [sys.executable, "-c", code]
    processes = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    outputs = [process.communicate("\n", timeout=60)[0] for process in processes]

    assert [process.returncode for process in processes] == [0] * 4
    assert sum(output.count("installed") for output in outputs) == 1


def test_setup_without_any_pip_says_what_to_install(setup: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """No ensurepip and no pip anywhere: the message names the package that helps."""
    run = setup.run
    monkeypatch.setattr(setup, "run", lambda command: run(command) if "--without-pip" in command else "not here")

    with pytest.raises(SystemExit) as raised:
        setup.main([])

    assert "there is no pip for .venv" in str(raised.value)
    assert re.search(r"apt-get install python3\.\d+-venv", str(raised.value))


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("lacks", ["nothing", "ensurepip"])
def test_setup_makes_an_environment_that_works(
    setup: ModuleType, lacks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an empty home, also where python3-venv is missing."""
    run = setup.run

    def poorer_run(command: list[str]) -> str | None:
        if lacks != "nothing" and "venv" in command and "--without-pip" not in command:
            return "ensurepip is not available"
        return run(command)

    monkeypatch.setattr(setup, "run", poorer_run)
    monkeypatch.setenv("HOME", str(tmp_path))
    setup.main([])

    code = "import conserver; print(conserver.__file__)"
    answer = subprocess.run([setup.python(), "-c", code], cwd=tmp_path, capture_output=True, check=True)
    assert answer.stdout.decode().strip() == str(setup.ROOT / "conserver" / "__init__.py")


def test_the_image_is_built_from_what_is_there() -> None:
    """Every file that the Dockerfile copies exists and is let through by .dockerignore."""
    sources = copied_from_context()
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}

    assert {"conserver", "links", "storages", "constraints.txt"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []
    assert [source for source in sources if source not in let_through] == []


def test_the_image_runs_as_it_should() -> None:
    """Not as root, signals reach the daemon, the health is asked for, the data is on a volume."""
    steps = docker_steps()
    final = dict(steps[max(i for i, (word, _) in enumerate(steps) if word == "FROM") :])

    assert final["FROM"].endswith("-slim")
    assert final["USER"] == "conserver"
    assert json.loads(final["ENTRYPOINT"]) == ["conserver"]
    assert final["VOLUME"] == "/data"
    assert "CONSERVER_DATA_DIR=/data" in final["ENV"]
    assert "/readyz" in final["HEALTHCHECK"]
    assert "pip" not in final["RUN"]
    compile(json.loads(final["HEALTHCHECK"].partition("CMD ")[2])[2], "healthcheck", "exec")


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_build_commands_of_the_image_work(tmp_path: Path) -> None:
    """In a folder with nothing but what is copied there, the pip commands of the Dockerfile give a conserver."""
    context, venv = tmp_path / "src", tmp_path / "venv"
    context.mkdir()
    for source in copied_from_context():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, context / source)
        else:
            shutil.copy(ROOT / source, context / source)
    commands = [rest for word, rest in docker_steps() if word == "RUN" and "/opt/conserver" in rest]
    env = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "HOME": str(tmp_path)}
    env |= {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "HTTP", "http"))}
    for command in commands:
        subprocess.run(
            ["/bin/sh", "-ec", command.replace("/opt/conserver", str(venv))], cwd=context, env=env, check=True
        )
    shown = subprocess.run([venv / "bin" / "conserver", "--help"], cwd=tmp_path, capture_output=True, text=True)

    assert len(commands) == 3
    assert shown.returncode == 0, shown.stderr
    assert not (venv / "bin" / "pip").exists()


def test_the_compose_file_names_what_is_there() -> None:
    """Its services, volumes and files exist, its server loses nothing, and the conserver may finish its work."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    mounts = [mount.split(":")[0] for service in services.values() for mount in service.get("volumes", [])]
    server = services["valkey"]["command"]

    assert {mount for mount in mounts if not mount.startswith(".")} == set(compose["volumes"])
    assert [mount for mount in mounts if mount.startswith(".") and not (ROOT / mount).exists()] == []
    assert set(services["conserver"]["depends_on"]) == {"valkey", "token"}
    assert server[server.index("--appendonly") + 1] == "yes"
    assert server[server.index("--maxmemory-policy") + 1] == "noeviction"
    assert int(services["conserver"]["stop_grace_period"].removesuffix("s")) > 30


def test_the_compose_file_makes_a_token_once(tmp_path: Path) -> None:
    """The first start writes a token that only the conserver can read, and never shows it; a later one keeps it."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    code = compose["services"]["token"]["entrypoint"][2]
    code = code.replace("/secrets", str(tmp_path)).replace("10001", str(os.getuid()))
    command = [sys.executable, "-c", code]
    first = subprocess.run(command, capture_output=True, text=True, check=True)
    token = (tmp_path / "api-token").read_text().strip()
    second = subprocess.run(command, capture_output=True, text=True, check=True)

    assert len(token) > 40
    assert (tmp_path / "api-token").stat().st_mode & 0o777 == 0o600
    assert "api-token" in first.stdout
    assert token not in first.stdout + first.stderr
    assert second.stdout == ""
    assert (tmp_path / "api-token").read_text().strip() == token


def test_the_user_of_the_image_owns_the_token() -> None:
    """The token's file is given to the same number that the image runs as."""
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    [owner] = re.findall(r"chown\(.*, (\d+), -1\)", compose["services"]["token"]["entrypoint"][2])
    [user] = re.findall(r"useradd --uid (\d+)", (ROOT / "Dockerfile").read_text())

    assert owner == user


def test_ci_runs_the_checks_and_the_tests() -> None:
    """.ci/run can be run, is sound bash, and does what a person does."""
    script = ROOT / ".ci" / "run"
    parsed = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)

    assert os.access(script, os.X_OK)
    assert parsed.returncode == 0, parsed.stderr
    assert script.read_text().endswith("make check\nmake test\n")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.vcon")), ids=lambda path: path.stem)
def test_the_examples_break_no_rule(path: Path) -> None:
    """The vCons that a newcomer sees first are current, with a UUID of version 8."""
    document = json.loads(path.read_text())

    assert validate(document) == []
    assert document["vcon"] == "0.4.0"
    assert document["uuid"][14] == "8"


def test_the_examples_are_of_several_kinds() -> None:
    """Recordings, texts, a transfer and a call that nobody took; no two have the same UUID."""
    documents = [json.loads(path.read_text()) for path in (ROOT / "examples").glob("*.vcon")]

    assert len({document["uuid"] for document in documents}) == len(documents) >= 6
    assert {entry["type"] for document in documents for entry in document["dialog"]} == {
        "recording",
        "text",
        "transfer",
        "incomplete",
    }
