"""The Lua scripts of queue and store, by name: loaded once, called by their digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.resources import files
from typing import Any

from redis.exceptions import NoScriptError

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

    def command(self, keys: list[Any], args: list[Any]) -> tuple[Any, ...]:
        """Return the EVALSHA command, for a Wire."""
        return ("EVALSHA", self.sha, len(keys), *keys, *args)

    def __call__(self, client: Any, keys: list[Any], args: list[Any]) -> Any:
        """Run on *client*; a server that has forgotten the script is told it again."""
        try:
            return client.evalsha(self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return client.eval(self.text, len(keys), *keys, *args)

    def many(
        self, client: Any, calls: list[tuple[list[Any], list[Any]]], also: Callable[[Any], Any] = lambda pipe: None
    ) -> list[Any]:
        """Run once for each (keys, args), and what *also* adds to the pipeline, in one round trip."""
        pipe = client.pipeline(transaction=False)
        for keys, args in calls:
            pipe.evalsha(self.sha, len(keys), *keys, *args)
        also(pipe)
        try:
            results: list[Any] = pipe.execute()
        except NoScriptError:
            client.script_load(self.text)
            return self.many(client, calls, also)
        return results


CLAIM, SETTLE, NOTE, RECOVER, DUE = (Script(n) for n in ("claim", "settle", "note", "recover", "due"))
LEAVE, RETRY, DROP = Script("leave"), Script("retry"), Script("drop")
SAVE, TOUCH, VERSION, DELETE, EXPIRE = (Script(n) for n in ("save", "touch", "version", "delete", "expire"))
ALL = (CLAIM, SETTLE, NOTE, RECOVER, DUE, LEAVE, RETRY, DROP, SAVE, TOUCH, VERSION, DELETE, EXPIRE)
