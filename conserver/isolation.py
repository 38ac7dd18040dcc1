"""Calling code that may print, hang, fork or take its process down."""

from __future__ import annotations

import json
import os
import pickle
import secrets
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from conserver.errors import ConserverError

START_LIMIT_SECS = 60.0

Tell = Callable[[Any], None]
"""What the code that is called in a child may say something by; a JSON value."""

_T = TypeVar("_T")
_BOOTSTRAP = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from conserver.isolation import serve; serve()"
#: Whatever the code starts has this variable, too, unless it takes pains: so it is found in any session.
_MARK = "CONSERVER_ISOLATED"
_END = b""


@dataclass(frozen=True, slots=True)
class Died:
    """What became of the process instead of an answer, as in "takes longer than 30 s"."""

    reason: str


def call(
    function: Callable[[_T, Tell], None],
    argument: _T,
    *,
    limit_secs: float,
    env: Mapping[str, str] | None = None,
) -> tuple[list[Any], Died | None]:
    """Call a module's function in a child process; return all that it told, and what ended it if it did not return.

    Function and argument must be pickle-able, what it tells JSON, and all of it may take `limit_secs`. With *env* that
    is the child's environment. Afterwards nothing is left of the child, nor of what it has started.
    """
    with _Child(function, argument, limit_secs, env) as child:
        deadline = time.monotonic() + limit_secs
        told: list[Any] = []
        while (line := child.next(deadline)) != _END:
            if line is None:
                return told, child.died(limit_secs)
            told.append(json.loads(line))
        return told, None


def call_each(
    function: Callable[[_T], Any], items: Sequence[_T], *, limit_secs: float, alike: Callable[[_T], Hashable]
) -> list[Any]:
    """Call a module's function with each item in a child process; return its answers in order.

    Function and items must be pickle-able, answers JSON. An item that the process dies of, or that takes longer than
    `limit_secs`, has `Died` as its answer; so have items that are `alike` to it, without being tried.
    """
    answers: list[Any] = []
    deadly: dict[Hashable, Died] = {}
    while len(answers) < len(items):
        item = items[len(answers)]
        if alike(item) in deadly:
            answers.append(deadly[alike(item)])
            continue
        rest = items[len(answers) :]
        until = next((index for index, other in enumerate(rest) if alike(other) in deadly), len(rest))
        got, died = _answers(function, rest[:until], limit_secs)
        answers += got
        if died is not None:
            deadly[alike(items[len(answers)])] = died
    return answers


def _answers(function: Callable[[_T], Any], items: Sequence[_T], limit_secs: float) -> tuple[list[Any], Died | None]:
    answers: list[Any] = []
    with _Child(partial(_answer_each, function), list(items), limit_secs) as child:
        for _ in items:
            line = child.next(time.monotonic() + limit_secs)
            if not line:
                return answers, child.died(limit_secs)
            answers.append(json.loads(line))
    return answers, None


def _answer_each(function: Callable[[_T], Any], items: Sequence[_T], tell: Tell) -> None:
    for item in items:
        tell(function(item))


class _Child:
    """A process that calls a function, and the lines that it says; it has started when this is entered."""

    def __init__(
        self,
        function: Callable[[_T, Tell], None],
        argument: _T,
        limit_secs: float,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._order = pickle.dumps((function, argument))
        self._limit_secs = limit_secs
        self._mark = secrets.token_hex(8)
        self._env = {**(os.environ if env is None else env), _MARK: self._mark}
        self._lines: list[bytes] = []
        self._begun: list[bytes] = []
        self._ended = False

    def __enter__(self) -> _Child:
        # What is told has a pipe of its own, since the code may print. A session of its own, so that whatever the code
        # starts can be ended with it. -P and our own path, so that it finds just the modules that this process would.
        self._source, child_end = os.pipe()
        path = json.dumps([os.path.abspath(entry) for entry in sys.path])
        try:
            self._process = subprocess.Popen(  # noqa: S603  nothing of it comes from outside
                [sys.executable, "-P", "-c", _BOOTSTRAP, path, str(child_end), str(self._limit_secs)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(child_end,),
                start_new_session=True,
                env=self._env,
            )
        except BaseException:
            os.close(self._source)
            raise
        finally:
            os.close(child_end)
        try:
            # In a thread: a child that reads nothing would hold this one for ever.
            threading.Thread(target=self._send, name="isolation", daemon=True).start()
            if self.next(time.monotonic() + START_LIMIT_SECS) is None:
                why = self.died(START_LIMIT_SECS).reason
                raise ConserverError(f"{sys.executable} cannot start a process to call code in: it {why}")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        _kill_marked(self._mark)
        os.close(self._source)

    def _send(self) -> None:
        assert self._process.stdin is not None  # noqa: S101  for the type checker: PIPE is asked for above
        with suppress(BrokenPipeError), self._process.stdin as stdin:
            stdin.write(self._order)

    def next(self, deadline: float) -> bytes | None:
        """Return the next line; None when the process is gone or *deadline* (monotonic seconds) is over."""
        poll = select.poll()
        poll.register(self._source, select.POLLIN)
        while not self._lines:
            # What the process forked may hold the other end of the pipe open for ever, so its end is looked for, too.
            gone = self._process.poll() is not None
            wait = 0.0 if gone else min(0.1, max(0.0, deadline - time.monotonic()))
            if poll.poll(wait * 1000):
                data = os.read(self._source, 1 << 20)
                if data:
                    first, *others = data.split(b"\n")
                    self._begun.append(first)
                    for part in others:
                        self._lines.append(b"".join(self._begun))
                        self._begun = [part]
                    continue
                self._process.wait()
                gone = True
            if gone:
                self._ended = True
                return None
            if time.monotonic() >= deadline:
                return None
        return self._lines.pop(0)

    def died(self, limit_secs: float) -> Died:
        """Say why there is no line."""
        if not self._ended:
            return Died(f"takes longer than {limit_secs:g} s")
        code = self._process.wait()
        if code < 0:
            return Died(f"is killed by {signal.Signals(-code).name}")
        return Died(f"ends its process with exit code {code}")


def _kill_marked(mark: str) -> None:
    """End what has left the session of its child (browsers do), where the system tells the environment of processes."""
    wanted = f"{_MARK}={mark}".encode()
    # What is killed may have started something in that moment.
    for _ in range(5):
        found = False
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if wanted in (folder / "environ").read_bytes().split(b"\0"):
                    os.kill(int(folder.name), signal.SIGKILL)
                    found = True
        if not found:
            return


def serve() -> None:
    """Call the function, in the child."""
    out, limit_secs = int(sys.argv[2]), float(sys.argv[3])
    os.set_inheritable(out, False)
    function, argument = pickle.load(sys.stdin.buffer)  # noqa: S301  it is our own parent that writes it
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    process = os.getpid()

    def write(line: bytes) -> None:
        if os.getpid() != process:
            os._exit(0)  # the code has forked, and this is the copy
        # Should the parent be killed, nobody else ends a call that hangs.
        signal.alarm(int(limit_secs) + 5)
        line += b"\n"
        while line:
            line = line[os.write(out, line) :]

    write(b"ready")
    function(argument, lambda value: write(json.dumps(value).encode()))
    write(_END)
    os._exit(0)  # threads that the code has started would keep the process
