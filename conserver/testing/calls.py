"""What the tests of links and of storages share: a vCon, a store, and what differs between two of either."""

from __future__ import annotations

import atexit
from contextlib import ExitStack
from functools import cache

from conserver import connection
from conserver.embedded import temporary_server
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.vcon import Vcon


def two_party_call(uuid: str | None = None) -> Vcon:
    """Return a vCon of a short phone call between two people, with its transcript and nothing else."""
    vcon = Vcon.build_new()
    if uuid:
        vcon.document["uuid"] = uuid
    vcon.document["subject"] = "Broken kettle"
    vcon.add_party({"tel": "+12025550143", "name": "Ada Moss", "type": "person", "role": "agent"})
    vcon.add_party({"tel": "+12025550179", "name": "Ben Reyes", "type": "person", "role": "customer"})
    said = "Good morning, how can I help? -- My kettle does not boil any more. -- I will send you a new one."
    vcon.add_dialog(
        {
            "type": "recording",
            "start": vcon.created_at,
            "duration": 42.5,
            "parties": [0, 1],
            "originator": 1,
            "mediatype": "audio/x-wav",
            "url": "https://recordings.example/kettle.wav",
        }
    )
    vcon.add_analysis(
        type="transcript",
        dialog=0,
        vendor="example",
        body={"transcript": said, "paragraphs": {"transcript": said}},
    )
    return vcon


def uuid_of(vcon: Vcon) -> str:
    if vcon.uuid is None:
        raise ValueError("the vCon to run on has no uuid")
    return vcon.uuid


@cache
def _server_url() -> str:
    stack = ExitStack()
    atexit.register(stack.close)
    return stack.enter_context(temporary_server())


def throwaway_store() -> VconStore:
    """Return an empty store, on a server that ends with this process."""
    url = _server_url()
    with connection.once(url, "testing") as client:
        client.flushall()
    return VconStore(url, Settings())
