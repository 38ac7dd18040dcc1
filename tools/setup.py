"""Make .venv and install the conserver into it: `python3 tools/setup.py [EXTRA ...]`, which `make` calls.

Does nothing, at once, when that is done already for this pyproject.toml and constraints.txt. Needs Python 3.11 and its
standard library only: a system pip, where there is one, may be externally managed, and python3-venv may be missing.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "conserver-setup.json"


def main(extras: list[str]) -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - the project is not installed yet, so nobody has checked
        sys.exit(f"setup: Python 3.11 or later is needed, this is {sys.version.split()[0]} ({sys.executable})")
    # The lock is on a file of the project, because .venv may be made anew meanwhile.
    with (ROOT / "pyproject.toml").open("r+b") as project:
        fcntl.flock(project, fcntl.LOCK_EX)
        done = read_stamp()
        if done is not None and set(extras) <= set(done["extras"]):
            return
        started = time.monotonic()
        print("setup: installing into .venv, which takes half a minute the first time", flush=True)
        if done is None and not has_pip():
            make_venv()
        wanted = sorted({*extras, *(done["extras"] if done else [])})
        STAMP.unlink(missing_ok=True)
        install(wanted)
        STAMP.write_text(json.dumps({"made_from": made_from(), "extras": wanted}))
        print(f"setup: done in {time.monotonic() - started:.0f} s", flush=True)


def read_stamp() -> dict[str, Any] | None:
    """What a finished setup has left, or None unless it was for these files, in this folder, and still works."""
    try:
        stamp = json.loads(STAMP.read_text())
    except (OSError, ValueError):
        return None
    return stamp if stamp["made_from"] == made_from() and run([python(), "-c", ""]) is None else None


def made_from() -> str:
    # The scripts in .venv hold its path, so a project that was moved is set up again.
    parts = [str(ROOT).encode(), *((ROOT / name).read_bytes() for name in ("pyproject.toml", "constraints.txt"))]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def python() -> str:
    return str(VENV / "bin" / "python")


def has_pip() -> bool:
    # Its first line names the folder that it was made in: not this one, if the project was moved.
    pip = VENV / "bin" / "pip"
    return pip.exists() and str(VENV) in pip.read_text() and run([python(), "-m", "pip", "--version"]) is None


def make_venv() -> None:
    if run([sys.executable, "-m", "venv", "--clear", str(VENV)]) is None:
        return
    # Debian keeps ensurepip in python3-venv; without it only an empty environment can be made.
    trouble = run([sys.executable, "-m", "venv", "--clear", "--without-pip", str(VENV)])
    if trouble:
        sys.exit(f"setup: {sys.executable} cannot make .venv: {trouble}\n{advice()}")
    # Another pip may install into an environment that is not its own, even where it is externally managed.
    others = [[sys.executable, "-m", "pip"], *([name] for name in ("pip3", "pip") if shutil.which(name))]
    if any(run([*pip, "--python", python(), "install", "--quiet", "pip"]) is None for pip in others):
        return
    if shutil.which("uv") and run(["uv", "pip", "install", "--quiet", "--python", python(), "pip"]) is None:
        return
    sys.exit(f"setup: there is no pip for .venv\n{advice()}")


def install(extras: list[str]) -> None:
    target = f".[{','.join(extras)}]" if extras else "."
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "-c", "constraints.txt"]
    trouble = run([python(), "-m", "pip", "install", *options, "-e", target])
    if trouble:
        sys.exit(f"setup: pip could not install the conserver: {trouble}")


def run(command: list[str]) -> str | None:
    """None if the command succeeded, else what it said."""
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    # Settings of the user's own pip that make no sense in an environment of its own.
    env |= {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=env, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
    except OSError as error:
        return str(error)
    return None if done.returncode == 0 else done.stdout.strip() or f"exit status {done.returncode}"


def advice() -> str:
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    return f"setup: on Debian and Ubuntu, `apt-get install python{version}-venv` helps; then run this again"


if __name__ == "__main__":
    main(sys.argv[1:])
