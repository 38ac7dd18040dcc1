"""tests.safeties: every mutant still takes something out, and names a test that there is."""

from __future__ import annotations

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import conserver
from tests import mutants
from tests.safeties import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parent.parent


@cache
def functions(file: str) -> set[str]:
    """The names of all tests in a file."""
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_applies_and_its_test_is_there(mutant: Mutant) -> None:
    """The text that it replaces is in its file exactly once, so the safety is where the list says that it is."""
    file, _, test = mutant.test.partition("::")

    assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    assert mutant.new != mutant.old
    assert test.partition("[")[0] in functions(file)


def test_names_of_mutants_are_unique() -> None:
    """Each can be asked for by itself."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)


def test_the_tree_that_is_tested_is_this_one(tmp_path: Path) -> None:
    """Also in a copy, and for processes that tests start elsewhere: an installed package does not get in the way."""
    started = subprocess.run(
        [sys.executable, "-c", "import conserver; print(conserver.__file__)"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )

    assert Path(conserver.__file__).parent.parent == ROOT
    assert Path(started.stdout.strip()).parent.parent == ROOT


def test_only_a_test_that_fails_kills(tmp_path: Path) -> None:
    """A mutant that changes nothing survives, one that no test can be collected with was not tested."""
    source = tmp_path / "source"
    (source / "tests").mkdir(parents=True)
    (source / "thing.py").write_text("safe = True  # a comment\n")
    (source / "tests" / "test_it.py").write_text("import thing\n\ndef test_safe():\n    assert thing.safe\n")
    (source / "pyproject.toml").write_text('[tool.pytest.ini_options]\npythonpath = ["."]\n')

    def verdict(old: str, new: str) -> str:
        mutant = Mutant("m", "thing.py", old, new, "tests/test_it.py::test_safe")
        return mutants.try_out(mutant, source)[0]

    assert verdict("safe = True", "safe = False") == "killed"
    assert verdict("a comment", "b comment") == "survived"
    assert verdict("safe = True", "safe = ") == "was not tested (pytest ended with 4)"
    assert verdict("no such text", "") == "does not apply"
    assert (source / "thing.py").read_text() == "safe = True  # a comment\n"
