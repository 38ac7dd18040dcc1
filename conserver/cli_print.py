"""What the commands have in common: settings, colours, exit codes, and how results are printed."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from conserver.errors import ServerError, SettingsError

if TYPE_CHECKING:
    from conserver.feed import Fed
    from conserver.findings import Finding
    from conserver.settings import Settings
    from conserver.trial import Trial

#: It did not work, or not all of it; also a config with errors.
EXIT_FAILED = 1
#: The command line or an environment variable makes no sense.
EXIT_USAGE = 2
#: The Redis-compatible server cannot be reached or used, or the data folder not written.
EXIT_SERVER = 3
#: A conserver runs on this data folder already.
EXIT_RUNS_ALREADY = 4


class Format(StrEnum):
    """How a command prints its result."""

    text = "text"
    json = "json"


Output = Annotated[Format, typer.Option("--format", help="How to print it.")]


def failed(error: Exception | str, code: int | None = None) -> typer.Exit:
    """Print what went wrong, on one line, and return the exit that says so."""
    say(f"{paint('error', typer.colors.RED, err=True)}: {error}")
    if code is None:
        codes = ((SettingsError, EXIT_USAGE), (ServerError, EXIT_SERVER))
        code = next((code for kind, code in codes if isinstance(error, kind)), EXIT_FAILED)
    return typer.Exit(code)


def settings_of(config: Path | None = None, **given: int | None) -> Settings:
    """Return what the environment says, with what the command line says instead."""
    from conserver.settings import Settings

    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if config is not None:
        changes["config_file"] = config
    return replace(Settings.from_env(), **changes)


def say(text: str) -> None:
    """Tell a person something that is not the result, on stderr."""
    typer.echo(text, err=True)


def say_warning(text: str) -> None:
    """Tell a person what is probably not meant, on stderr."""
    say(f"{paint('warning', typer.colors.YELLOW, err=True)}: {text}")


def paint(text: str, color: str, *, err: bool = False) -> str:
    """Return *text* in a colour, on a terminal that wants colours."""
    stream = sys.stderr if err else sys.stdout
    return typer.style(text, fg=color) if stream.isatty() and not os.environ.get("NO_COLOR") else text


def number(count: int, what: str) -> str:
    """Return as in "1 error" and "2 errors"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def print_json(value: Any) -> None:
    """Print plain values as indented JSON."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_finding(finding: Finding) -> None:
    """Print one finding of the config, its level in colour."""
    color = typer.colors.RED if finding.level == "error" else typer.colors.YELLOW
    place, level, rest = str(finding).partition(f" {finding.level}[")
    typer.echo(f"{place} {paint(finding.level, color)}{level.removeprefix(f' {finding.level}')}{rest}")


def print_fed(fed: Fed, *, quiet: bool, only_problems: bool) -> None:
    """Print what became of one thing that was to be pushed."""
    if fed.refused:
        say(f"{fed.name}: {paint('refused', typer.colors.RED, err=True)}: {fed.refused}")
        return
    if quiet:
        return
    if fed.stored == "exists":
        typer.echo(f"{fed.name}: pushed {fed.uuid}; the version that was stored is kept (--replace overwrites it)")
    elif not only_problems:
        typer.echo(f"{fed.name}: {f'{fed.stored} {fed.uuid} and pushed' if fed.stored else 'pushed'}")
    for finding in fed.findings:
        color = typer.colors.RED if finding.level == "error" else typer.colors.YELLOW
        typer.echo(f"  {paint(finding.rule, color)} {finding.pointer or '/'}: {finding.message}")


def entry_text(entry: bytes) -> str:
    """Return a dead letter's entry as text."""
    # What is no UUID may be anything, of any length.
    return entry.decode("utf-8", "backslashreplace")


def entry_shown(entry: bytes) -> str:
    """Return a dead letter's entry as it stands in a list: one line, not too long, and to be seen if it is empty."""
    from conserver.telemetry import shorten

    text = shorten(entry_text(entry), 80)
    return text if text.strip() else f"(an entry of {number(len(entry), 'byte')})"


def why_text(why: dict[str, Any]) -> str:
    """Return the reason of a dead letter on one line."""
    if not why:
        return "no reason is known"
    # The link stands in the error already.
    where = f", chain {why['chain']!r}" if why.get("chain") else ""
    return f"{why.get('at', '')}{where}: {why.get('error', '')}".removeprefix(", ")


def print_trial(trial: Trial) -> None:
    """Print what each link did, and how it ended."""
    if trial.migrated:
        typer.echo(f"migrated first: {'; '.join(trial.migrated)}")
    for step in trial.steps:
        what = step.error or ("no change" if not step.changes else _counted(step.changes))
        typer.echo(f"link {step.link!r}: {what} ({step.secs * 1000:.0f} ms)")
        _print_lines(step.changes)
    if trial.traceback:
        say(trial.traceback)
    for name in trial.skipped:
        typer.echo(f"link {name!r}: not run, since its 'when' does not match")
    for storage, error in trial.storage_errors.items():
        typer.echo(f"storage {storage!r}: {error}")
    for list_name, uuid in trial.pushes:
        typer.echo(f"would push {uuid} to {list_name!r}")
    good = trial.ending in ("delivered", "stopped")
    ending = paint(trial.ending, typer.colors.GREEN if good else typer.colors.RED)
    typer.echo(f"outcome: {ending}{f': {trial.error}' if trial.error else ''}")


def _counted(changes: Iterable[str]) -> str:
    lines = [line for line in changes if not line.startswith(("+++", "---"))]
    added, removed = (sum(line[:1] == sign for line in lines) for sign in "+-")
    return f"{number(added, 'line')} added, {removed:,} removed"


def _print_lines(changes: Iterable[str]) -> None:
    colors = {"+": typer.colors.GREEN, "-": typer.colors.RED, "@": typer.colors.CYAN}
    for line in changes:
        typer.echo(f"  {paint(line, colors[line[0]]) if line[0] in colors else line}")
