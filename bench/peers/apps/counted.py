"""What every task here does, and how many of them there are. Runs in the environment of a task queue."""

import os
import struct
import time

URL = os.environ["BENCH_URL"]
VARIANT = os.environ["BENCH_VARIANT"]

_done = os.open(os.environ["BENCH_DONE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def done(sent):
    """Note that a task has run: one byte, or eight with its latency if it is a probe."""
    os.write(_done, struct.pack("d", time.time() - sent) if sent else b".")


def tasks(n, rate):
    """The argument of each task: all at once, or with a rate probes that go out at that many a second."""
    started = time.time()
    for number in range(n):
        if rate:
            time.sleep(max(0.0, started + number / rate - time.time()))
        yield time.time() if rate else 0.0
