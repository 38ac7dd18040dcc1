"""A process with all that it has started: how much CPU it used, and how to end it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

_TICKS_A_SEC = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """The process and its descendants; only itself where there is no /proc, as on macOS."""
    found = [pid]
    for member in found:  # grows while it is walked
        with contextlib.suppress(OSError):
            for thread in Path(f"/proc/{member}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
    return found


def cpu_secs(pids: list[int]) -> float | None:
    """The CPU time of these processes and of their children that have ended; None where there is no /proc."""
    if not Path("/proc/self/stat").exists():
        return None
    ticks = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            # The name in parentheses may hold anything; what follows its end is regular.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            # utime, stime, and the same of children that were waited for: rq forks a process for each job.
            ticks += sum(map(int, fields[11:15]))
    return ticks / _TICKS_A_SEC


def end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Kill each process with its descendants, at once."""
    for process in processes:
        for pid in family(process.pid) if process.poll() is None else ():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
