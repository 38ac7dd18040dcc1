"""The footprint of a soak: flat processes pass, and whatever grows is named."""

from __future__ import annotations

import os

import pytest

from tests.faults.footprint import Footprint, Sample


def watched(samples: list[Sample]) -> Footprint:
    """A footprint of one worker."""
    footprint = Footprint()
    footprint.samples["worker", 7] = samples
    return footprint


def test_a_flat_process_passes():
    """Warming up, noise and a moment with more threads are no growth."""
    samples = [Sample(20_000 + 1_000 * n, 10 + n, 5) for n in range(20)]
    samples += [Sample(40_000 + n % 3 * 500, 30 + n % 2, 12 + (n % 20 == 0) * 8) for n in range(80)]

    assert watched(samples).growth(least=100) == []


@pytest.mark.parametrize(
    ("grown", "words"),
    [
        (lambda n: Sample(40_000 + 100 * n, 30, 12), "memory of worker 7 has grown from 43,700 to 48,700 kB"),
        (lambda n: Sample(40_000, 30 + n // 10, 12), "files of worker 7 have grown from 32 to 37"),
        (lambda n: Sample(40_000, 30, 12 + n // 10), "threads of worker 7 have grown from 14 to 19"),
    ],
)
def test_growth_is_named(grown, words: str):
    """Memory, files and threads that grow are each said with their numbers; not after too few samples."""
    footprint = watched([grown(n) for n in range(100)])

    assert footprint.growth(least=100) == [words]
    assert footprint.growth(least=101) == []


def test_a_living_process_has_a_footprint():
    """A look at a process finds what it uses; one that has ended leaves no sample."""
    footprint = Footprint()
    footprint.look("test", os.getpid())
    footprint.look("test", 1 << 30)

    ((sample,),) = footprint.samples.values()
    assert sample.memory_kb > 1000
    assert sample.files > 2
    assert sample.threads >= 1
