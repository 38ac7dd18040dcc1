"""The group `conserver dlq`: dead letters of lists and of storages."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from conserver.cli_print import (
    EXIT_USAGE,
    Format,
    Output,
    entry_shown,
    entry_text,
    failed,
    number,
    print_json,
    settings_of,
    why_text,
)

dlq = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at dead letters, queue them again, drop them."
)

List = Annotated[
    str, typer.Argument(metavar="LIST", help="An ingress list, or storage:NAME for what a storage could not save.")
]
StorageName = Annotated[str, typer.Argument(metavar="STORAGE", help="A storage of the config file.")]
IngressList = Annotated[str, typer.Argument(metavar="LIST", help="An ingress list.")]
Most = Annotated[int | None, typer.Option(min=1, metavar="N", help="No more than this many, oldest first.")]


@dlq.command("list")
def dlq_list(
    name: List,
    start: Annotated[int, typer.Option(min=0, metavar="N", help="How many of the oldest to pass over.")] = 0,
    count: Annotated[int, typer.Option(min=1, metavar="N", help="How many to list.")] = 100,
    output: Output = Format.text,
) -> None:
    """List dead letters, oldest first, each with its reason."""
    from conserver import names
    from conserver.queue import Queue
    from conserver.server import serving

    settings, name = settings_of(), names.dead_letters_of(name)
    with serving(settings) as server:
        queue = Queue(server.url, "dlq")
        rows, total = queue.dead(name, start, count), queue.dead_count(name)
        nothing = names.no_dead_letters(queue, settings, name) if not total else ""
    if output is Format.json:
        print_json({"list": name, "total": total, "dead": [{"entry": entry_text(entry), **why} for entry, why in rows]})
        return
    for entry, why in rows:
        typer.echo(f"{entry_shown(entry)}  {why_text(why)}")
    typer.echo(nothing or f"{len(rows)} of {number(total, 'dead letter')} of {name!r}")


@dlq.command("show")
def dlq_show(
    name: List,
    uuid: Annotated[str, typer.Argument(metavar="UUID", help="The entry, as 'dlq list' shows it.")],
    output: Output = Format.text,
) -> None:
    """Show all that is known about one dead letter."""
    from conserver import names
    from conserver.queue import Queue
    from conserver.server import serving

    settings, name = settings_of(), names.dead_letters_of(name)
    with serving(settings) as server:
        letters = names.dead_letters(Queue(server.url, "dlq"), name)
        why = next((why for entry, why in letters if entry_text(entry) == uuid), None)
    if why is None:
        raise failed(f"{name!r} has no dead letter {uuid}")
    if output is Format.json:
        print_json({"entry": uuid, **why})
        return
    for key, value in {"entry": uuid, **(why or {"error": "no reason is known"})}.items():
        typer.echo(f"{key:8} {value}")


@dlq.command("retry")
def dlq_retry(
    name: IngressList,
    most: Most = None,
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Run links again that are noted as done, too.")
    ] = False,
) -> None:
    """Queue dead letters of a list again.

    They go on from the link that failed, as far as the chain still begins with the links that were done.
    """
    from conserver import names
    from conserver.queue import Queue
    from conserver.server import serving

    settings, name = settings_of(), names.dead_letters_of(name)
    if name.startswith("storage:"):
        raise failed(f"what a storage could not save is replayed: conserver dlq replay {name[8:]}", EXIT_USAGE)
    with serving(settings) as server:
        queue = Queue(server.url, "dlq")
        moved = queue.retry(name, most if most is not None else queue.dead_count(name), from_start=from_start)
        nothing = names.no_dead_letters(queue, settings, name) if not moved else ""
    typer.echo(nothing or f"{number(moved, 'dead letter')} of {name!r} queued again")


@dlq.command("drop")
def dlq_drop(
    name: List,
    uuids: Annotated[list[str] | None, typer.Argument(metavar="UUID", help="Those to drop.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All dead letters of the list.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Forget dead letters; their vCons stay."""
    from conserver import names
    from conserver.queue import Queue
    from conserver.server import serving

    if everything == bool(uuids):
        raise failed("name the UUIDs to drop, or write --all", EXIT_USAGE)
    settings, name = settings_of(), names.dead_letters_of(name)
    with serving(settings) as server:
        queue = Queue(server.url, "dlq")
        missing: list[str] = []
        if everything:
            count = queue.dead_count(name)
            if count and not yes:
                typer.confirm(f"Forget {number(count, 'dead letter')} of {name!r}?", abort=True)
            dropped = queue.drop_oldest(name, count)
        else:
            missing = [uuid for uuid in uuids or () if not queue.drop(name, uuid)]
            dropped = len(uuids or ()) - len(missing)
    typer.echo(f"{number(dropped, 'dead letter')} of {name!r} dropped")
    if missing:
        raise failed(f"{name!r} has no dead letter {', '.join(missing)}")


@dlq.command("replay")
def dlq_replay(storage: StorageName, most: Most = None) -> None:
    """Save what a storage could not save.

    The save alone, of each vCon as it is now. Stops at the storage's first failure.
    """
    from conserver import names
    from conserver.queue import Queue
    from conserver.replay import Replay
    from conserver.server import serving
    from conserver.store import VconStore
    from conserver.workload import read_through

    settings = settings_of()
    with serving(settings) as server:
        # Where components look that have no server of their own, as in a worker.
        os.environ["REDIS_URL"] = server.url
        target, storages, broken = names.load_storages(
            settings, names.dead_letters_of(storage).removeprefix("storage:")
        )
        store = VconStore(server.url, settings, lambda uuid: read_through(storages, uuid))
        done = Replay(Queue(server.url, "dlq"), store, target, settings, storages, broken).run(most=most)
    typer.echo(f"{number(done.saved, 'vCon')} saved to {target.name!r}, {number(done.left, 'dead letter')} left")
    for uuid in done.missing:
        typer.echo(f"{uuid} is nowhere any more: conserver dlq drop storage:{target.name} {uuid}")
    if done.failed:
        raise failed(f"storage {target.name!r}: {done.failed}")
