"""The pages that show an analysis without a key show what comes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.commands import ROOT, Folder
from tests.conftest import missing
from tests.waiting import wait_until

QUICKSTART = ROOT / "docs" / "quickstart.md"


class Terminals:
    """Terminals in a folder that has the examples; the fake model and the API get ports that are free."""

    def __init__(self, path: Path) -> None:
        shutil.copytree(ROOT / "examples", path / "examples")
        self.path = path
        self.env = Folder(path).env | {"CONSERVER_API_PORT": "0"}
        self.env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), self.env["PATH"]])
        self.output = path / "output"
        self.api = ""
        self._started: list[subprocess.Popen[bytes]] = []

    def type(self, line: str) -> str:
        """Do what a line says and return what it has said; servers stay in the background."""
        if line.startswith("export "):
            name, _, value = line.removeprefix("export ").partition("=")
            self.env[name] = value
        elif "model_server" in line:
            said = self._start(line.replace("--port 9001", "--port 0"), r"base_url (\S+)")
            config = self.path / "examples" / "analysis.yml"
            config.write_text(config.read_text().replace("http://127.0.0.1:9001/v1", said))
        elif line.startswith("conserver run"):
            self.api = self._start(line, r"^api: +http://(\S+)$")
            wait_until(lambda: "Next, in another terminal" in self.output.read_text(), 60, "the examples")
        else:
            done = subprocess.run(
                ["bash", "-c", line.replace("localhost:8000", self.api)],
                cwd=self.path,
                env=self.env,
                capture_output=True,
                text=True,
                timeout=100,
            )
            assert done.returncode == 0, f"{line}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
            return done.stdout
        return ""

    def _start(self, line: str, shown: str) -> str:
        """Start a server, and return what it says of itself."""
        with self.output.open("ab") as output:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {line.partition(' &')[0]}"],
                cwd=self.path,
                env=self.env,
                stdout=output,
                stderr=output,
            )
        self._started.append(process)
        found = wait_until(lambda: re.search(shown, self.output.read_text(), re.MULTILINE), 60, line)
        return str(found[1])

    def close(self) -> None:
        """End what still runs."""
        for process in reversed(self._started):
            process.terminate()
            process.wait(60)


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    """Terminals that are closed in the end."""
    if shutil.which("curl") is None:
        missing("no curl on PATH")
    opened = Terminals(tmp_path)
    yield opened
    opened.close()


def shown(page: Path, beginning: str, end: str) -> tuple[list[str], list[str]]:
    """The lines to type, and the JSON that is shown, of a part of a page."""
    part = page.read_text().partition(beginning)[2].partition(end)[0]
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", part, re.MULTILINE | re.DOTALL)
    typed = [line.partition("  #")[0].strip() for kind, code in blocks if kind == "" for line in code.splitlines()]
    # The environment of the tests is active already.
    lines = [line for line in typed if line != ". .venv/bin/activate"]
    return lines, [code for kind, code in blocks if kind == "json"]


def test_the_readme_shows_an_analysis_without_a_key(terminals: Terminals) -> None:
    """Each command works, and the last one shows the answer of the model."""
    lines, _ = shown(ROOT / "README.md", "See an analysis", "[The quickstart]")
    said = [terminals.type(line) for line in lines]

    assert len(said) == 3
    assert '+      "body": "49 words, beginning: Hi, Ruben Castellano here.' in said[-1]
    assert "would push 019cba2b-da10-8f6c-a97c-0726e888ce32 to 'analyzed'\noutcome: delivered\n" in said[-1]


def test_the_quickstart_leads_to_a_stored_analysis_without_a_key(terminals: Terminals) -> None:
    """The chain of examples/analysis.yml runs on all examples; the analysis is in the vCon as the page shows it."""
    lines, (entry,) = shown(QUICKSTART, "## 7. Ask a model, without a key", "## Where next")
    said = [terminals.type(line) for line in lines]
    stored = {
        path.stem: json.loads(path.read_text()).get("analysis", [])
        for path in (terminals.path / "data" / "analysis" / "vcons").rglob("*.json")
        if not path.is_symlink()
    }

    assert len(said) == 6
    answered = json.loads(said[-1])
    assert json.loads(entry).items() <= answered["analysis"][-1].items()
    assert stored[answered["uuid"]] == answered["analysis"]
    assert len(stored) == len(list((ROOT / "examples").glob("*.vcon")))
    assert sum(entry["type"] == "gist" for analysis in stored.values() for entry in analysis) == 2
