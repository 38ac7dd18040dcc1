"""A fake of MongoDB: a process that speaks its wire protocol, as far as storages.mongo needs it.

It knows hello, ping, find, update with whole documents, and delete, each by `_id`, lists of ids, and logins with the
mechanism PLAIN. Documents are files in a folder, so they are still there after a kill.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import socketserver
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from bson import BSON, decode

from tests.servers import free_port
from tests.waiting import wait_until

USER, PASSWORD = "conserver", "very/secret@password"
_OP_REPLY, _OP_QUERY, _OP_MSG = 1, 2004, 2013
_HELLO = {
    "ismaster": True,
    "isWritablePrimary": True,
    "helloOk": True,
    "maxBsonObjectSize": 16 * 1024 * 1024,
    "maxMessageSizeBytes": 48_000_000,
    "maxWriteBatchSize": 100_000,
    "minWireVersion": 0,
    "maxWireVersion": 25,
    "readOnly": False,
}


class MongoServer:
    """The fake on a port that it keeps, with its documents in *folder*."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, password: str = PASSWORD, port: int | None = None) -> str:
        """What goes into the option `url`."""
        login = f"{USER}:{quote(password, safe='')}"
        return f"mongodb://{login}@127.0.0.1:{port or self.port}/?authMechanism=PLAIN"

    def document(self, uuid: str, collection: str = "vcons") -> dict[str, Any]:
        """A document as it is stored."""
        return decode(_file(self.folder, collection, uuid).read_bytes())

    def put(self, document: dict[str, Any], collection: str = "vcons") -> None:
        """Store a document as another program would."""
        _file(self.folder, collection, document["_id"]).write_bytes(BSON.encode(document))

    def start(self) -> Self:
        """Start it, and wait until it answers."""
        command = [sys.executable, "-m", "tests.fakes.mongo_server", str(self.port), str(self.folder)]
        self._process = subprocess.Popen(command)
        wait_until(self._answers, 60, "the fake of MongoDB")
        return self

    def stop(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "the fake of MongoDB has ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5):
            return True
        return False


class _Handler(socketserver.StreamRequestHandler):
    """One connection."""

    folder: Path
    logged_in = False

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):
            while head := self.rfile.read(16):
                length, request_id, _, op_code = struct.unpack("<iiii", head)
                body = self.rfile.read(length - 16)
                if op_code == _OP_QUERY:  # the first hello of a driver
                    reply = struct.pack("<iqii", 8, 0, 0, 1) + BSON.encode({**_HELLO, "ok": 1.0})
                    self._send(_OP_REPLY, request_id, reply)
                else:
                    self._send(_OP_MSG, request_id, b"\0\0\0\0\0" + BSON.encode(self._answer(_command(body))))

    def _send(self, op_code: int, request_id: int, body: bytes) -> None:
        self.wfile.write(struct.pack("<iiii", 16 + len(body), 0, request_id, op_code) + body)

    def _answer(self, command: dict[str, Any]) -> dict[str, Any]:
        name = next(iter(command))
        if name.lower() in ("hello", "ismaster"):
            return {**_HELLO, "ok": 1.0}
        if name == "saslStart":
            self.logged_in = command["payload"] == f"\0{USER}\0{PASSWORD}".encode()
            if not self.logged_in:
                return {"ok": 0.0, "code": 18, "codeName": "AuthenticationFailed", "errmsg": "Authentication failed."}
            return {"ok": 1.0, "conversationId": 1, "done": True, "payload": b""}
        if name in ("endSessions", "ping"):
            return {"ok": 1.0}
        if not self.logged_in:
            return {"ok": 0.0, "code": 13, "codeName": "Unauthorized", "errmsg": f"command {name} needs a login"}
        if name in ("find", "update", "delete"):
            return {"ok": 1.0, **getattr(self, f"_{name}")(command, command[name])}
        return {"ok": 0.0, "code": 59, "codeName": "CommandNotFound", "errmsg": f"no such command: {name}"}

    def _find(self, command: dict[str, Any], collection: str) -> dict[str, Any]:
        wanted = command["filter"]["_id"]
        if isinstance(wanted, dict):
            # The ids alone, in order; nothing else is asked for.
            assert (command["sort"], command["projection"]) == ({"_id": 1}, {"_id": 1})
            ids = sorted(file.stem.removeprefix(f"{collection}-") for file in self.folder.glob(f"{collection}-*.bson"))
            found = [{"_id": one} for one in ids if one > wanted["$gt"]][: command["limit"]]
        else:
            file = _file(self.folder, collection, wanted)
            found = [decode(file.read_bytes())] if file.exists() else []
        return {"cursor": {"firstBatch": found, "id": 0, "ns": f"{command['$db']}.{collection}"}}

    def _update(self, command: dict[str, Any], collection: str) -> dict[str, Any]:
        [update] = command["updates"]
        file = _file(self.folder, collection, update["q"]["_id"])
        if any(name.startswith("$") for name in update["u"]):
            return {"n": 0, "writeErrors": [{"index": 0, "code": 52, "errmsg": "a field may not begin with $"}]}
        new = {} if file.exists() else {"upserted": [{"index": 0, "_id": update["q"]["_id"]}]}
        draft = file.with_suffix(f".{secrets.token_hex(4)}.tmp")
        draft.write_bytes(BSON.encode(update["u"]))
        os.replace(draft, file)
        return {"n": 1, "nModified": 1 - len(new), **new}

    def _delete(self, command: dict[str, Any], collection: str) -> dict[str, Any]:
        [delete] = command["deletes"]
        try:
            _file(self.folder, collection, delete["q"]["_id"]).unlink()
        except FileNotFoundError:
            return {"n": 0}
        return {"n": 1}


def _command(body: bytes) -> dict[str, Any]:
    """Read an OP_MSG: a document, and lists of further ones under a name."""
    at, command = 4, {}
    while at < len(body):
        kind, length = body[at], struct.unpack_from("<i", body, at + 1)[0]
        section = body[at + 1 : at + 1 + length]
        at += 1 + length
        if kind == 0:
            command = {**decode(section), **command}
            continue
        name, _, rest = section[4:].partition(b"\0")
        documents = []
        while rest:
            size = struct.unpack_from("<i", rest)[0]
            documents.append(decode(rest[:size]))
            rest = rest[size:]
        command[name.decode()] = documents
    return command


def _file(folder: Path, collection: str, uuid: str) -> Path:
    return folder / f"{collection}-{uuid}.bson"


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


if __name__ == "__main__":
    _Handler.folder = Path(sys.argv[2])
    _Server(("127.0.0.1", int(sys.argv[1])), _Handler).serve_forever()
