"""The Lua scripts of queue and store, by name: loaded once, called by their digest."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

from conserver import crashpoints

_FOLDER = files("conserver") / "lua"
#: Scripts that begin with the functions of dead.lua.
_WITH_DEAD = {"settle", "recover", "retry", "drop"}


class Script:
    """One script: `text`, and the `sha` that EVALSHA takes."""

    def __init__(self, name: str) -> None:
        self.name = name
        text = (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
        if name in _WITH_DEAD:
            text = (_FOLDER / "dead.lua").read_text(encoding="utf-8") + text
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
LEAVE, RETRY, DROP = Script("leave"), Script("retry"), Script("drop")
SAVE, TOUCH, VERSION, DELETE, EXPIRE = (Script(n) for n in ("save", "touch", "version", "delete", "expire"))
ALL = (CLAIM, SETTLE, NOTE, RECOVER, DUE, LEAVE, RETRY, DROP, SAVE, TOUCH, VERSION, DELETE, EXPIRE)
