"""What processes use, over time: memory, file descriptors, threads; and whether it grows."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

#: Growth that a process may have from the second quarter of its time to the last: a share, and what is noise.
MOST_GROWTH = 0.05
NOISE_KB = 1024
MORE_AT_MOST = 2


@dataclass(frozen=True)
class Sample:
    """What one process used at one moment."""

    memory_kb: int
    files: int
    threads: int


class Footprint:
    """Samples of processes by role and pid."""

    def __init__(self) -> None:
        self.samples: defaultdict[tuple[str, int], list[Sample]] = defaultdict(list)

    def look(self, role: str, pid: int) -> None:
        """Take a sample of a process; one that has just ended, or becomes another program, has none."""
        here = Path(f"/proc/{pid}")
        try:
            rollup = (here / "smaps_rollup").read_text()
            status = (here / "status").read_text()
            sample = Sample(_number(rollup, "Pss:"), len(list((here / "fd").iterdir())), _number(status, "Threads:"))
        except (OSError, StopIteration):
            return
        self.samples[role, pid].append(sample)

    def table(self, least: int) -> list[str]:
        """Return a line for each process that was seen *least* times: its second quarter, and its last."""
        lines = []
        for (role, pid), (early, late) in self._halves(least).items():
            words = []
            for what in ("memory_kb", "files", "threads"):
                before, after = (statistics.median(getattr(sample, what) for sample in part) for part in (early, late))
                words.append(f"{what} {before:,.0f} -> {after:,.0f}")
            lines.append(f"{role} {pid}: {', '.join(words)}")
        return lines

    def growth(self, least: int) -> list[str]:
        """Return what has grown in processes that were seen *least* times: from their second quarter to their last."""
        found = []
        for (role, pid), (early, late) in self._halves(least).items():
            before, after = (statistics.median(sample.memory_kb for sample in part) for part in (early, late))
            if after > before * (1 + MOST_GROWTH) + NOISE_KB:
                found.append(f"memory of {role} {pid} has grown from {before:,.0f} to {after:,.0f} kB")
            for what in ("files", "threads"):
                least_before, least_after = (min(getattr(sample, what) for sample in part) for part in (early, late))
                if least_after > least_before + MORE_AT_MOST:
                    found.append(f"{what} of {role} {pid} have grown from {least_before} to {least_after}")
        return found

    def _halves(self, least: int) -> dict[tuple[str, int], tuple[list[Sample], list[Sample]]]:
        return {
            process: (samples[len(samples) // 4 : len(samples) // 2], samples[-(len(samples) // 4) :])
            for process, samples in self.samples.items()
            if len(samples) >= max(least, 8)
        }


def _number(text: str, name: str) -> int:
    return int(next(line for line in text.splitlines() if line.startswith(name)).split()[1])
