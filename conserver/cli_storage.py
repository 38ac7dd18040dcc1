"""The group `conserver storage`: see whether storages work and what they hold, copy and delete."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import typer

from conserver.cli_print import (
    EXIT_FAILED,
    EXIT_USAGE,
    Format,
    Output,
    failed,
    number,
    paint,
    print_json,
    say,
    say_warning,
    settings_of,
)

if TYPE_CHECKING:
    from conserver.config import Config
    from conserver.places import Place
    from conserver.settings import Settings
    from conserver.store import VconStore

storage = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="See whether storages work and what they hold, copy, delete."
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="A storage of the config file.")]
Threads = Annotated[int, typer.Option(min=1, max=64, metavar="N", help="vCons at the same time.")]


@storage.command("ping")
def storage_ping(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="Storages; without a name, all.")] = None,
    output: Output = Format.text,
) -> None:
    """Ask storages whether they work."""
    from conserver.places import load_places, ping_all

    with _store() as (settings, store):
        _, places, broken = load_places(settings, store, names or ())
        # The line begins with the name.
        told = ping_all(places.values()) | {
            name: why.replace(f"storage {name!r}: ", "") for name, why in broken.items()
        }
    if output is Format.json:
        states = {name: "no ping" if why is None else "fails" if why else "works" for name, why in told.items()}
        print_json([{"storage": name, "state": states[name], "error": why or ""} for name, why in told.items()])
    for name, why in told.items() if output is Format.text else ():
        color = typer.colors.RED if why else typer.colors.GREEN
        typer.echo(f"{name}: {'has no ping' if why is None else paint(why or 'works', color)}")
    if any(told.values()):
        raise typer.Exit(EXIT_FAILED)


@storage.command("verify")
def storage_verify(
    name: Name,
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Those created at this time or later: 2026-01-31T12:00:00Z.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="N", help="No more than this many, newest first.")] = None,
    repair: Annotated[bool, typer.Option("--repair", help="Save again what is missing or differs.")] = False,
    missing_ok: Annotated[
        bool, typer.Option("--missing-ok", help="Not every vCon comes to this storage: none is wrong that is missing.")
    ] = False,
    threads: Threads = 4,
    output: Output = Format.text,
) -> None:
    """Compare what a storage holds with what Redis holds."""
    from conserver.places import load_places
    from conserver.queue import Queue
    from conserver.records import Records
    from conserver.verifying import REPAIRABLE, WRONG, Verification

    begin = _epoch_secs(since)
    fine = {"missing"} if missing_ok else set()
    wrong = [state for state in WRONG if state not in fine]
    repaired = [state for state in REPAIRABLE if state not in fine] if repair else []
    counts: Counter[str] = Counter()
    rows = []
    with _store() as (settings, store):
        config, places, broken = load_places(settings, store, [name])
        place = _usable(name, places, broken)
        if place.storage.get is None:
            raise failed(f"storage {name!r}: {place.storage.module} has no get, so what it holds cannot be seen")
        chains = [chain for chain in config.chains.values() if name in chain.storages]
        lists = list(dict.fromkeys(ingress for chain in chains for ingress in chain.ingress_lists))
        run = Verification(place, store, Queue(store.url, "verify"), Records(store.url, "verify"), lists).run(
            since=begin, limit=limit, threads=threads, repair=repaired
        )
        with _Progress(f"comparing with {name!r}", lambda: counts) as progress:
            for verdict in run:
                counts[verdict.state] += 1
                progress.tick()
                if verdict.state not in {*wrong, "newer", "repaired"}:
                    continue
                if output is Format.json:
                    rows.append(asdict(verdict))
                else:
                    progress.line(_row(verdict.uuid, verdict.state, verdict.why))
    if output is Format.json:
        print_json({"storage": name, "counts": dict(counts), "vcons": rows})
    else:
        words = {"unsaved": "not saved yet", "gone": "not in Redis any more"}
        typer.echo(f"{name!r}: {_counted(counts, words) or 'Redis holds no vCon'}")
    if counts["missing"] and not missing_ok and (others := _chains_without(config, name)):
        say_warning(
            f"chains that do not save to {name!r}: {', '.join(others)}; what only they have seen is rightly missing"
            " (--missing-ok)"
        )
    if any(counts[state] for state in wrong):
        raise typer.Exit(EXIT_FAILED)


@storage.command("copy")
def storage_copy(
    source_name: Annotated[str, typer.Argument(metavar="FROM", help="The storage to copy from.")],
    target_name: Annotated[str, typer.Argument(metavar="TO", help="The storage to copy to.")],
    uuids: Annotated[
        str | None, typer.Option(metavar="FILE", help="Only these: UUIDs, one a line; - reads standard input.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Also where TO has another version of the vCon.")
    ] = False,
    restart: Annotated[bool, typer.Option("--restart", help="Begin anew, not where an earlier run has ended.")] = False,
    threads: Threads = 4,
    output: Output = Format.text,
) -> None:
    """Copy every vCon of a storage to another one.

    The same command goes on where it was, whatever has ended it.
    """
    from conserver.copying import LATER, Copied, Copying
    from conserver.places import PlaceDown, load_places

    if source_name == target_name:
        raise failed("FROM and TO are the same storage", EXIT_USAGE)
    given = None if uuids is None else _uuids_in(uuids)
    told = {"different", *LATER, *(() if given is None else ("missing",))}
    rows: dict[str, Copied] = {}
    with _store() as (settings, store):
        _, places, broken = load_places(settings, store, [source_name, target_name])
        source, target = (_usable(name, places, broken) for name in (source_name, target_name))
        copying = Copying(store, source, target, uuids=given, overwrite=overwrite)
        if copying.by_index:
            say_warning(
                f"storage {source_name!r} cannot list what it holds: copied is what Redis knows of, which is not what"
                " has expired there long ago (--uuids FILE names others)"
            )
        if copying.progress.counts and not restart:
            done = number(sum(copying.progress.counts.values()), "vCon")
            say(f"going on behind {done} of an earlier run; --restart begins anew")
        try:
            with _Progress(f"copying to {target_name!r}", lambda: copying.progress.counts) as progress:
                for one in copying.run(restart=restart, threads=threads):
                    progress.tick()
                    before = rows.pop(one.uuid, None)
                    if one.state not in told:
                        continue
                    if output is Format.json or one.state in LATER:
                        # What fails is tried again at the end, and is told once if it fails in the same way.
                        rows[one.uuid] = one
                    if output is Format.text and one != before:
                        progress.line(_row(one.uuid, one.state, one.why))
        except (PlaceDown, KeyboardInterrupt) as error:
            raise failed(f"{str(error) or 'interrupted'}; the same command goes on where it was") from error
        counts, left = copying.progress.counts, copying.left()
    if output is Format.json:
        vcons = [asdict(one) for one in rows.values()]
        print_json({"from": source_name, "to": target_name, "counts": counts, "left": left, "vcons": vcons})
    else:
        words = {"different": "different, left as they are", "missing": f"not in {source_name!r}"}
        summary = _counted(counts | ({"left": left} if left else {}), words | {"left": "to be tried again"})
        typer.echo(f"{source_name!r} to {target_name!r}: {summary or 'nothing to copy'}")
        if counts.get("different"):
            say("what differs is overwritten with --overwrite")
    if left or counts.get("different") or ("missing" in told and counts.get("missing")):
        raise typer.Exit(EXIT_FAILED)


@storage.command("delete")
def storage_delete(
    name: Name,
    uuids: Annotated[list[str], typer.Argument(metavar="UUID...", help="The vCons to delete there.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete vCons from one storage, and from nowhere else."""
    from conserver.errors import StorageError
    from conserver.places import load_places
    from conserver.vcon_forms import is_uuid

    if wrong := [uuid for uuid in uuids if not is_uuid(uuid)]:
        raise failed(f"{wrong[0]!r} is no UUID; nothing was deleted", EXIT_USAGE)
    with _store() as (settings, store):
        _, places, broken = load_places(settings, store, [name])
        place = _usable(name, places, broken)
        if place.storage.delete is None:
            raise failed(f"storage {name!r}: {place.storage.module} has no delete: delete the vCons there by hand")
        if not yes:
            typer.confirm(f"Delete {number(len(uuids), 'vCon')} from storage {name!r}?", abort=True)
        left = 0
        for uuid in dict.fromkeys(uuids):
            try:
                found = place.delete(uuid)
            except StorageError as error:
                left += 1
                say(f"{uuid}: {paint('not deleted', typer.colors.RED, err=True)}: {error}")
                continue
            word = {True: "deleted", False: "was not there", None: "deleted, if it was there"}[found]
            typer.echo(f"{uuid}: {word}")
    if left:
        raise typer.Exit(EXIT_FAILED)


@contextmanager
def _store() -> Iterator[tuple[Settings, VconStore]]:
    from conserver.server import serving
    from conserver.store import VconStore

    settings = settings_of()
    with serving(settings) as server:
        # Where components look that have no server of their own, as in a worker.
        os.environ["REDIS_URL"] = server.url
        yield settings, VconStore(server.url, settings)


def _usable(name: str, places: dict[str, Place], broken: dict[str, str]) -> Place:
    if name in broken:
        raise failed(broken[name])
    return places[name]


def _chains_without(config: Config, name: str) -> list[str]:
    return [repr(chain.name) for chain in config.chains.values() if chain.enabled and name not in chain.storages]


def _epoch_secs(text: str | None) -> float | None:
    from datetime import UTC, datetime

    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise failed(f"--since {text!r}: it must be a time like 2026-01-31T12:00:00Z", EXIT_USAGE) from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _uuids_in(name: str) -> list[str]:
    from conserver.vcon_forms import is_uuid

    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise failed(f"{name} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from error
    uuids = dict.fromkeys(line.strip() for line in text.splitlines() if line.strip())
    if wrong := [uuid for uuid in uuids if not is_uuid(uuid)]:
        raise failed(f"{name}: {wrong[0][:80]!r} is no UUID", EXIT_USAGE)
    return list(uuids)


def _row(uuid: str, state: str, why: str) -> str:
    return f"{uuid}  {state}{f': {why}' if why else ''}"


def _counted(counts: dict[str, int], words: dict[str, str]) -> str:
    return ", ".join(f"{count:,} {words.get(state, state)}" for state, count in counts.items() if count)


class _Progress:
    """What has been done so far, on a line of stderr that is written over, where that is a terminal."""

    def __init__(self, label: str, counts: Callable[[], dict[str, int]]) -> None:
        self._label = label
        self._counts = counts
        self._next = 0.0 if sys.stderr.isatty() else float("inf")
        self._shown = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def tick(self) -> None:
        """Show what has changed, a few times a second."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 0.2
            self._clear()
            typer.echo(f"{self._label}: {_counted(self._counts(), {})}", err=True, nl=False)
            self._shown = True

    def line(self, text: str) -> None:
        """Print a line of the result."""
        self._clear()
        typer.echo(text)

    def _clear(self) -> None:
        if self._shown:
            typer.echo("\r\x1b[K", err=True, nl=False)
            self._shown = False
