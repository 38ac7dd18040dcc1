"""What `conserver run` and `conserver worker` do before and after the supervisor's work.

The config is checked, the server is found or started, and with an embedded server there is one `run` a data folder.
"""

from __future__ import annotations

import configparser
import fcntl
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from socket import socket as Socket

from conserver import components, listening, telemetry
from conserver.config import Config
from conserver.errors import ConfigError, ConserverError, ServerError, SettingsError
from conserver.feed import expand, feed
from conserver.findings import did_you_mean
from conserver.queue import Queue
from conserver.server import Server, serving
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.supervisor import Supervisor
from conserver.workload import chains_of

log = logging.getLogger(__name__)

Say = Callable[[str], None]

#: How long the first words to a newcomer wait for the workers, and then for the examples to be through.
WELCOME_WAIT_SECS = 20.0
_LOOK_SECS = 0.1


class RunsAlready(ConserverError):
    """Another `conserver run` works on this data folder."""


def run(settings: Settings, say: Say, *, examples: Path | None = None, newcomer: bool = True) -> None:
    """Work until SIGTERM or Ctrl-C, then hand back what is not finished.

    *say* takes what is for people: findings of the config, and for a *newcomer* where things are and what to type
    next. *examples* is a folder whose vCons are fed to the first list of the first chain, once a data folder.
    Raises ConfigError, SettingsError, ServerError or RunsAlready if the start fails; then nothing is left running.
    """
    _configure_logging(settings)
    # Until the supervisor handles it: end by way of the clean-up below.
    signal.signal(signal.SIGTERM, lambda *_: _end_early())
    config = checked_config(settings, say)
    for note in (*settings.notes, *_chain_notes(settings, config)):
        log.warning("%s", note)
    # Without the embedded server any number of hosts may work beside each other, also on one machine.
    alone = _alone(settings.data_dir) if newcomer and settings.redis_url is None else nullcontext()
    with alone, serving(settings, patient=True) as server, _listening(settings, newcomer=newcomer) as socket:
        supervisor = Supervisor(server.url, settings, config, server=server.embedded, listening=socket)
        if newcomer:
            fed = _feed_examples(server, settings, config, examples, say) if examples is not None else 0
            welcome = threading.Thread(target=_welcome, args=(supervisor, server, fed, say), daemon=True)
            welcome.start()
        supervisor.run()


@contextmanager
def _listening(settings: Settings, *, newcomer: bool) -> Iterator[Socket | None]:
    if not newcomer or settings.api_port is None:
        yield None
        return
    listening.check(settings)
    # A port that nobody has asked for keeps nobody from work.
    with listening.listen(settings, elsewhere="CONSERVER_API_PORT" not in os.environ) as socket:
        yield socket


def api(settings: Settings, say: Say) -> None:
    """Serve the API alone until SIGTERM or Ctrl-C; raises as `run` does."""
    # It costs half a second to import, which the workers' commands need not pay.
    from conserver.api.serve import serve

    _configure_logging(settings)
    signal.signal(signal.SIGTERM, lambda *_: _end_early())
    for note in settings.notes:
        log.warning("%s", note)
    listening.check(settings)
    with serving(settings, patient=True) as server, listening.listen(settings) as socket:
        say(f"the API listens on {listening.address_of(socket)}")
        serve(settings, server.url, socket)


def checked_config(settings: Settings, say: Say) -> Config:
    """Return the config, and say all findings; ConfigError if one of them is an error."""
    config, findings = components.check(settings.config_file)
    for finding in findings:
        say(str(finding))
    if config is None:
        errors = sum(finding.level == "error" for finding in findings)
        raise ConfigError(f"{settings.config_file} has {errors} error{'s' if errors > 1 else ''}: nothing was started")
    return config


def _end_early() -> None:
    log.warning("told to end before the start was through")
    sys.exit(0)


def _configure_logging(settings: Settings) -> None:
    file = settings.logging_config_file
    if file is not None and not file.is_file():
        raise SettingsError(f"LOGGING_CONFIG_FILE={str(file)!r}: there is no such file")
    try:
        telemetry.configure(settings)
    except (
        *(OSError, ValueError, LookupError, RuntimeError, TypeError, AttributeError, ImportError),
        configparser.Error,  # later versions of Python 3.11 make it a RuntimeError
    ) as error:
        raise SettingsError(f"LOGGING_CONFIG_FILE={str(file)!r} is no logging configuration: {error!r}") from error


def _chain_notes(settings: Settings, config: Config) -> list[str]:
    unknown = [name for name in settings.chains if name not in config.chains]
    notes = [
        f"CONSERVER_CHAINS names chain {name!r}, which {config.file} does not have{did_you_mean(name, config.chains)}"
        for name in unknown
    ]
    if settings.chains and len(unknown) == len(settings.chains):
        raise SettingsError("; ".join(notes))
    return notes if chains_of(config, settings) else [*notes, f"{config.file} has no chain to work on"]


@contextmanager
def _alone(data_dir: Path) -> Iterator[None]:
    """Hold the lock of the data folder; the kernel lets go of it whatever kills this process."""
    path = data_dir / "conserver.lock"
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise _unwritable(data_dir, error) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()}\n".encode())
    except BlockingIOError:
        pid = os.pread(file, 20, 0).decode().strip()
        os.close(file)
        raise RunsAlready(
            f"conserver runs already (pid {pid or 'not known yet'}) on data folder {data_dir}: '{command()} status' "
            f"says what it does; Ctrl-C where it runs, or 'kill {pid or 'PID'}', ends it; for another one beside it, "
            "set CONSERVER_DATA_DIR to another folder"
        ) from None
    except OSError as error:
        os.close(file)
        raise _unwritable(data_dir, error) from error
    try:
        yield
    finally:
        os.close(file)


def _unwritable(data_dir: Path, error: OSError) -> ServerError:
    return ServerError(
        f"data folder {data_dir}: it cannot be written to ({error.strerror}); make room or give this user the right to "
        "write there, or set CONSERVER_DATA_DIR to another folder"
    )


def command() -> str:
    """Return what a person types to get this program: it may not be on their PATH."""
    program = Path(sys.argv[0])
    if program.name != "conserver":
        return "python -m conserver"
    return "conserver" if shutil.which("conserver") else os.path.relpath(program)


def _feed_examples(server: Server, settings: Settings, config: Config, folder: Path, say: Say) -> int:
    """Feed the vCons of *folder* unless that was done before; return how many were fed."""
    marker = settings.data_dir / "examples.fed"
    lists = next((lists for lists in chains_of(config, settings).values() if lists), None)
    if marker.exists():
        return 0
    if not folder.is_dir() or lists is None:
        say(f"no examples are fed: {'no chain has an ingress list' if folder.is_dir() else f'{folder} is no folder'}")
        return 0
    queue, store, pushed = Queue(server.url, "examples"), VconStore(server.url, settings), 0
    for fed in feed(queue, store, lists[0], expand([str(folder)], ()), max_bytes=settings.max_vcon_bytes):
        if fed.refused:
            say(f"{fed.name}: not fed: {fed.refused}")
        else:
            pushed += 1
    try:
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(f"{pushed} vCons of {folder} were pushed to {lists[0]} at {datetime.now(UTC).isoformat()}\n")
    except OSError as error:
        say(f"the examples will be fed again at the next start: {marker} cannot be written ({error.strerror})")
    return pushed


def _welcome(supervisor: Supervisor, server: Server, fed: int, say: Say) -> None:
    """Say where things are, and when the first vCons are through, what to type next. Runs on a thread of its own."""
    config, settings = supervisor.config, supervisor.settings
    try:
        say(f"redis: {server.describe(supervisor.queue.server_info())}")
        if (address := supervisor.services.address()) is not None:
            say(f"api:   {address}")
        chains = chains_of(config, settings)
        lists = [name for names in chains.values() for name in names]
        tick, ticks = threading.Event(), int(WELCOME_WAIT_SECS / _LOOK_SECS)
        for _ in range(ticks):
            if supervisor.stopping or (_workers_are_up(supervisor) and not (fed and _busy(supervisor.queue, lists))):
                break
            tick.wait(_LOOK_SECS)
        dead = {name: depth.dead for name, depth in supervisor.queue.depths(lists).items() if depth.dead}
    except ServerError as error:
        # The supervisor meets the same trouble, and says so for as long as it lasts.
        log.debug("nothing was said to the newcomer: %s", error)
        return
    if not supervisor.stopping:
        say("\n".join(_next_steps(config, settings, lists, dead, fed)))


def _workers_are_up(supervisor: Supervisor) -> bool:
    return any(process.snapshot is not None for process in list(supervisor.processes))


def _busy(queue: Queue, lists: list[str]) -> bool:
    return any(d.waiting or d.returned or d.held for d in queue.depths(lists).values())


def _next_steps(config: Config, settings: Settings, lists: list[str], dead: dict[str, int], fed: int) -> list[str]:
    me = command()
    steps = [
        (f"{me} status", "what runs and what waits"),
        *(
            (f"{me} dlq list {name}", f"{count} dead letter{'s' * (count > 1)}, and why")
            for name, count in dead.items()
        ),
        *([(f"{me} push {lists[0]} FILE", "send a vCon of your own")] if lists else []),
        (f"edit {settings.config_file}", "in force within two seconds of saving it"),
        ("Ctrl-C", "ends it; what is not finished waits for the next start"),
    ]
    width = max(len(step) for step, _ in steps)
    lines = [f"The conserver runs {settings.config_file}."]
    if fed:
        lines[0] += f" It was fed {fed} example vCons."
    folders = {str(s.options.get("path")) for s in config.storages.values() if s.module == "storages.file"}
    lines += [f"vCons are stored in {folder}." for folder in sorted(folders - {"None"})]
    return [*lines, "Next, in another terminal:", *(f"  {step.ljust(width)}  {what}" for step, what in steps)]
