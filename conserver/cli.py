"""The command line: each command parses, calls, prints. What it calls is imported inside, so that `--help` is quick.

docs/reference/cli.md describes commands, options and exit codes; the group `dlq` is in cli_dlq.py, what authors
need in cli_authors.py, the group `storage` in cli_storage.py.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from conserver.cli_authors import authors
from conserver.cli_dlq import dlq
from conserver.cli_print import (
    EXIT_FAILED,
    EXIT_RUNS_ALREADY,
    EXIT_USAGE,
    Format,
    Output,
    failed,
    number,
    print_fed,
    print_finding,
    print_json,
    print_trial,
    say,
    say_warning,
    settings_of,
)
from conserver.cli_storage import storage
from conserver.errors import ConserverError

#: From this many on, a terminal sees a progress bar.
MANY = 50


class _Group(TyperGroup):
    """Turns what the conserver raises on purpose into one line and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except ConserverError as error:
            raise failed(error) from error


app = typer.Typer(
    cls=_Group, add_completion=False, no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False
)
app.add_typer(dlq, name="dlq")
app.add_typer(storage, name="storage")
app.add_typer(authors)


ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Config file, instead of CONSERVER_CONFIG_FILE.")
]
ChainName = Annotated[str, typer.Argument(metavar="CHAIN", help="A chain of the config file.")]
Workers = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="Worker processes, instead of CONSERVER_WORKERS.")
]
Concurrency = Annotated[
    int | None, typer.Option(min=1, metavar="N", help="vCons at a time in each, instead of CONSERVER_VCON_CONCURRENCY.")
]


def main() -> None:
    """Run the command line."""
    app(prog_name="conserver")


@app.callback(invoke_without_command=True)
def conserver(version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False) -> None:
    """Take vCons from Redis lists through chains of links to storages, and lose none."""
    if version:
        from conserver import __version__

        typer.echo(f"conserver {__version__}")
        raise typer.Exit


@app.command()
def run(
    config: ConfigFile = None,
    workers: Workers = None,
    concurrency: Concurrency = None,
    examples: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Feed the vCons of this folder to the first chain, once.")
    ] = None,
) -> None:
    """Do what the config says, until Ctrl-C.

    With no REDIS_URL it starts a server of its own, with its data in the data folder.
    """
    from conserver import daemon

    settings = settings_of(config, workers=workers, concurrency=concurrency)
    try:
        daemon.run(settings, say, examples=examples)
    except daemon.RunsAlready as error:
        raise failed(error, EXIT_RUNS_ALREADY) from error


@app.command()
def worker(config: ConfigFile = None, workers: Workers = None, concurrency: Concurrency = None) -> None:
    """Work as `run` does, beside others.

    The same without what is for newcomers; any number of them may work on one server.
    """
    from conserver import daemon

    daemon.run(settings_of(config, workers=workers, concurrency=concurrency), say, newcomer=False)


@app.command()
def check(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="Instead of CONSERVER_CONFIG_FILE.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings, too.")] = False,
    output: Output = Format.text,
) -> None:
    """Say all that is wrong with the config.

    Imports the components that it names, and starts nothing.
    """
    from conserver import components

    path = settings_of(file).config_file
    findings = components.check(path)[1]
    count = {level: sum(finding.level == level for finding in findings) for level in ("error", "warning")}
    if output is Format.json:
        found = [asdict(finding) for finding in findings]
        print_json({"file": str(path), "errors": count["error"], "warnings": count["warning"], "findings": found})
    else:
        for finding in findings:
            print_finding(finding)
        typer.echo(f"{path}: {number(count['error'], 'error')}, {number(count['warning'], 'warning')}")
    if count["error"] or (strict and count["warning"]):
        raise typer.Exit(EXIT_FAILED)


@app.command()
def push(
    list_name: Annotated[str, typer.Argument(metavar="LIST", help="The list to push to.")],
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="UUID|FILE|DIR...", help="- reads UUIDs and file names from standard input, one a line."
        ),
    ],
    replace_stored: Annotated[
        bool, typer.Option("--replace", help="Overwrite another version that is stored under the same UUID.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what was refused.")] = False,
) -> None:
    """Push vCons of files, or UUIDs, to a list.

    The vCons of files are stored first; a UUID is pushed as it is. The order is kept.
    """
    from conserver.config import load_config
    from conserver.feed import expand, feed
    from conserver.names import nobody_reads
    from conserver.queue import Queue
    from conserver.server import serving
    from conserver.store import VconStore

    settings = settings_of()
    config = load_config(settings.config_file)[0]
    if config is not None and (warning := nobody_reads(config, list_name)):
        say_warning(warning)
    names, pushed, refused, later = expand(what, sys.stdin), 0, 0, []
    many = len(names) > MANY and sys.stdout.isatty() and not quiet
    with serving(settings) as server:
        queue, store = Queue(server.url, "push"), VconStore(server.url, settings)
        fed = feed(queue, store, list_name, names, max_bytes=settings.max_vcon_bytes, replace=replace_stored)
        if many:
            with typer.progressbar(fed, length=len(names), label=f"to {list_name}") as bar:
                later = list(bar)
        for one in later if many else fed:
            pushed, refused = pushed + (not one.refused), refused + bool(one.refused)
            print_fed(one, quiet=quiet, only_problems=many)
    if not quiet:
        typer.echo(f"{pushed} pushed to {list_name!r}{f', {refused} refused' if refused else ''}")
    if refused:
        raise typer.Exit(EXIT_FAILED)


@app.command()
def status(output: Output = Format.text) -> None:
    """Show what runs, waits, is paused or dead."""
    from conserver import overview
    from conserver.daemon import command
    from conserver.server import serving

    settings = settings_of()
    with serving(settings) as server:
        seen = overview.collect(server, settings)
    if output is Format.json:
        print_json(seen)
    else:
        for line in overview.lines(seen, command()):
            typer.echo(line)


@app.command()
def pause(
    chain: ChainName,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="What others are told.")] = "paused by an operator",
) -> None:
    """Keep a chain from claiming.

    What runs goes on to its end; what comes waits until the chain is resumed.
    """
    from conserver import names
    from conserver.daemon import command
    from conserver.outcomes import now
    from conserver.queue import Queue
    from conserver.server import serving

    settings = settings_of()
    names.check_chain(settings, chain)
    with serving(settings) as server:
        Queue(server.url, "pause").pause(chain, {"reason": reason, "since": now()})
    typer.echo(f"chain {chain!r} is paused; its vCons wait until '{command()} resume {chain}'")


@app.command()
def api(
    config: ConfigFile = None,
    host: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Instead of CONSERVER_API_HOST.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Instead of CONSERVER_API_PORT.")] = None,
) -> None:
    """Serve the HTTP API alone, until Ctrl-C.

    `run` serves it beside the workers; any number of these may stand behind a balancer.
    """
    from dataclasses import replace

    from conserver import daemon

    settings = settings_of(config)
    changes: dict[str, Any] = {"api_host": host, "api_port": port if port is not None else settings.api_port or 0}
    daemon.api(replace(settings, **{name: value for name, value in changes.items() if value is not None}), say)


@app.command()
def token(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Whose it is; the audit log names it.")] = "client",
    scopes: Annotated[
        list[str] | None, typer.Option("--scope", metavar="SCOPE", help="read, write, admin or ingress:LIST; repeat.")
    ] = None,
) -> None:
    """Make a token for the API, and print what is kept of it."""
    from conserver.tokens import is_scope, new_token

    wanted = scopes or ["write"]
    if wrong := [scope for scope in wanted if not is_scope(scope)]:
        raise failed(f"{wrong[0]!r} is no scope: read, write, admin or ingress:LIST", EXIT_USAGE)
    if not name.isprintable() or name.startswith("#") or len(name.split()) != 1 or " " in name:
        raise failed(f"{name!r} is no name of a token: one word that does not begin with #", EXIT_USAGE)
    secret, digest = new_token()
    typer.echo(f"token   {secret}")
    typer.echo("It is shown once. What is kept of it is its digest, in one of these places:")
    typer.echo("  config.yml:")
    # YAML takes the strings of JSON; without quotes a name such as `no` is no name there.
    entry = f"{json.dumps(name)}: {{digest: {json.dumps(digest)}, scopes: {json.dumps(wanted)}}}"
    typer.echo(f"    api:\n      tokens:\n        {entry}")
    if not any(c.isspace() or c == "," for scope in wanted for c in scope):
        typer.echo("  a line in the file of CONSERVER_API_TOKEN_FILE:")
        typer.echo(f"    {name} {','.join(wanted)} {digest}")


@app.command()
def resume(chain: ChainName) -> None:
    """Let a paused chain go on."""
    from conserver import names
    from conserver.queue import Queue
    from conserver.server import serving

    settings = settings_of()
    with serving(settings) as server:
        resumed = Queue(server.url, "resume").resume(chain)
    if not resumed:
        names.check_chain(settings, chain)
    typer.echo(f"chain {chain!r} {'goes on' if resumed else 'was not paused'}")


@app.command("try")
def try_(
    target: Annotated[str, typer.Argument(metavar="MODULE|CHAIN", help="links.tag, or a chain of the config file.")],
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The vCon to run it on; it stays as it is.")],
    options: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="An option; for a chain LINK.KEY=VALUE. Repeat for more."),
    ] = None,
    storages: Annotated[bool, typer.Option("--storages", help="Save to the storages of the chain, too.")] = False,
    config: ConfigFile = None,
) -> None:
    """Run a link or a chain on one file.

    On a throw-away server: nothing to start, and nothing is kept. Shows what each link changed.
    """
    from conserver import telemetry, tryout

    settings = settings_of(config)
    telemetry.configure(settings, sys.stderr)
    plan = tryout.plan(target, settings, options or (), with_storages=storages)
    for warning in plan.warnings:
        say_warning(warning)
    try:
        trial = tryout.try_out(plan, file, settings)
    except OSError as error:
        raise failed(f"{file} cannot be read: {error.strerror}") from error
    print_trial(trial)
    if trial.ending not in ("delivered", "stopped") or trial.storage_errors:
        raise typer.Exit(EXIT_FAILED)
