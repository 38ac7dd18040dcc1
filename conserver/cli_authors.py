"""The commands for authors of links and storages, and for who installs what they need: `new`, `list`, `install`."""

from __future__ import annotations

import os
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from conserver.cli_print import EXIT_FAILED, EXIT_USAGE, failed, number, print_finding, print_json, say, settings_of

if TYPE_CHECKING:
    from conserver.catalogue import Entry

authors = typer.Typer(rich_markup_mode=None)


class Kind(StrEnum):
    """What can be written."""

    link = "link"
    storage = "storage"


class What(StrEnum):
    """What can be listed."""

    links = "links"
    storages = "storages"
    rules = "rules"


class ListFormat(StrEnum):
    """How a list is printed."""

    text = "text"
    json = "json"
    json_schema = "json-schema"


ConfigFile = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="Config file, instead of CONSERVER_CONFIG_FILE.")
]


@authors.command()
def new(
    kind: Annotated[Kind, typer.Argument(metavar="link|storage", help="What to write.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, as of a Python module.")],
    folder: Annotated[
        Path | None, typer.Option("--folder", metavar="DIR", help="Where, instead of the folder of the config file.")
    ] = None,
    package: Annotated[
        bool, typer.Option("--package", help="Write a project of its own, which pip can install.")
    ] = False,
) -> None:
    """Write a link or a storage that works, with its test and its page."""
    from conserver import scaffold

    place = folder or settings_of().config_file.absolute().parent
    draft = scaffold.package(kind.value, name) if package else scaffold.module(kind.value, name)
    for file in scaffold.write(draft, place):
        typer.echo(f"wrote {file}")
    typer.echo(f"\nIn config.yml:\n\n{draft.config.rstrip()}")
    typer.echo(f"\nNext{f', in {place}' if folder else ''}:\n")
    for line in draft.next_steps:
        typer.echo(f"  {line}")


@authors.command("list")
def list_(
    what: Annotated[What, typer.Argument(metavar="links|storages|rules", help="What to list.")],
    output: Annotated[ListFormat, typer.Option("--format", help="How to print it.")] = ListFormat.text,
    config: ConfigFile = None,
) -> None:
    """List what a config can use, or the rules.

    Links and storages are ours, those of installed packages, and those in the folder of the config file.
    """
    if what is What.rules:
        _list_rules(output)
        return
    from conserver import catalogue

    folder = settings_of(config).config_file.absolute().parent
    if output is ListFormat.json_schema:
        from conserver.configschema import config_schema

        print_json(config_schema(catalogue.components("link", folder), catalogue.components("storage", folder)))
        return
    entries = catalogue.components("link" if what is What.links else "storage", folder)
    if output is ListFormat.json:
        print_json([asdict(entry) for entry in entries])
        return
    for entry in entries:
        _print_entry(entry)


def _print_entry(entry: Entry) -> None:
    typer.echo(f"{entry.module}: {entry.summary}" if entry.summary else entry.module)
    if entry.source != "conserver":
        typer.echo(f"    from: {entry.source}")
    names = [f"{option.name}{' (required)' * option.required}" for option in entry.options if "." not in option.name]
    if names:
        typer.echo(f"    options: {', '.join(names)}")
    if entry.missing:
        typer.echo(f"    missing: {', '.join(entry.missing)} (pip install '{entry.needs}')")
    if entry.error:
        typer.echo(f"    error: {entry.error}")


def _list_rules(output: ListFormat) -> None:
    from conserver.catalogue import rules

    if output is ListFormat.json_schema:
        raise failed("rules have no JSON schema: list links or storages, or take --format json", EXIT_USAGE)
    found = rules()
    if output is ListFormat.json:
        print_json([asdict(rule) for rule in found])
        return
    for rule in found:
        typer.echo(f"{rule.of:6} {rule.level:8} {rule.id}: {rule.text}")


@authors.command()
def install(
    config: ConfigFile = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command, and run nothing.")] = False,
) -> None:
    """Install the packages that the config names and that are not there.

    The `pip_name`s of its links, storages and imports, and what our own components need. Nothing else ever installs.
    """
    from conserver import installing
    from conserver.config import draft_config

    path = settings_of(config).config_file
    draft, findings = draft_config(path, os.environ)
    unreadable = [finding for finding in findings.sorted() if finding.rule == "syntax"]
    for finding in unreadable:
        print_finding(finding)
    if unreadable:
        raise typer.Exit(EXIT_FAILED)
    packages = installing.wanted(draft)
    if not packages:
        say(f"{path}: all that its components need is installed")
        return
    for one in packages:
        say(f"missing: {one.shown} ({one.why})")
    typer.echo(installing.shown(packages))
    if not dry_run:
        installing.install(packages)
        say(f"installed {number(len(packages), 'package')}; a conserver that runs must be started anew")
