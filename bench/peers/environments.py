"""A virtual environment for each task queue, since they want different versions of one client library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ENVIRONMENTS = Path(__file__).resolve().parents[2] / "build" / "peers"
"""Not in a scratch folder of the benchmark, which is gone after it: the next one takes the same environments."""
_INSTALL_SECS = 300


class CannotInstall(Exception):
    """There is no environment with these packages; the message is one line that says why."""


def environment(name: str, pins: tuple[str, ...]) -> Path:
    """The folder with the programs of an environment that has just these packages, made unless it is there.

    Without pins that is the one that this process runs in. Raises CannotInstall.
    """
    if not pins:
        return Path(sys.executable).parent
    folder = ENVIRONMENTS / name
    stamp = folder / "made-from.json"
    # With the path, because programs in an environment hold it: a project that was moved makes them anew.
    made_from = json.dumps({"pins": pins, "python": sys.version, "folder": str(folder)})
    if not (stamp.exists() and stamp.read_text() == made_from):
        shutil.rmtree(folder, ignore_errors=True)
        print(f"bench: installing {', '.join(pins)} into {folder}", flush=True)
        _run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        # This environment's pip installs into the other: Debian's python3 without python3-venv cannot give it its own.
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install"]
        _run([*pip, "--quiet", "--disable-pip-version-check", "--no-input", *pins])
        stamp.write_text(made_from)
    return folder / "bin"


def _run(command: list[str]) -> None:
    # Settings of the user's own pip that make no sense in an environment of its own.
    env = os.environ | {"PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0"}
    try:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=_INSTALL_SECS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CannotInstall(f"cannot be installed: {error}") from error
    if done.returncode != 0:
        words = (done.stderr + done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        said = next((line for line in words if line.startswith("ERROR")), words[-1])
        raise CannotInstall(f"cannot be installed: {said}")
