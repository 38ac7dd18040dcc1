"""Take each safety out in turn, and see a test fail: `python -m tests.mutants [NAME ...]`, or `make mutants`.

Each mutant is applied to a copy of the tree, one at a time, and its test is run there. It is killed if the test fails;
a test that cannot be collected has told nothing. Exit code 1 if one survives or cannot be applied.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from tests.safeties import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent
#: What tests need of the tree; documents and examples have tests of their own, which no mutant names.
PARTS = ("conserver", "links", "storages", "tests", "pyproject.toml", "config.yml")
#: The copy is what is tested, in whatever way the package is installed.
IN_THE_COPY = "tests/test_mutants.py::test_the_tree_that_is_tested_is_this_one"
AT_ONCE = 2
#: A test that hangs on a mutant has failed, and need not hang for long.
TEST_TIMEOUT_SECS = 45


def copy_tree(source: Path, copy: Path) -> Path:
    """Make *copy* a fresh copy of what tests need of *source*."""
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for part in PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, copy / part, ignore=shutil.ignore_patterns(".hypothesis"))
        elif (source / part).exists():
            shutil.copy2(source / part, copy / part)
    return copy


def run_tests(copy: Path, tests: Iterable[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run *tests* of the copy, also those that are left out elsewhere."""
    always = ("-q", "-x", "-p", "no:cacheprovider", "-m", "", "-o", f"timeout={TEST_TIMEOUT_SECS}")
    return subprocess.run(
        [sys.executable, "-m", "pytest", *always, *(options or ("-n", "0")), *tests],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": str(copy), "MUTANT_IN": str(copy)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def try_out(mutant: Mutant, copy: Path) -> tuple[str, str]:
    """Return the verdict, `killed` or what else became of the mutant, and what the tests printed."""
    path = copy / mutant.file
    before = path.read_text(encoding="utf-8")
    if before.count(mutant.old) != 1:
        return "does not apply", f"{mutant.file} has its old text {before.count(mutant.old)} times, not once"
    try:
        _write(path, before.replace(mutant.old, mutant.new))
        done = run_tests(copy, [mutant.test])
    finally:
        _write(path, before)
        _end_strays(copy)
    verdicts = {0: "survived", 1: "killed"}
    return verdicts.get(done.returncode, f"was not tested (pytest ended with {done.returncode})"), done.stdout


def _end_strays(copy: Path) -> None:
    """Kill what the tests of *copy* have left running: a server that no mutant was to end, say. Linux only."""
    mark = f"MUTANT_IN={copy}".encode()
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if mark in environ.read_bytes().split(b"\0"):
                os.kill(int(environ.parent.name), signal.SIGKILL)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    # Python takes a compiled file for current that is of the same second and size.
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
        compiled.unlink()


def main(names: Sequence[str]) -> int:
    """Try out the mutants of these names, or all; return the exit code."""
    unknown = set(names) - {mutant.name for mutant in MUTANTS}
    if unknown:
        _say(f"there is no mutant {', '.join(sorted(unknown))}; see tests/safeties.py")
        return 2
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    began = time.monotonic()
    first = copy_tree(ROOT, ROOT / "build" / "mutants" / "1")
    tests = sorted({IN_THE_COPY, *(mutant.test for mutant in chosen)})
    whole = run_tests(first, tests, "-n", str(min(AT_ONCE, len(chosen))))
    if whole.returncode:
        _say(f"{whole.stdout}\nthe tests have to pass before a safety is taken out")
        return 1
    _say(f"{len(tests)} tests pass with all safeties in place ({time.monotonic() - began:.0f} s)")

    copies: SimpleQueue[Path] = SimpleQueue()
    copies.put(first)
    for number in range(2, AT_ONCE + 1):
        copies.put(copy_tree(first, first.parent / str(number)))

    def judge(mutant: Mutant) -> bool:
        copy, began = copies.get(), time.monotonic()
        try:
            verdict, output = try_out(mutant, copy)
        finally:
            copies.put(copy)
        _say(f"{verdict:<9} {mutant.name:<28} {time.monotonic() - began:5.1f} s  {mutant.test}")
        if verdict != "killed":
            _say("\n".join(f"    {line}" for line in output.splitlines()[-12:]))
        return verdict == "killed"

    with ThreadPoolExecutor(AT_ONCE) as pool:
        killed = sum(pool.map(judge, chosen))
    _say(f"{killed} of {len(chosen)} mutants were killed ({time.monotonic() - began:.0f} s)")
    return 0 if killed == len(chosen) else 1


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
