"""A chain of paid services under kill -9: every vCon is complete, nothing is there twice, and little is paid twice."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import signal
import sys
import wave
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.fakes import model_server, speech_server
from tests.fakes.http_server import Exchange, HttpServer, Request
from tests.fakes.model_server import ModelServer
from tests.fakes.speech_server import SpeechServer, heard
from tests.host import Host, accounted, entries, store, vcon
from tests.waiting import wait_until

SAMPLES = Path(__file__).resolve().parents[2].parent / "shared" / "samples"
QUESTION = "Does anybody say anything?"
LISTS = {"calls": "body.text", "samples": "body.transcript"}
"""Ingress lists, and where the transcripts of their vCons have the text."""
pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]


@dataclass
class Services:
    """The services that the chain calls, each a server of its own, and slow enough to be killed in the middle."""

    speech: SpeechServer
    models: ModelServer
    receiver: HttpServer
    sounds: dict[bytes, tuple[str, int]] = field(default_factory=dict)
    """Whose audio it is: the vCon and the dialog."""
    texts: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Whose transcript it is."""

    def progress(self) -> int:
        """How many requests there were."""
        return len(self.speech.requests) + len(self.models.requests) + len(self.receiver.requests)

    def paid(self) -> Counter[tuple[str, str, int]]:
        """How often which link paid for which dialog: (vCon, link, dialog)."""
        found: Counter[tuple[str, str, int]] = Counter()
        for request in filter(whole, self.speech.calls):
            uuid, dialog = self.sounds[speech_server.call(request).audio]
            found[uuid, "transcribe", dialog] += 1
        for request in filter(whole, self.models.calls):
            asked = json.loads(request.body)["messages"][-1]["content"]
            ((uuid, dialog),) = (whose for text, whose in self.texts.items() if asked.endswith(f"\n\n{text}"))
            found[uuid, "check" if QUESTION in asked else "analyze", dialog] += 1
        return found

    def deliveries(self) -> dict[str, list[tuple[str, bytes]]]:
        """What the receiver got of which vCon: the webhook-id and the body."""
        found: dict[str, list[tuple[str, bytes]]] = defaultdict(list)
        for request in filter(whole, self.receiver.requests):
            found[json.loads(request.body)["uuid"]].append((request.headers["webhook-id"], request.body))
        return found


def whole(request: Request) -> bool:
    """Whether it was sent to its end; nobody pays for one whose sender was killed before that."""
    return len(request.body) == int(request.headers.get("content-length", 0))


@pytest.fixture
def services(rng: random.Random) -> Iterator[Services]:
    """All of them, with answers that take up to a tenth of a second."""
    late = [rng.uniform(0, 0.1) for _ in range(5000)]

    def receive(exchange: Exchange) -> None:
        if exchange.pause(late[len(exchange.request.body) % 5000]):
            exchange.answer(204)

    with SpeechServer() as speech, ModelServer() as models, HttpServer(receive) as receiver:
        speech.order(*map(speech_server.slow, late))
        models.order(*map(model_server.slow, reversed(late)))
        yield Services(speech, models, receiver)


@pytest.fixture
def rng() -> random.Random:
    """Chance with a seed, which is shown when the test fails; SEED= in the environment gives it again."""
    seed = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
    sys.stdout.write(f"SEED={seed}\n")
    return random.Random(seed)


def config(services: Services) -> dict[str, Any]:
    """One chain for each list; they differ in where the text is."""
    model = {"base_url": services.models.base_url}
    links: dict[str, Any] = {
        "transcribe": {
            "module": "links.transcribe",
            "options": {"vendor": "openai", "vendor_options": {"base_url": services.speech.base_url}},
        },
        "webhook": {"module": "links.webhook", "options": {"webhook-urls": [services.receiver.url]}},
    }
    chains = {}
    for name, place in LISTS.items():
        options = {**model, "source": {"text_location": place}}
        check = {"tag_name": "spoken", "tag_value": "yes", "evaluation_question": QUESTION}
        links[f"analyze_{name}"] = {"module": "links.analyze", "options": {**options, "analysis_type": "gist"}}
        links[f"check_{name}"] = {"module": "links.check_and_tag", "options": {**options, **check}}
        steps = ["transcribe", f"analyze_{name}", f"check_{name}", "webhook"]
        chains[name] = {"links": steps, "ingress_lists": [name], "egress_lists": ["out"]}
    return {"outbound": {"allow_private": ["127.0.0.1"]}, "links": links, "chains": chains}


def sound(services: Services, rng: random.Random) -> bytes:
    """Four seconds of noise as a small WAV, whose words are in no other."""
    file = io.BytesIO()
    with wave.open(file, "wb") as recording:
        recording.setnchannels(1)
        recording.setsampwidth(1)
        recording.setframerate(100)
        recording.writeframes(rng.randbytes(400))
    audio = file.getvalue()
    return audio if heard(audio) not in services.texts else sound(services, rng)


def recorded(services: Services, rng: random.Random) -> dict[str, Any]:
    """A call of one to five recordings, inline or at a URL, and texts between them that nobody has to transcribe."""
    document = vcon("a call")
    always: dict[str, Any] = {"start": document["created_at"], "parties": [0]}
    for dialog in range(0, 2 * rng.randint(1, 5), 2):
        audio = sound(services, rng)
        told = {**always, "type": "recording", "mediatype": "audio/x-wav"}
        if rng.random() < 0.5:
            told |= {"encoding": "base64url", "body": base64.urlsafe_b64encode(audio).decode().rstrip("=")}
        else:
            told |= at_url(services, audio, f"/{document['uuid']}/{dialog}.wav")
        if dialog:
            document["dialog"].append({**always, "type": "text", "body": "hold the line", "encoding": "none"})
        document["dialog"].append(told)
        remember(services, document["uuid"], dialog, audio)
    return document


def at_url(services: Services, audio: bytes, path: str) -> dict[str, Any]:
    """What a dialog says of audio that the fake service keeps."""
    digest = base64.urlsafe_b64encode(hashlib.sha512(audio).digest()).decode().rstrip("=")
    return {"url": services.speech.keep(path, audio), "content_hash": f"sha512-{digest}"}


def remember(services: Services, uuid: str, dialog: int, audio: bytes) -> None:
    """Know whose audio and whose words these are."""
    assert heard(audio) not in services.texts
    services.sounds[audio] = services.texts[heard(audio)] = (uuid, dialog)


def samples(services: Services, rng: random.Random) -> dict[str, list[dict[str, Any]]]:
    """The sample vCons by the list that they go to, where they are beside the project; their audio is served here.

    Some share a UUID, so each gets one of its own. Sealed ones show nothing to these links, and are left out.
    """
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in LISTS}
    for file in sorted([*SAMPLES.glob("ietf-vcon-core/*.vcon"), *SAMPLES.glob("fake-vcons/*.json")]):
        document = json.loads(file.read_text())
        if "uuid" not in document:
            continue
        document["uuid"] = uuid = vcon()["uuid"]
        list_name = "samples" if file.suffix == ".json" else "calls"
        transcribed = [entry["dialog"] for entry in document["analysis"] if entry["type"] == "transcript"]
        for number, dialog in enumerate(document["dialog"]):
            if dialog["type"] != "recording" or number in transcribed:
                continue
            if "url" in dialog:
                audio = sound(services, rng)
                dialog |= at_url(services, audio, f"/{uuid}/{number}.wav") | {"mediatype": "audio/x-wav"}
                remember(services, uuid, number, audio)
            elif "body" in dialog:
                remember(services, uuid, number, base64.urlsafe_b64decode(dialog["body"] + "=="))
        for entry in document["analysis"]:
            if list_name == "samples" and entry["type"] == "transcript":
                services.texts[entry["body"]["transcript"]] = (uuid, entry["dialog"])
        found[list_name].append(document)
    return found


def kill_a_worker(host: Host, redis: Redis, rng: random.Random) -> list[str]:
    """kill -9 a worker that has something in hand, and return what that was; nothing if all is done.

    Those in quarantine are left alone: what dies there again and again is a dead letter, as it should be.
    """

    def busy() -> dict[int, list[str]]:
        """What is held where, as keys of Redis, by the process."""
        alive = host.worker_pids()
        workers = {w["pid"]: w["name"] for w in host.status().get("workers", []) if w["pid"] in alive}
        keys = {pid: [f"conserver:{{{name}}}:held:{worker}" for name in LISTS] for pid, worker in workers.items()}
        return {pid: held for pid, held in keys.items() if redis.exists(*held)}

    wait_until(lambda: busy() or accounted(redis, [*LISTS]), 60, "a worker that has something in hand")
    found = busy()
    if not found:
        return []
    pid = rng.choice(sorted(found))
    # Once it is stopped, nothing that it holds gets any further.
    host.signal(signal.SIGSTOP, [pid])
    in_hand = [record[-36:].decode() for key in found[pid] for record in redis.hvals(key)]
    host.signal(signal.SIGKILL, [pid])
    wait_until(lambda: not redis.exists(*found[pid]), 60, "recovery")
    return in_hand


def check_vcon(before: dict[str, Any], after: dict[str, Any], services: Services) -> None:
    """Each recording has its transcript, each transcript its two analyses, once; and there is the tag."""
    uuid = before["uuid"]
    heard_here = [dialog for whose, dialog in services.sounds.values() if whose == uuid]
    read_here = [dialog for whose, dialog in services.texts.values() if whose == uuid]
    wanted = Counter((entry["type"], json.dumps(entry.get("dialog"))) for entry in before.get("analysis", []))
    wanted.update(("transcript", str(dialog)) for dialog in heard_here)
    wanted.update((kind, str(dialog)) for dialog in read_here for kind in ("gist", "tag_evaluation"))

    assert Counter((entry["type"], json.dumps(entry.get("dialog"))) for entry in after["analysis"]) == wanted
    words = {dialog: text for text, (whose, dialog) in services.texts.items() if whose == uuid}
    for entry in after["analysis"]:
        if entry["type"] == "transcript" and entry["dialog"] in heard_here:
            assert entry["body"]["text"] == words[entry["dialog"]]
        if entry["type"] == "gist":
            assert entry["body"].endswith(" ".join(words[entry["dialog"]].rpartition("\n\n")[2].split()[:12]))
    tags = [a["body"] for a in after["attachments"] if a.get("purpose") == "tags"]
    assert tags == ([["spoken:yes"]] if read_here else [])
    if before.get("subject") == "a call":
        written = ("analysis", "attachments", "updated_at")
        assert {k: v for k, v in after.items() if k not in written} == {
            k: v for k, v in before.items() if k not in written
        }


@pytest.mark.parametrize(
    ("kills", "portion"),
    [pytest.param(5, 8, id="quick"), pytest.param(40, 12, id="full", marks=[pytest.mark.thorough, pytest.mark.long])],
)
def test_paid_work_survives_kills_and_is_paid_once(
    tmp_path: Path, redis: Redis, server_url: str, services: Services, rng: random.Random, kills: int, portion: int
):
    """transcribe, analyze, check_and_tag and webhook; a vCon costs one call more for each kill that it was under."""
    documents = samples(services, rng)
    killed, in_hand = 0, Counter[str]()
    host = Host(tmp_path / "host", server_url, config(services))
    try:
        host.start()
        for name, some in documents.items():
            for uuid in store(redis, some):
                redis.rpush(name, uuid)
        while killed < kills:
            # Each kill finds fresh work; what was under the ones before is in quarantine.
            more_calls = [recorded(services, rng) for _ in range(portion)]
            documents["calls"] += more_calls
            goal = services.progress() + rng.randint(1, 6 * portion)
            redis.rpush("calls", *store(redis, more_calls))
            wait_until(lambda goal=goal: services.progress() >= goal, 60, "the links go on")
            held = kill_a_worker(host, redis, rng)
            in_hand.update(held)
            killed += bool(held)
        wait_until(lambda: accounted(redis, [*LISTS]), 200, "everything settled")
    finally:
        host.close()

    needed = {(uuid, "transcribe", dialog) for uuid, dialog in services.sounds.values()}
    needed |= {(uuid, link, dialog) for uuid, dialog in services.texts.values() for link in ("analyze", "check")}
    everything = [document for some in documents.values() for document in some]
    assert Counter(entries(redis, "out")) == Counter(document["uuid"] for document in everything)
    deliveries, paid = services.deliveries(), services.paid()
    assert paid.keys() == needed
    more = Counter({uuid: 0 for uuid in deliveries})
    for (uuid, _, _), times in paid.items():
        more[uuid] += times - 1
    assert {uuid: times for uuid, times in more.items() if times > in_hand[uuid]} == {}
    for document in everything:
        uuid = document["uuid"]
        after = json.loads(redis.get(f"vcon:{uuid}") or b"")
        check_vcon(document, after, services)
        assert len(set(deliveries[uuid])) == 1, "one version, with one webhook-id"
        assert len(deliveries[uuid]) <= 1 + in_hand[uuid]
        # What nobody had to change is in Redis as it was stored, and is delivered as the current draft has it.
        assert json.loads(deliveries[uuid][0][1])["analysis"] == after["analysis"]
    assert len({ids[0][0] for ids in deliveries.values()}) == len(everything)
