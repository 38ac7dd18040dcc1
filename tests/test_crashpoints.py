"""Crash points: who dies where, and that nobody does without being told to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conserver.crashpoints import POINTS, check
from conserver.errors import SettingsError
from conserver.settings import Settings

#: Comes to each point twice, and says how far it got.
VISITS = """
from conserver import crashpoints
for turn in (1, 2):
    for point in crashpoints.POINTS:
        crashpoints.reach(point, lambda: print("last words", flush=True))
        print(point, turn, flush=True)
"""


def visit(**env: object) -> tuple[int, list[str]]:
    """Run the visits in a process; return its exit code and what it said, line by line."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("CONSERVER_")}
    env = kept | {name: str(value) for name, value in env.items()}
    done = subprocess.run([sys.executable, "-c", VISITS], env=env, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stdout.splitlines()


def test_a_point_is_inert_unless_this_is_a_test() -> None:
    """A variable that somebody forgot in a deployment kills nobody."""
    code, said = visit(CONSERVER_CRASHPOINT="claim.sent")

    assert code == 0
    assert len(said) == 2 * len(POINTS)


def test_a_process_dies_where_it_was_told_to() -> None:
    """As by kill -9, after what it was asked to do just before."""
    code, said = visit(CONSERVER_TESTING=1, CONSERVER_CRASHPOINT=POINTS[3])

    assert code == -9
    assert said == [*(f"{point} 1" for point in POINTS[:3]), "last words"]


def test_the_turn_of_a_point_may_be_a_later_one() -> None:
    """`:2` is the second time that this process comes there."""
    code, said = visit(CONSERVER_TESTING=1, CONSERVER_CRASHPOINT=f"{POINTS[0]}:2")

    assert code == -9
    assert said[-2:] == [f"{POINTS[-1]} 1", "last words"]


def test_one_process_dies_where_one_is_to_die(tmp_path: Path) -> None:
    """The first leaves a file behind, which tells that the point was reached, and spares the others."""
    once = tmp_path / "died"
    env = {"CONSERVER_TESTING": 1, "CONSERVER_CRASHPOINT": POINTS[0], "CONSERVER_CRASHPOINT_ONCE": once}
    first, second = visit(**env), visit(**env)

    assert once.exists()
    assert first[0] == -9
    assert second[0] == 0


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("claim.send", r"CONSERVER_CRASHPOINT='claim.send': must be one of claim.sent, claim.replied, "),
        ("claim.sent:0", r"CONSERVER_CRASHPOINT='claim.sent:0': after the colon stands which time it is, from 1 on"),
        ("claim.sent:", r"CONSERVER_CRASHPOINT='claim.sent:': after the colon stands which time it is, from 1 on"),
    ],
)
def test_a_point_that_is_none_is_an_error_at_the_start(value: str, words: str) -> None:
    """A test that is to die at a misspelt point would prove nothing."""
    with pytest.raises(SettingsError, match=words):
        Settings.from_env({"CONSERVER_TESTING": "1", "CONSERVER_CRASHPOINT": value})

    assert check({"CONSERVER_CRASHPOINT": value}) == ""


def test_a_start_says_that_somebody_will_die() -> None:
    """Who set the variables by mistake is told in the log."""
    settings = Settings.from_env({"CONSERVER_TESTING": "1", "CONSERVER_CRASHPOINT": "due.sent:3"})

    assert settings.notes == ("CONSERVER_CRASHPOINT=due.sent:3: this is a test, and a process will die there",)
