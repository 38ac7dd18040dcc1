"""What the tests of links that ask a model have in common."""

from __future__ import annotations

from typing import Any

from conserver import Vcon, telemetry
from conserver.ambient import Work, working
from conserver.components import load_link
from conserver.config import LinkConfig
from conserver.store import VconStore
from conserver.testing import throwaway_store, two_party_call

KEY = "sk-very-secret-key"
SIGNED = {
    "payload": "eyJ1dWlkIjogIjAxOGYzYzVlLTAwMDAtODAwMC04MDAwLTAwMDAwMDAwMDAwMSJ9",
    "signatures": [{"signature": "x", "header": {"uuid": "018f3c5e-0000-8000-8000-000000000001"}}],
}


def call_of(*texts: str) -> Vcon:
    """A vCon with one dialog a text, in a transcript that every default `source` finds but `body`."""
    vcon = two_party_call()
    del vcon.dialog[:], vcon.analysis[:]
    for index, text in enumerate(texts):
        vcon.add_dialog({"type": "recording", "start": vcon.created_at, "parties": [0, 1]})
        body = {"transcript": text, "paragraphs": {"transcript": text}}
        vcon.add_analysis(type="transcript", dialog=index, vendor="example", body=body)
    return vcon


def analyses(vcon: Vcon, type: str) -> list[dict[str, Any]]:
    return [entry for entry in vcon.analysis if entry["type"] == type]


def counters() -> dict[str, float]:
    """The counters of the links, without those of the models."""
    counted = telemetry.metrics.snapshot()["counters"]
    return {name: value for (name, _), value in counted.items() if ".link." in name}


class Run:
    """A link on a vCon in a store, for what a failed run leaves behind."""

    def __init__(self, module: str, given: dict[str, Any], vcon: Vcon) -> None:
        self.store: VconStore = throwaway_store()
        self.store.create(vcon)
        self.uuid = str(vcon.uuid)
        self.link = load_link(LinkConfig(name="link", module=module, options=given))

    def __call__(self) -> Vcon:
        with working(Work(self.store.writer())):
            self.link.run(self.uuid, "link", self.link.options)
        return self.store.get(self.uuid)
