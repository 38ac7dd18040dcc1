"""Who may import whom: the plan of the house, read from the imports themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: What a link or a storage may import of us; all else belongs to the engine.
FOR_AUTHORS = {
    "conserver",
    "errors",
    "filters",
    "media",
    "models",
    "outbound",
    "pools",
    "scitt",
    "telemetry",
    "usage",
    "webhooks",
}

#: A module of the engine, and those that may import it. One that is not here may be imported by any other: errors,
#: settings, telemetry and vcon need nothing of ours and say so below.
COMMANDS = {
    "api",
    "catalogue",
    "cli",
    "cli_authors",
    "cli_dlq",
    "cli_print",
    "cli_storage",
    "copying",
    "daemon",
    "erasure",
    "feed",
    "hosts",
    "followers",
    "installing",
    "names",
    "overview",
    "places",
    "records",
    "replay",
    "replayer",
    "run_now",
    "server",
    "trial",
    "tryout",
    "testing",
    "verifying",
}
IMPORTED_BY = {
    "api": {"api", "daemon", "services"},
    "catalogue": {"configschema", "reference"} | COMMANDS,
    "cli": {"__main__"},
    "cose": {"receipts", "scitt"},
    "receipts": {"scitt"},
    "worker": {"process", "supervisor"},
    "process": {"services", "supervisor"},
    "recovery": {"supervisor"},
    "vitals": {"supervisor"},
    "workload": {"worker", "supervisor", "vitals"} | COMMANDS,
    "writes": {"worker"},
    "storage_calls": {"chain", "erasure", "replay", "workload", "places"},
    "supervisor": {"vitals"} | COMMANDS,
    "chain": {"outcomes", "pauses", "run", "worker", "workload"} | COMMANDS,
    "components": {"chain", "compat", "configfile", "run", "reload", "storage_calls", "worker", "workload"} | COMMANDS,
    # Claims and settlements are values; only who has a Session or a Queue sees a list, and a chain never does.
    "run": {"chain", "crew", "outcomes", "pauses", "worker"} | COMMANDS,
    "crew": {"worker"},
    # What old links do goes by way of what links have here; the engine knows how to import them, and no more.
    "compat": {"compat", "components", "imports", "workload", "tryout"},
    "claims": {
        "recovery",
        "compat",
        "followers",
        "ambient",
        "chain",
        "run",
        "outcomes",
        "queue",
        "session",
        "supervisor",
        "worker",
        "egress",
    }
    | COMMANDS,
    "session": {"process", "worker"} | COMMANDS,
    "queue": {"recovery", "ambient", "outcomes", "pauses", "session", "worker", "writes", "supervisor"} | COMMANDS,
    "store": {"followers", "ambient", "writer", "chain", "run", "outcomes", "worker", "supervisor"} | COMMANDS,
    "ambient": {"__init__", "chain", "compat", "run"} | COMMANDS,
    "egress": {"supervisor"} | COMMANDS,
    "kept_lock": {"followers", "replay", "copying"},
    "merge": {"writer"},
    "terms": {"api", "followers", "index", "reindex", "store", "writer"},
    "index": {
        "followers",
        "store",
        "writer",
        "reindex",
    }
    | COMMANDS,
    "stored": {
        "api",
        "compat",
        "followers",
        "store",
        "writer",
        "places",
        "verifying",
    },
    "writer": {"store", "ambient", "places"},
    "talk": {
        "followers",
        "store",
        "index",
    }
    | COMMANDS,
    "scripts": {
        *("api", "followers", "egress", "kept_lock", "queue", "records", "session", "store", "stored", "talk", "index"),
    },
    "crashpoints": {"api", "chain", "connection", "scripts", "settings", "supervisor", "worker"},
    "addresses": {"connection", "server"},
    # Outcomes and worker hand on commands that the store has made.
    "connection": {
        "compat",
        "followers",
        "index",
        "queue",
        "session",
        "store",
        "stored",
        "talk",
        "writer",
        "lease",
        "watch",
        "outcomes",
        "worker",
        "egress",
        "reindex",
    }
    | COMMANDS,
    "intake": {"pauses", "worker"},
    "pauses": {"worker"},
    "outcomes": {"recovery", "pauses", "worker", "supervisor"} | COMMANDS,
    "watch": {"worker"},
    "board": {"recovery", "api", "process", "worker", "supervisor"},
    "lease": {"recovery", "supervisor", "hosts", "records"},
    "reload": {"supervisor"},
    "health": {"supervisor"},
    "embedded": {"api", "run_now", "server", "supervisor", "tryout", "testing"},
}

#: Modules that need nothing of ours but these.
NEEDS_ONLY = {
    "errors": set(),
    "crashpoints": {"errors"},
    "settings": {"crashpoints", "errors"},
    "telemetry": {"settings"},
    "board": set(),
    "health": set(),
    "addresses": set(),
    "connection": {"addresses", "crashpoints", "errors"},
    "scripts": {"crashpoints"},
    "claims": {"telemetry"},
    "session": {"claims", "connection", "errors", "queue", "scripts"},
    "queue": {"claims", "connection", "errors", "scripts"},
    "egress": {"claims", "connection", "errors", "scripts"},
    "vcon": {"errors", "vcon_forms", "vcon_json", "vcon_migration", "vcon_rules"},
}


def modules(folder: str) -> dict[str, Path]:
    """Each module below *folder* by its dotted name, a package by its own."""
    found = {}
    for path in sorted((ROOT / folder).rglob("*.py")):
        parts = path.relative_to(ROOT / folder).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


ENGINE = modules("conserver")
AUTHORS = {f"{kind}.{name}": path for kind in ("links", "storages") for name, path in modules(kind).items()}


def imports(path: Path) -> Iterator[str]:
    """The modules of ours that *path* imports, wherever in it: `conserver` itself, or what lies in it."""
    for node in ast.walk(ast.parse(path.read_text(), path.name)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            base = node.module or ""
            names = [f"{base}.{alias.name}" if base == "conserver" else base for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] in ("links", "storages"):
                yield parts[0]
            if parts[0] == "conserver":
                # `from conserver import Vcon` is a name for authors, `from conserver import chain` a module.
                yield parts[1] if len(parts) > 1 and parts[1] in ENGINE else "conserver"


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    """In each spelling, at the top and inside of functions; a rule that sees nothing forbids nothing."""
    path = tmp_path / "x.py"
    path.write_text(
        "import os, conserver.queue\nfrom conserver import Vcon, chain\nfrom conserver.store import VconStore\n"
        "def f():\n    import conserver\n    from links import tag\n"
    )

    assert sorted(imports(path)) == ["chain", "conserver", "conserver", "links", "queue", "store"]


def test_the_table_speaks_of_modules_that_exist() -> None:
    """A module that was renamed is not forgotten here."""
    spoken_of = set(IMPORTED_BY) | set(NEEDS_ONLY) | set().union(*IMPORTED_BY.values(), *NEEDS_ONLY.values())

    assert spoken_of - set(ENGINE) == set()
    assert len(AUTHORS) > 5


@pytest.mark.parametrize("name", sorted(ENGINE))
def test_the_engine_keeps_to_its_plan(name: str) -> None:
    """Each module imports only what lies below it, and never a link or a storage."""
    wanted = set(imports(ENGINE[name]))
    # Of a package all modules may know the same.
    name = name.partition(".")[0]

    forbidden = {other for other in wanted if other in IMPORTED_BY and name not in IMPORTED_BY[other]}
    assert forbidden == set(), f"{name} may not import {sorted(forbidden)}: see IMPORTED_BY"
    assert wanted.isdisjoint({"links", "storages"})
    if name in NEEDS_ONLY:
        assert wanted <= NEEDS_ONLY[name] | {"conserver"}, f"{name} needs only {sorted(NEEDS_ONLY[name])}"


@pytest.mark.parametrize("name", sorted(AUTHORS))
def test_links_and_storages_know_only_what_is_meant_for_authors(name: str) -> None:
    """So the engine can change without them, and a user's own link can do all that ours do."""
    exceptions = {
        "storages.redis_storage": {"connection"},
    }

    assert set(imports(AUTHORS[name])) - FOR_AUTHORS == exceptions.get(name, set())
