"""The task queues that ours is measured beside, each with its fastest sensible settings first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

APPS = Path(__file__).parent / "apps"


@dataclass(frozen=True)
class Variant:
    """One way to run two workers of a task queue."""

    name: str
    command: tuple[str, ...]
    """A program of the environment, and what it is given."""
    n: int
    """Tasks in a short run: 1 to 2 s worth of them on two cores."""
    processes: int = 1
    """How often to start the command so that there are two workers."""
    probes_a_sec: int = 50


@dataclass(frozen=True)
class Peer:
    """A task queue: what to install, and how to run it; its task and its client are in `app_<name>.py`."""

    name: str
    pins: tuple[str, ...]
    variants: tuple[Variant, ...]
    """The first is the one that a short benchmark takes."""
    apps: Path = APPS


_HIREDIS = "hiredis==3.5.0"
_REDIS = "redis==8.1.0"
_UVLOOP = "uvloop==0.23.0"

_RQ = ("rq", "worker", "--url", "{url}", "--quiet", "--logging_level", "ERROR", "--worker-class")
_CELERY = ("celery", "-A", "app_celery", "worker", "-c", "2", "-l", "ERROR", "--without-gossip", "--without-mingle")
_DRAMATIQ = ("dramatiq", "app_dramatiq", "--skip-logging", "-p", "2")
_TASKIQ = ("taskiq", "worker", "app_taskiq:broker", "-w", "2", "--log-level", "ERROR", "--no-parse")
_ARQ_QUIET = ("--custom-log-dict", "app_arq.QUIET")

PEERS = (
    Peer(
        "rq",
        ("rq==3.0.0", _REDIS, _HIREDIS),
        (
            Variant("SimpleWorker (no fork) x2", (*_RQ, "rq.SimpleWorker", "bench"), 800, processes=2),
            Variant(
                "default worker (fork per job) x2", (*_RQ, "rq.Worker", "bench"), 150, processes=2, probes_a_sec=20
            ),
        ),
    ),
    Peer(
        "dramatiq",
        ("dramatiq[redis]==2.2.1", _REDIS, _HIREDIS),
        (
            Variant("-p 2 -t 8", (*_DRAMATIQ, "-t", "8"), 5000),
            Variant("-p 2 -t 1", (*_DRAMATIQ, "-t", "1"), 800),
        ),
    ),
    Peer(
        "celery",
        ("celery[redis]==5.7.0", "kombu==5.7.0", _REDIS, _HIREDIS),
        (
            Variant("prefork -c 2, acks_late, prefetch 64", (*_CELERY, "--prefetch-multiplier", "64"), 1500),
            Variant("prefork -c 2, acks_late, prefetch 4", (*_CELERY, "--prefetch-multiplier", "4"), 1500),
        ),
    ),
    Peer(
        "arq",
        ("arq==0.28.0", "redis==5.3.1", _HIREDIS, _UVLOOP),
        (
            Variant("poll 20 ms, max_jobs 100, x2", ("arq", "app_arq.Tuned", *_ARQ_QUIET), 1500, processes=2),
            Variant("default (poll 0.5 s, max_jobs 10) x2", ("arq", "app_arq.Default", *_ARQ_QUIET), 400, processes=2),
        ),
    ),
    Peer(
        "saq",
        # It does not take redis 8 yet, and imports typing_extensions without asking for it.
        ("saq[redis]==0.26.4", "redis==7.4.1", _HIREDIS, _UVLOOP, "typing_extensions==4.16.0"),
        (Variant("x2, concurrency 10", ("saq", "app_saq.settings", "--quiet"), 2500, processes=2),),
    ),
    Peer(
        "taskiq",
        ("taskiq==0.13.0", "taskiq-redis==1.2.4", _REDIS, _HIREDIS, _UVLOOP),
        (
            Variant("RedisStreamBroker (acks) -w 2", _TASKIQ, 5000),
            Variant("ListQueueBroker (no acks) -w 2", _TASKIQ, 5000),
        ),
    ),
    Peer(
        "huey",
        ("huey==3.5.4", _REDIS, _HIREDIS),
        (Variant("-k process -w 2", ("huey_consumer", "app_huey.huey", "-k", "process", "-w", "2", "-q"), 5000),),
    ),
)
