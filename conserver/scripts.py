"""The Lua scripts of queue and store, by name: loaded once, called by their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from conserver import crashpoints

_FOLDER = files("conserver") / "lua"
#: What stands before the text of a script: functions that it shares with others.
_SHARED = {
    **dict.fromkeys(("settle", "recover", "retry", "drop", "follow"), "dead"),
    **dict.fromkeys(("lease", "unlease", "extend", "lapse"), "leases"),
}


class Script:
    """One script: `text`, and the `sha` that EVALSHA takes."""

    def __init__(self, name: str) -> None:
        self.name = name
        text = (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
        if name in _SHARED:
            text = (_FOLDER / f"{_SHARED[name]}.lua").read_text(encoding="utf-8") + text
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
        crashpoints.SCRIPTS[self.sha] = name

    def command(self, keys: list[Any], args: list[Any]) -> tuple[Any, ...]:
        """Return the EVALSHA command, for a Wire."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)

    def __call__(self, client: Any, keys: list[Any], args: list[Any]) -> Any:
        """Run on *client*; a server that has forgotten the script is told it again."""
        if crashpoints.ARMED:
            crashpoints.reach(f"{self.name}.sent", lambda: self._send(client, keys, args))
        try:
            reply = client.evalsha(self.sha, len(keys), *keys, *args)
        except NoScriptError:
            reply = client.eval(self.text, len(keys), *keys, *args)
        if crashpoints.ARMED:
            crashpoints.reach(f"{self.name}.replied")
        return reply

    def _send(self, client: Any, keys: list[Any], args: list[Any]) -> None:
        """Send the call without waiting for a reply: what a process has done that dies at a crash point."""
        connection = client.connection_pool.make_connection()
        connection.connect()
        connection.send_command("EVAL", self.text, len(keys), *keys, *args)


CLAIM, SETTLE, NOTE, RECOVER, DUE = (Script(n) for n in ("claim", "settle", "note", "recover", "due"))
LEAVE, RETRY, DROP, WITHDRAW = (Script(n) for n in ("leave", "retry", "drop", "withdraw"))
FOLLOW, ONCE = Script("follow"), Script("once")
LEASE, UNLEASE, EXTEND, LAPSE = (Script(n) for n in ("lease", "unlease", "extend", "lapse"))
SAVE, TOUCH, VERSION, DELETE, EXPIRE = (Script(n) for n in ("save", "touch", "version", "delete", "expire"))
PAGE, LOCK = Script("page"), Script("lock")
ALL = (
    *(CLAIM, SETTLE, NOTE, RECOVER, DUE, LEAVE, RETRY, DROP, WITHDRAW, FOLLOW, ONCE),
    *(LEASE, UNLEASE, EXTEND, LAPSE),
    *(SAVE, TOUCH, VERSION, DELETE, EXPIRE, PAGE, LOCK),
)
_BY_SHA = {script.sha: script for script in ALL}


def in_full(command: Sequence[Any]) -> tuple[Any, ...]:
    """Return an EVALSHA command as the EVAL that any server understands, whatever it has forgotten."""
    _, sha, *rest = command
    return ("EVAL", _BY_SHA[sha].text, *rest)
