"""A wall clock that is wrong, and jumps, for processes of a test: a small library that is loaded before the C library.

(libfaketime does the same for more cases, but takes sleeps by the monotonic clock, as Python's, for ones by the wall.)
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

from tests.conftest import missing

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile int64_t *wrong_by;
static int (*real_clock_gettime)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("WRONG_CLOCK");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *at = mmap(0, sizeof(int64_t), PROT_READ, MAP_SHARED, file, 0);
    if (at != MAP_FAILED) wrong_by = at;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *t) {
    if (!real_clock_gettime) real_clock_gettime = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real_clock_gettime(clock, t);
    if (result == 0 && wrong_by && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) t->tv_sec += *wrong_by;
    return result;
}

int gettimeofday(struct timeval *restrict t, void *restrict zone) {
    struct timespec now;
    int result = clock_gettime(CLOCK_REALTIME, &now);
    t->tv_sec = now.tv_sec;
    t->tv_usec = now.tv_nsec / 1000;
    return result;
}

time_t time(time_t *t) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) *t = now.tv_sec;
    return now.tv_sec;
}
"""


class WrongClock:
    """The wall clock of all processes that are started with `env`; the monotonic clock stays as it is."""

    def __init__(self, folder: Path, secs: int = 0) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc") or missing("no C compiler, to make a clock that is wrong")
        if sys.platform != "linux":
            missing("a wrong clock is made for Linux alone")
        folder.mkdir(parents=True, exist_ok=True)
        source, library, self._file = folder / "clock.c", folder / "clock.so", folder / "secs"
        source.write_text(_SOURCE)
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True, capture_output=True, timeout=60)
        self._file.write_bytes(struct.pack("=q", secs))
        self.env = {"LD_PRELOAD": str(library), "WRONG_CLOCK": str(self._file)}

    def set(self, secs: int) -> None:
        """Let the clock be wrong by so much, from this moment on."""
        with self._file.open("r+b") as file:
            file.write(struct.pack("=q", secs))
