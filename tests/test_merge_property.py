"""conserver.merge and conserver.store: whatever two writers do to one vCon, nothing is lost, or one of them is told.

What a document means is written with names in the place of indices, so that a plain comparison of those meanings says
what each save has to lead to, however the entries have moved.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from redis import Redis

from conserver import writer as writers
from conserver.errors import VconConflict
from conserver.settings import Settings
from conserver.store import VconStore
from conserver.vcon import Vcon
from conserver.vcon_json import canonical
from conserver.writer import Writer
from tests.runs import A, document

KEY = f"vcon:{A}"
POINTS_TO = {
    "parties": {},
    "dialog": {
        "parties": "parties",
        "originator": "parties",
        "transfer_target": "parties",
        "party_history": "parties",
        "original": "dialog",
        "recordings": "dialog",
    },
    "attachments": {"party": "parties", "dialog": "dialog"},
    "analysis": {"dialog": "dialog", "attachment": "attachments"},
}
ARRAYS = list(POINTS_TO)
# Few values, so that entries are alike and changes meet.
WORDS = st.sampled_from("ab")
PLAIN = {
    "parties": {"role": WORDS, "tel": WORDS},
    "dialog": {"type": WORDS, "start": WORDS, "duration": WORDS, "body": WORDS, "encoding": WORDS},
    "attachments": {"purpose": WORDS, "body": WORDS, "encoding": WORDS},
    "analysis": {"type": WORDS, "vendor": WORDS, "body": WORDS, "mediatype": WORDS, "product": WORDS},
}
ALWAYS = ["change"] * 4 + ["member", "tag"] * 2 + ["unset", "untag"]
ACTIONS = {
    True: st.sampled_from([*ALWAYS, *["add"] * 5, *["twin"] * 3]),
    False: st.sampled_from([*ALWAYS, *["remove"] * 2, "turn round"]),
}


# What a document means


def repointed(value: Any, where: Callable[[int], Any]) -> Any:
    """*value* with what *where* gives for each index in it; what it gives as None is left out."""
    if isinstance(value, list):
        return [new for item in value if (new := repointed(item, where)) is not None]
    if isinstance(value, dict):
        party = where(value["party"])
        return None if party is None else {**value, "party": party}
    return where(value)


def named(vcon: dict[str, Any], array: str, index: int) -> str:
    """The name of an entry: its label, or what it says, where several may say the same."""
    entry = vcon[array][index]
    if "meta" in entry:
        return str(entry["meta"]["label"])
    return "tags" if entry.get("purpose") == "tags" else f"{array} {canonical(meant(vcon, array, entry)).decode()}"


def meant(vcon: dict[str, Any], array: str, entry: dict[str, Any]) -> dict[str, Any]:
    """The entry with names in the place of indices."""
    targets = POINTS_TO[array]
    return {
        key: repointed(value, lambda at, to=targets[key]: named(vcon, to, at)) if key in targets else value
        for key, value in entry.items()
    }


@dataclass
class Meaning:
    """All that a vCon says: its values by place, entries that are alike by how many there are, and its tags."""

    values: dict[tuple[str, ...], Any] = field(default_factory=dict)
    twins: Counter[str] = field(default_factory=Counter)
    tags: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, vcon: dict[str, Any]) -> Meaning:
        values: dict[tuple[str, ...], Any] = {("x", key): value for key, value in vcon.get("x", {}).items()}
        values[("subject",)] = vcon.get("subject")
        meaning = cls(values, tags=set(Vcon(vcon).tags))
        for array in ARRAYS:
            for index, entry in enumerate(vcon[array]):
                name = named(vcon, array, index)
                if "meta" in entry:
                    assert (array, name, "meta") not in values, f"{name} is there twice"
                    values |= {(array, name, key): value for key, value in meant(vcon, array, entry).items()}
                elif name != "tags":
                    meaning.twins[name] += 1
        return meaning

    def followed_by(self, base: Meaning, mine: Meaning) -> Meaning | None:
        """What is to be stored once the changes from *base* to *mine* have come to this; None if they cannot."""
        after = Meaning(dict(self.values), self.twins, (self.tags - (base.tags - mine.tags)) | (mine.tags - base.tags))
        for place in {*base.values, *mine.values}:
            before, own, stored = (state.values.get(place) for state in (base, mine, self))
            if own == before:
                continue
            if stored not in (before, own) or (len(place) == 3 and before != own and self._gone(base, place)):
                return None
            after.values.pop(place, None)
            if own is not None:
                after.values[place] = own
        return after

    def content(self, entry: tuple[str, ...]) -> list[Any]:
        """What has to be of one writer in an entry: half of it from each would be neither."""
        return [self.values.get((*entry, key)) for key in ("body", "encoding", "mediatype")]

    def _gone(self, base: Meaning, place: tuple[str, ...]) -> bool:
        """Whether the entry of *place* was there, and is not any more."""
        whole = (*place[:2], "meta")
        return whole in base.values and whole not in self.values


# Two writers


class Author:
    """One writer of the vCon, and the copy that it works on."""

    def __init__(self, name: str, vcons: VconStore, fixed: frozenset[str]) -> None:
        """In the arrays that are *fixed* nothing is removed or moved.

        In the others nothing is added: one that goes and another, alike, that takes its place are one that was changed.
        """
        self.name, self.fixed = name, fixed
        self.writer: Writer = vcons.writer()
        self.vcon = self.writer.get(A)
        self.labels = (f"{name}{n}" for n in range(1000))

    def read(self) -> None:
        self.vcon = self.writer.get(A)

    def change(self, draw: Callable[[Any], Any]) -> None:
        """Do one thing to the copy."""
        vcon, array = self.vcon.document, draw(st.sampled_from(ARRAYS))
        fixed = array in self.fixed
        what = draw(ACTIONS[fixed])
        own = [index for index, entry in enumerate(vcon[array]) if "meta" in entry]
        if what == "add":
            entry = {"meta": {"label": next(self.labels)}, **self._plain(array, draw)}
            vcon[array].append(entry)
            for key in POINTS_TO[array]:
                self._point(array, entry, key, draw)
        elif what == "twin":
            entry = {next(iter(PLAIN[array])): draw(WORDS)}
            if array == "analysis" and vcon["dialog"]:
                entry["dialog"] = draw(st.integers(0, len(vcon["dialog"]) - 1))
            vcon[array].append(entry)
        elif what == "change" and own:
            entry = vcon[array][draw(st.sampled_from(own))]
            key = draw(st.sampled_from([*PLAIN[array], *POINTS_TO[array], *(["meta"] if fixed else [])]))
            if key == "meta":
                # What tells for sure which entry it is, is another value then.
                entry["meta"] = {**entry["meta"], "by": self.name}
            elif key in PLAIN[array]:
                entry[key] = draw(WORDS)
            else:
                self._point(array, entry, key, draw)
        elif what == "remove" and own:
            gone = draw(st.sampled_from(own))
            self._move(array, [index for index in range(len(vcon[array])) if index != gone])
        elif what == "turn round":
            self._move(array, list(range(len(vcon[array])))[::-1])
        elif what == "member":
            if draw(st.booleans()):
                vcon["subject"] = draw(WORDS)
            else:
                vcon.setdefault("x", {})[draw(WORDS)] = draw(WORDS)
        elif what == "unset":
            vcon.get("x", vcon).pop(draw(WORDS), None)
        elif what == "tag":
            self.vcon.add_tag("t", draw(st.sampled_from("abc")))
        elif what == "untag":
            for entry in vcon["attachments"]:
                if entry.get("purpose") == "tags" and entry["body"]:
                    entry["body"] = entry["body"][1:]

    def _plain(self, array: str, draw: Callable[[Any], Any]) -> dict[str, Any]:
        # Sometimes less: entries in which hardly anything tells which they are.
        return draw(st.fixed_dictionaries({}, optional=PLAIN[array]))  # type: ignore[no-any-return]

    def _point(self, array: str, entry: dict[str, Any], key: str, draw: Callable[[Any], Any]) -> None:
        """Let *key* of the entry point to something of this copy, or nowhere any more."""
        count = len(self.vcon.document[POINTS_TO[array][key]])
        shape = draw(st.sampled_from(["none", "one", "list", "nested"])) if count else "none"
        one = st.integers(0, count - 1)
        entry.pop(key, None)
        if key == "party_history" and shape != "none":
            entry[key] = [{"party": at, "event": "join"} for at in draw(st.lists(one, max_size=2))]
        elif shape != "none":
            entry[key] = draw(
                {
                    "one": one,
                    "list": st.lists(one, max_size=3),
                    "nested": st.lists(st.lists(one, max_size=2), max_size=2),
                }[shape]
            )

    def _move(self, array: str, order: list[int]) -> None:
        """Put the entries of an array into another order, or leave some out, as one who keeps indices right."""
        before = self.vcon.document
        after = copy.deepcopy(before)
        after[array] = [after[array][index] for index in order]
        where = {old: new for new, old in enumerate(order)}
        for name, targets in POINTS_TO.items():
            for entry in after[name]:
                for key in targets.keys() & entry.keys():
                    if targets[key] == array:
                        value = repointed(entry.pop(key), where.get)
                        entry |= {} if value is None else {key: value}
        if Meaning.of(after).twins == Meaning.of(before).twins:
            self.vcon.document.update(after)

    def save(self, redis: Redis, between: Callable[[], None] | None = None) -> None:
        """Save, while *between* happens in the middle if somebody was there before; check what is stored then."""
        base, mine = (
            Meaning.of(Vcon.parse(self.vcon.base or b"").document),
            Meaning.of(Vcon.parse(self.vcon.to_bytes()).document),
        )
        with merges_watched(between) as merged:
            stored = redis.get(KEY)
            try:
                self.writer.save(self.vcon)
            except VconConflict:
                event("told")
                assert Vcon.parse(redis.get(KEY) or b"").document == merged[-1]
                self.read()
                return
        event(f"merged {len(merged)} times")
        before = Meaning.of(merged[-1] if merged else Vcon.parse(stored).document)
        after, wanted = Meaning.of(Vcon.parse(redis.get(KEY) or b"").document), before.followed_by(base, mine)

        assert wanted is not None, "both changed one thing, and nobody was told"
        assert after.values == wanted.values
        assert after.tags == wanted.tags
        for entry in {place[:2] for place in after.values if len(place) == 3}:
            assert after.content(entry) in (before.content(entry), mine.content(entry))
        assert after.twins >= before.twins | mine.twins
        assert after.twins <= before.twins + (mine.twins - base.twins)


@contextmanager
def merges_watched(between: Callable[[], None] | None) -> Iterator[list[dict[str, Any]]]:
    """What each merge of the block found stored; *between* happens after the first, before its result is saved."""
    merged: list[dict[str, Any]] = []
    merge = writers.merge

    def watched(base: Any, theirs: Any, mine: Any) -> Any:
        merged.append(copy.deepcopy(theirs))
        result = merge(base, theirs, mine)
        if between and len(merged) == 1:
            between()
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writers, "merge", watched)
        yield merged


def start(redis: Redis) -> None:
    """Store a vCon with two of everything."""
    vcon = document(
        parties=[{"meta": {"label": f"party {n}"}, "role": "a"} for n in range(2)],
        dialog=[{"meta": {"label": f"dialog {n}"}, "type": "a", "parties": [n, [0, 1]]} for n in range(2)],
        attachments=[{"meta": {"label": f"note {n}"}, "purpose": "a", "party": 0, "dialog": n} for n in range(2)],
        analysis=[{"meta": {"label": f"summary {n}"}, "type": "a", "dialog": [0, n]} for n in range(2)],
        subject="a",
        x={"a": "a"},
    )
    redis.set(KEY, Vcon(vcon).to_bytes())


def both_save_twice(data: st.DataObject, url: str) -> None:
    """Two writers change and save, twice each, in any order; each save is checked."""
    with Redis.from_url(url) as redis:
        redis.flushall()
        start(redis)
        vcons = VconStore(url, Settings())
        fixed = data.draw(st.frozensets(st.sampled_from(ARRAYS), min_size=2))
        authors = [Author(name, vcons, fixed) for name in "vw"]
        for turn in data.draw(st.permutations([0, 0, 1, 1])):
            for author in authors:
                if data.draw(st.integers(0, 5)) == 5:
                    author.read()
                for _ in range(data.draw(st.integers(0, 3))):
                    author.change(data.draw)
            other = authors[1 - turn]
            meanwhile = data.draw(st.booleans())
            authors[turn].save(redis, (lambda other=other: other.save(redis)) if meanwhile else None)  # type: ignore[misc]


quick = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    # To make a failure small may take minutes; the long test does.
    phases=[Phase.explicit, Phase.generate],
)
thorough = settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))


@quick
@given(data=st.data())
def test_what_two_writers_save_is_all_there_or_told(server: str, data: st.DataObject) -> None:
    """Entries, indices, members and tags of both, or a conflict and nothing changed."""
    both_save_twice(data, server)


@pytest.mark.long
@pytest.mark.timeout(900)
@thorough
@given(data=st.data())
def test_what_two_writers_save_is_all_there_or_told_in_many_ways(server: str, data: st.DataObject) -> None:
    """As above, with thousands of examples that are others each time."""
    both_save_twice(data, server)
