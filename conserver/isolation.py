"""Calling code that may print, hang, fork or take its process down."""

from __future__ import annotations

import json
import os
import pickle
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from conserver.errors import ConserverError

START_LIMIT_SECS = 60.0

_T = TypeVar("_T")
_BOOTSTRAP = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from conserver.isolation import serve; serve()"


@dataclass(frozen=True, slots=True)
class Died:
    """What became of the process instead of an answer, as in "takes longer than 30 s"."""

    reason: str


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
        got, died = _call_in_child(function, rest[:until], limit_secs)
        answers += got
        if died is not None:
            deadly[alike(items[len(answers)])] = died
    return answers


def _call_in_child(
    function: Callable[[_T], Any], items: Sequence[_T], limit_secs: float
) -> tuple[list[Any], Died | None]:
    # Answers have a pipe of their own, since the code may print. A session of its own, so that whatever the code
    # starts can be ended with it. -P and our own path, so that it finds just the modules that this process would.
    answers_end, child_end = os.pipe()
    path = json.dumps([os.path.abspath(entry) for entry in sys.path])
    child = subprocess.Popen(  # noqa: S603  nothing of it comes from outside
        [sys.executable, "-P", "-c", _BOOTSTRAP, path, str(child_end), str(limit_secs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(child_end,),
        start_new_session=True,
    )
    os.close(child_end)
    lines = _Lines(answers_end, child)
    try:
        assert child.stdin is not None  # noqa: S101  for the type checker: PIPE is asked for above
        with suppress(BrokenPipeError), child.stdin as stdin:
            pickle.dump((function, list(items)), stdin)
        if lines.next(START_LIMIT_SECS) is None:
            raise ConserverError(f"{sys.executable} cannot start a process for the check: {_end_of(child).reason}")
        answers: list[Any] = []
        for _ in items:
            line = lines.next(limit_secs)
            if line is None:
                return answers, _end_of(child) if lines.ended else Died(f"takes longer than {limit_secs:g} s")
            answers.append(json.loads(line))
        return answers, None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        os.close(answers_end)


class _Lines:
    """Lines of a pipe, until the process is gone: what it forked may hold the other end open for ever."""

    def __init__(self, source: int, child: subprocess.Popen[bytes]) -> None:
        self._source = source
        self._child = child
        self._buffer = b""
        self.ended = False

    def next(self, limit_secs: float) -> bytes | None:
        deadline = time.monotonic() + limit_secs
        while b"\n" not in self._buffer:
            gone = self._child.poll() is not None
            wait = 0.0 if gone else min(0.1, max(0.0, deadline - time.monotonic()))
            if select.select([self._source], [], [], wait)[0]:
                data = os.read(self._source, 65536)
                self._buffer += data
                if data:
                    continue
                self._child.wait()
                gone = True
            if gone:
                self.ended = True
                return None
            if time.monotonic() >= deadline:
                return None
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def _end_of(child: subprocess.Popen[bytes]) -> Died:
    code = child.poll()
    if code is None:
        return Died("does not answer")
    if code < 0:
        return Died(f"is killed by {signal.Signals(-code).name}")
    return Died(f"ends its process with exit code {code}")


def serve() -> None:
    """Answer, in the child."""
    out, limit_secs = int(sys.argv[2]), float(sys.argv[3])
    os.set_inheritable(out, False)
    function, items = pickle.load(sys.stdin.buffer)  # noqa: S301  it is our own parent that writes it
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    process = os.getpid()
    os.write(out, b"ready\n")
    for item in items:
        # Should the parent be killed, nobody else ends a call that hangs.
        signal.alarm(int(limit_secs) + 5)
        answer = json.dumps(function(item)).encode() + b"\n"
        if os.getpid() != process:
            os._exit(0)  # the code has forked, and this is the copy
        while answer:
            answer = answer[os.write(out, answer) :]
    os._exit(0)  # threads that the code has started would keep the process
