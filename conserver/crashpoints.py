"""Places where a test can have a process die, as by kill -9, in the middle of what it does.

`CONSERVER_CRASHPOINT` names one of `POINTS`; `claim.sent:3` is the third time that a process comes there. With
`CONSERVER_CRASHPOINT_ONCE` only one process dies, and leaves the file of that name behind. All of it counts only where
`CONSERVER_TESTING` is 1, so that no deployment dies of a variable that somebody forgot.

A call of a script has two points: `<script>.sent`, when the server has the request and nobody has read the reply, and
`<script>.replied`, when nobody has done anything with it yet.
"""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from conserver.errors import SettingsError

POINTS = (
    *("claim.sent", "claim.replied", "touch.sent", "touch.replied"),
    *("link.done", "note.sent", "note.replied", "save.sent", "save.replied"),
    *("storage.saved", "chain.ended"),
    *("settle.sent", "settle.replied", "expire.sent", "expire.replied"),
    *("worker.draining", "leave.sent", "leave.replied"),
    *("supervisor.draining", "recover.sent", "recover.replied", "due.sent", "due.replied"),
    *("retry.sent", "retry.replied", "withdraw.sent", "withdraw.replied"),
    *("lease.sent", "lease.replied", "unlease.sent", "unlease.replied", "lapse.sent", "lapse.replied"),
    *("follow.sent", "follow.replied"),
    *("once.sent", "once.replied"),
)

#: False in every deployment. Who calls `reach` asks for it first, so that it costs nothing there.
ARMED = os.environ.get("CONSERVER_TESTING") == "1" and bool(os.environ.get("CONSERVER_CRASHPOINT"))
_POINT, _, _TURN = os.environ.get("CONSERVER_CRASHPOINT", "").partition(":") if ARMED else ("", "", "")
_ONCE = os.environ.get("CONSERVER_CRASHPOINT_ONCE", "")
_visits = itertools.count(1)

#: Names of scripts by their digest; each script enters itself.
SCRIPTS: dict[str, str] = {}


def check(env: Mapping[str, str]) -> str:
    """Return a sentence about the crash point that *env* asks for, or ""; SettingsError if there is none such."""
    if env.get("CONSERVER_TESTING") != "1" or not env.get("CONSERVER_CRASHPOINT"):
        return ""
    value = env["CONSERVER_CRASHPOINT"]
    point, colon, turn = value.partition(":")
    if point not in POINTS:
        raise SettingsError(f"CONSERVER_CRASHPOINT={value!r}: must be one of {', '.join(POINTS)}")
    if colon and (not turn.isdecimal() or int(turn) < 1):
        raise SettingsError(f"CONSERVER_CRASHPOINT={value!r}: after the colon stands which time it is, from 1 on")
    return f"CONSERVER_CRASHPOINT={value}: this is a test, and a process will die there"


def reach(point: str, last: Callable[[], object] | None = None) -> None:
    """Die if it is the turn of *point*, after doing *last*."""
    if point != _POINT or next(_visits) != int(_TURN or 1):
        return
    if _ONCE:
        try:
            os.close(os.open(_ONCE, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
    if last is not None:
        last()
    os.kill(os.getpid(), signal.SIGKILL)


def reach_each(commands: Sequence[Sequence[Any]], moment: str) -> None:
    """Die if it is the turn of one of the scripts that *commands* call."""
    for command in commands:
        if command[0] == "EVALSHA":
            reach(f"{SCRIPTS[command[1]]}.{moment}")
