"""A link and a storage for faults, as sources: they write to the log of effects what `tests.faults.checker` needs."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from tests.faults.checker import digest_of
from tests.host import EFFECT, Host

#: Adds one analysis, named like the link, unless it is there. Before that it takes `sleep` seconds, or up to as much
#: with `spread`; does what a poisonous subject says; and fails once in each folder with a vCon whose subject is
#: `flaky`. What it raises quotes its option `api_key`, which has to be kept out of logs.
EDIT = (
    EFFECT
    + """
import ctypes, random
from conserver import vcons

default_options = {"sleep": 0.0, "spread": False, "api_key": ""}

def run(vcon_uuid, link_name, opts):
    effect("began", link_name, vcon_uuid, adds=link_name)
    time.sleep(opts["sleep"] * (random.random() if opts["spread"] else 1))
    subject = vcons.get(vcon_uuid).subject
    if subject == "exit":
        os._exit(1)
    if subject == "segfault":
        ctypes.string_at(0)
    if subject == "raise":
        effect("failed", link_name, vcon_uuid)
        raise ValueError(f"no good with {opts['api_key']}")
    if subject == "flaky" and _first(f"{link_name}-{vcon_uuid}"):
        effect("failed", link_name, vcon_uuid)
        raise ConnectionError(f"not now with {opts['api_key']}")
    with vcons.edit(vcon_uuid) as vcon:
        if not vcon.find_analysis_by_type(link_name):
            vcon.add_analysis(type=link_name, dialog=[], vendor="test", body=link_name)
    effect("ended", link_name, vcon_uuid, adds=link_name)
    if subject == "stop":
        effect("stopped", link_name, vcon_uuid)
        return None
    return vcon_uuid

def _first(name):
    os.makedirs("tried", exist_ok=True)
    try:
        os.close(os.open(f"tried/{name}", os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
"""
)

#: Keeps each vCon in the folder `path`, in a file named by its UUID that is never half there; `name` is its own name.
KEEP = (
    EFFECT
    + inspect.getsource(digest_of)
    + """
import threading
from conserver import vcons

def save(vcon_uuid, opts):
    effect("saving", opts["name"], vcon_uuid)
    text = vcons.get(vcon_uuid).to_bytes()
    os.makedirs(opts["path"], exist_ok=True)
    draft = os.path.join(opts["path"], f".{vcon_uuid}.{os.getpid()}.{threading.get_ident()}")
    with open(draft, "wb") as file:
        file.write(text)
    os.replace(draft, os.path.join(opts["path"], vcon_uuid))
    effect("saved", opts["name"], vcon_uuid, digest=digest_of(text))

def get(vcon_uuid, opts):
    try:
        with open(os.path.join(opts["path"], vcon_uuid)) as file:
            return json.load(file)
    except FileNotFoundError:
        return None
"""
)


def editor(
    folder: Path, url: str, *, sleep: float = 0.02, storages: dict[str, Any] | None = None, **env: object
) -> Host:
    """A host that takes from `in`, adds an analysis in *sleep* seconds, saves to *storages*, delivers to `out`."""
    storages = storages or {}
    config: dict[str, Any] = {
        "links": {"edit": {"module": "links.edit", "options": {"sleep": sleep}}},
        "storages": storages,
        "chains": {
            "main": {"links": ["edit"], "storages": [*storages], "ingress_lists": ["in"], "egress_lists": ["out"]}
        },
    }
    return Host(folder, url, config, links={"edit": EDIT}, **env)
