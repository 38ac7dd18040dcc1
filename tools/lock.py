"""Write constraints.txt anew: the newest versions that fit pyproject.toml with all its extras, which `make lock` calls.

Asks pip of each Python 3.11 to 3.13 that is found for its resolution, so it takes a minute. Where the versions differ
between Pythons, the line has a marker.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# redis needs it before Python 3.11.3, which is what Debian 12 has and pip's resolution on a newer 3.11 does not show.
ALSO = ["async-timeout"]
# Has no wheel, and needs no compiler either.
SOURCE_ONLY = "nkeys"
HEADER = """\
# The versions that are installed and tested: pip install -c constraints.txt .
# Written by `make lock`, from the resolution of Python {pythons} with all extras.
"""


def main() -> None:
    resolved = {version: resolve(version) for version in ("3.11", "3.12", "3.13")}
    lines = []
    for name in sorted({name for packages in resolved.values() for name in packages}):
        pythons_of: dict[str | None, list[str]] = {}
        for python, packages in resolved.items():
            pythons_of.setdefault(packages.get(name), []).append(python)
        if len(pythons_of) == 1:
            lines.append(f"{name}=={next(iter(pythons_of))}")
            continue
        for version, pythons in pythons_of.items():
            if version is not None:
                marker = " or ".join(f"python_version == '{python}'" for python in pythons)
                lines.append(f"{name}=={version} ; {marker}")
    (ROOT / "constraints.txt").write_text(HEADER.format(pythons=", ".join(resolved)) + "\n".join(lines) + "\n")


def resolve(version: str) -> dict[str, str]:
    """Name -> version of all that the project needs on this Python."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            subprocess.run([f"python{version}", "-m", "venv", folder], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            sys.exit(f"lock: python{version} with venv is needed on PATH as well ({error})")
        report = Path(folder) / "report.json"
        subprocess.run(
            [
                *(f"{folder}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"),
                *(
                    "--dry-run",
                    "--ignore-installed",
                    "--only-binary",
                    ":all:",
                    "--no-binary",
                    SOURCE_ONLY,
                    "--report",
                    str(report),
                ),
                *(f"{ROOT}[test-long,transformers,whisper,dev]", *ALSO),
            ],
            check=True,
        )
        found = json.loads(report.read_text())["install"]
    names = {re.sub(r"[-_.]+", "-", one["metadata"]["name"]).lower(): one["metadata"]["version"] for one in found}
    return {name: number for name, number in names.items() if name != "conserver"}


if __name__ == "__main__":
    main()
