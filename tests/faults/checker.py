"""What must be true after every fault, proven from what happened outside of Redis.

Test links and storages write a line of JSON to a log of effects when they begin and when they are done (`EFFECT` in
`tests/host.py`). `History` reads it, and `check` compares it with what was pushed and with what the server holds now:

    I1  each UUID that was pushed is, as often as it was pushed, in exactly one place
    I2  nothing is held, and nobody claims who is gone
    I3  each storage holds the final document
    I4  no link begins more often than can be explained; what it does to the vCon is there once
    I5  each update whose link reported success is in the document
    I6  what was in the document before is in it still, value by value
    I7  the numbers add up
    I8  no secret is in a log or a reason

Events of the log: `began`, `ended`, `stopped`, `failed` of a link; `saving`, `saved` of a storage. `adds` in a line of
a link is the type of the analysis that it adds, and promises to be there once it `ended`; `digest` in a line of a
storage is `digest_of` the document that it wrote.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from redis import Redis

from tests.faults.places import where
from tests.host import effect_of

#: When something was done to the conserver, from and to, and to which processes alone, if not to all.
Fault = tuple[float, float, Collection[int] | None]

#: `/metrics` of a host: (name, labels) -> value, as `tests.faults.checker.samples` reads it.
Samples = Mapping[tuple[str, tuple[tuple[str, str], ...]], float]

_MOST_SHOWN = 5
_RECEIVED = "conserver_main_loop_count_vcons_received_total"
_PROCESSED = "conserver_main_loop_count_vcons_processed_total"
_DEAD = "conserver_dlq_count_total"


def digest_of(text: bytes | str) -> str:
    """Return the digest of a document by its values, however its JSON is spaced and ordered: 1 is not 1.0.

    It stands by itself, so that test storages can have its source.
    """
    import hashlib
    import json

    values = json.dumps(json.loads(text), sort_keys=True)
    return hashlib.sha1(values.encode(), usedforsecurity=False).hexdigest()


def samples(exposition: str) -> Samples:
    """Read the text of /metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    families = text_string_to_metric_families(exposition)
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


class History:
    """What links and storages did, from the logs of effects of all hosts."""

    def __init__(self, *files: Path) -> None:
        self._files = files
        self.began: Counter[tuple[str, str]] = Counter()
        self.ended: Counter[tuple[str, str]] = Counter()
        self.stopped: Counter[str] = Counter()
        self.adds: defaultdict[str, set[str]] = defaultdict(set)
        self.added: defaultdict[str, set[str]] = defaultdict(set)
        self.saved: dict[tuple[str, str], str] = {}
        self.failed: defaultdict[str, list[float]] = defaultdict(list)
        self._last: dict[tuple[str, str], tuple[float, int]] = {}
        self._again: list[tuple[str, str, float, int, float]] = []
        self._violations: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        for line in self._lines():
            self._take(line)

    def _lines(self) -> Iterator[dict[str, Any]]:
        for file in self._files:
            if file.exists():
                with file.open() as lines:
                    yield from map(effect_of, map(str.rstrip, lines))

    def _take(self, line: dict[str, Any]) -> None:
        event, name, uuid = line["event"], line["name"], line["vcon"]
        if event == "began":
            self.began[name, uuid] += 1
            if before := self._last.get((name, uuid)):
                self._again.append((name, uuid, *before, line.get("at", 0.0)))
            self._last[name, uuid] = line.get("at", 0.0), line.get("pid", 0)
        elif event == "failed":
            self.failed[uuid].append(line.get("at", 0.0))
        elif event == "ended":
            self.ended[name, uuid] += 1
        elif event == "stopped":
            self.stopped[uuid] += 1
        elif event == "saved":
            # Hosts are read one after the other, so the digest counts only where there is no copy to look at.
            self.saved[name, uuid] = line["digest"]
        if "adds" in line:
            self.adds[uuid].add(line["adds"])
            if event == "ended":
                self.added[uuid].add(line["adds"])

    def deaths(self, poison: Collection[str], within_secs: float = 2.0) -> list[Fault]:
        """Return the faults that *poison* was: it may have ended each process in which a link began with it."""
        begins = (line for line in self._lines() if line["event"] == "began" and line["vcon"] in poison)
        return [(line["at"], line["at"] + within_secs, {line["pid"]}) for line in begins]

    def check(
        self,
        redis: Redis,
        pushed: Mapping[str, int] | Iterable[str],
        *,
        lists: Sequence[str] = ("in",),
        egress: Sequence[str] = ("out",),
        dead: Collection[str] = (),
        storages: Mapping[str, Path | None] | None = None,
        links: Mapping[str, int] | None = None,
        repeats: int | None = None,
        faults: Iterable[Fault] | None = None,
        given: Callable[[str], bytes | str | None] = lambda uuid: None,
        metrics: Iterable[Samples] = (),
        counted_all: bool = False,
        logs: Iterable[Path] = (),
        secrets: Collection[str] = (),
        waiting: bool = False,
        gone: bool = False,
    ) -> None:
        """Raise AssertionError that lists every violation, with the UUIDs and their lines of the log.

        *pushed* says how often each UUID was accepted. Chains read *lists* and deliver each vCon to all of *egress*.
        Those in *dead* have to be dead letters, and no others may be. *storages* have to hold each delivered vCon: a
        folder has it in a file named by its UUID; None stands for what the log says was saved last. A link may begin
        *links[name]* times a push, and all links together *repeats* times more than once a push; if *faults* are
        given, a link may begin again only after one of them, or after it `failed`. *given* is the document that was
        stored. *metrics* are from the hosts, where one chain does all with a vCon; with *counted_all* no process has
        died with numbers that it had not told. No secret may be in *logs*. *waiting*: entries may still wait, in lists
        or for a retry. *gone*: all hosts have ended, and nothing may be left of them.
        """
        self._violations.clear()
        times = Counter(pushed)
        delivered, died = self._check_places(redis, times, lists, egress, set(dead), waiting)
        self._check_rest(redis, gone)
        self._check_begins(times, links or {}, repeats)
        if faults is not None:
            self._check_repeats(times, set(dead), sorted(faults, key=lambda fault: fault[:2]))
        self._check_documents(redis, times, delivered, storages or {}, given)
        self._check_numbers(list(metrics), {"delivered": delivered.total(), "dead": died}, counted_all)
        self._check_secrets(redis, lists, logs, secrets)
        if self._violations:
            raise AssertionError(self._report())

    def _broken(self, invariant: str, words: str, uuid: str = "") -> None:
        self._violations[invariant].append((words, uuid))

    # The invariants

    def _check_places(
        self, redis: Redis, times: Counter[str], lists: Sequence[str], egress: Sequence[str], dead: set[str], wait: bool
    ) -> tuple[Counter[str], int]:
        """Return how often each UUID was delivered, and how many dead letters there are."""
        places = where(redis, lists, egress)
        for uuid in times.keys() | places.keys():
            self._check_place(uuid, times[uuid], places[uuid], egress, dead, wait)
        delivered = Counter(
            {uuid: max((seen[f"in {name!r}"] for name in egress), default=0) for uuid, seen in places.items()}
        )
        return +delivered, sum(seen["dead"] for seen in places.values())

    def _check_place(
        self, uuid: str, times: int, places: Counter[str], egress: Sequence[str], dead: set[str], wait: bool
    ) -> None:
        seen = ", ".join(f"{n} {place}" for place, n in sorted(places.items())) or "nowhere"
        out = {places[f"in {name!r}"] for name in egress}
        inside = sum(places[p] for p in ("waiting", "dead", "returned", "suspect", "parked", "delayed", "held"))
        if len(out) > 1:
            self._broken("I1", f"{uuid} was delivered to some lists more often than to others: {seen}", uuid)
        missing = times - inside - max(out, default=0)
        if missing < 0:
            self._broken("I1", f"{uuid} was pushed {times} times, and is there more often: {seen}", uuid)
        elif missing > self.stopped[uuid]:
            stops = f"; a link stopped it {self.stopped[uuid]} times" if self.stopped[uuid] else ""
            self._broken("I1", f"{uuid} was pushed {times} times, and {missing} are lost: {seen}{stops}", uuid)
        if places["dead"] and uuid not in dead:
            self._broken("I1", f"{uuid} is a dead letter, and should be none: {seen}", uuid)
        if uuid in dead and not places["dead"] and not (wait and inside):
            self._broken("I1", f"{uuid} should be a dead letter: {seen}", uuid)
        if places["held"] or places["suspect"] or places["parked"]:
            self._broken("I2", f"{uuid} is in somebody's hands: {seen}", uuid)
        if not wait and places["waiting"] + places["returned"] + places["delayed"]:
            self._broken("I1", f"{uuid} has not come to an end: {seen}", uuid)

    def _check_rest(self, redis: Redis, gone: bool) -> None:
        hosts = {host.decode() for host in redis.smembers("conserver:hosts")}
        alive = {host for host in hosts if redis.exists(f"conserver:host:{host}")}
        for key in redis.scan_iter("conserver:{*}:workers", count=1000):
            for worker in sorted(member.decode() for member in redis.smembers(key)):
                if gone or worker.rpartition(":")[0] not in alive:
                    self._broken("I2", f"{worker} has ended, and is still a member of {key.decode()}")
        for host in sorted(hosts if gone else hosts - alive):
            self._broken("I2", f"host {host} has ended, and is still in conserver:hosts")

    def _check_begins(self, times: Counter[str], links: Mapping[str, int], repeats: int | None) -> None:
        repeated = sum(max(0, n - times[uuid]) for (_, uuid), n in self.began.items())
        if repeats is not None and repeated > repeats:
            self._broken(
                "I4", f"links began {repeated} times more than once a push, at most {repeats} can be explained"
            )
        for (name, uuid), n in self.began.items():
            most = links.get(name)
            if uuid not in times:
                self._broken("I4", f"link {name!r} began with {uuid}, which was never pushed", uuid)
            elif most is not None and n > most * times[uuid]:
                at_most = f"at most {most * times[uuid]}"
                self._broken("I4", f"link {name!r} began {n} times with {uuid}, {at_most} can be explained", uuid)

    def _check_repeats(self, times: Counter[str], dead: set[str], faults: Sequence[Fault]) -> None:
        """Find repeats without a cause between the one begin and the other."""
        for name, uuid, before, pid, again in self._again:
            # Two pushes are two runs, and a dead letter was the cause itself.
            if times[uuid] != 1 or uuid in dead or any(before <= at <= again for at in self.failed.get(uuid, ())):
                continue
            causes = (pids is None or pid in pids for since, to, pids in faults if since <= again and to >= before)
            if not any(causes):
                words = f"{again - before:.1f} s after it had, and nothing had happened"
                self._broken("I4", f"link {name!r} began again with {uuid} {words}", uuid)

    def _check_documents(
        self,
        redis: Redis,
        times: Counter[str],
        delivered: Collection[str],
        storages: Mapping[str, Path | None],
        given: Callable[[str], bytes | str | None],
    ) -> None:
        for uuid, text in _documents(redis, sorted(times)):
            copies = {name: _copy(folder, uuid) for name, folder in storages.items() if folder}
            # What has expired in Redis has to be in the storages, and the same in all of them.
            text = text or next(filter(None, copies.values()), None)
            if text is None:
                if uuid in delivered or given(uuid) is not None:
                    self._broken("I5", f"the document of {uuid} is neither in Redis nor in a storage", uuid)
                continue
            for name in storages if uuid in delivered else ():
                copy = copies.get(name)
                saved = digest_of(copy) if copy else None if name in copies else self.saved.get((name, uuid))
                if saved is None:
                    self._broken("I3", f"storage {name!r} does not have {uuid}, which was delivered", uuid)
                elif saved != digest_of(text):
                    self._broken("I3", f"storage {name!r} has another version of {uuid} than the final one", uuid)
            final = json.loads(text)
            kinds = Counter(entry.get("type") for entry in final.get("analysis", ()))
            for kind in sorted(self.added[uuid] - kinds.keys()) if uuid in self.added else ():
                self._broken("I5", f"analysis {kind!r} is not in {uuid}, and its link had ended well", uuid)
            for kind in sorted(self.adds[uuid]) if uuid in self.adds else ():
                if kinds[kind] > times[uuid]:
                    self._broken("I4", f"analysis {kind!r} is {kinds[kind]} times in {uuid}", uuid)
            before = given(uuid)
            for member, words in _changes(json.loads(before), final) if before is not None else ():
                self._broken("I6", f"{member!r} of {uuid} {words}", uuid)

    def _check_numbers(self, metrics: list[Samples], ends: Mapping[str, int], counted_all: bool) -> None:
        total: Counter[str] = Counter()
        for host in metrics:
            for (name, labels), value in host.items():
                total[name] += int(value)
                if name == _PROCESSED:
                    total[dict(labels)["outcome"]] += int(value)
        if total[_RECEIVED] != total[_PROCESSED]:
            words = f"{total[_RECEIVED]} were received and {total[_PROCESSED]} processed"
            self._broken("I7", f"the numbers do not add up: {words}")
        counted = {"delivered": total["delivered"], "dead": total[_DEAD]}
        for what, n in ends.items() if metrics else ():
            if counted[what] > n or (counted_all and counted[what] != n):
                self._broken("I7", f"{n} were {what}, and the hosts have counted {counted[what]}")

    def _check_secrets(
        self, redis: Redis, lists: Iterable[str], logs: Iterable[Path], secrets: Collection[str]
    ) -> None:
        for log in logs if secrets else ():
            for n, line in enumerate(log.read_text(errors="replace").splitlines(), 1):
                if any(secret in line for secret in secrets):
                    self._broken("I8", f"a secret is in line {n} of {log}")
        for name in lists:
            for entry, why in redis.hgetall(f"conserver:{{{name}}}:dead").items():
                if any(secret in why.decode("utf-8", "replace") for secret in secrets):
                    uuid = entry.decode("utf-8", "replace")
                    self._broken("I8", f"a secret is in the reason why {uuid} is dead", uuid)

    def _report(self) -> str:
        words = []
        shown: list[str] = []
        for invariant, found in sorted(self._violations.items()):
            more = f" (the first {_MOST_SHOWN} of {len(found)})" if len(found) > _MOST_SHOWN else ""
            words.append(f"{invariant} is broken{more}:")
            words += [f"  {text}" for text, _ in found[:_MOST_SHOWN]]
            shown += [uuid for _, uuid in found[:_MOST_SHOWN] if uuid]
        lines: defaultdict[str, list[str]] = defaultdict(list)
        for line in self._lines():
            if line["vcon"] in shown:
                lines[line["vcon"]].append(json.dumps(line))
        for uuid in dict.fromkeys(shown):
            words.append(f"the log of {uuid}:")
            words += [f"  {line}" for line in lines[uuid][:40]] or ["  nothing"]
        return "\n".join(words)


def _documents(redis: Redis, uuids: Sequence[str]) -> Iterator[tuple[str, bytes | None]]:
    for at in range(0, len(uuids), 500):
        batch = uuids[at : at + 500]
        yield from zip(batch, redis.mget([f"vcon:{uuid}" for uuid in batch]), strict=True)


def _copy(folder: Path, uuid: str) -> bytes | None:
    try:
        return (folder / uuid).read_bytes()
    except FileNotFoundError:
        return None


def _changes(before: dict[str, Any], after: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the members that are not as they were; entries may be added to what are lists, at their end."""
    for member, value in before.items():
        now = after.get(member)
        if member not in after:
            yield member, "is gone"
            continue
        if isinstance(value, list) and isinstance(now, list) and member in _GROWING:
            now = now[: len(value)]
        # As text, since Python takes 1, 1.0 and True for the same.
        was, is_now = json.dumps(value, sort_keys=True), json.dumps(now, sort_keys=True)
        if member != "updated_at" and was != is_now:
            yield member, f"was {was:.80} and is {is_now:.80}"


_GROWING = ("parties", "dialog", "analysis", "attachments")
