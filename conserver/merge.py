"""Three-way merge of one vCon that two writers changed at the same time.

`base` is what this writer (`mine`) started from, `theirs` is what is stored now. The order of the arrays of `theirs`
is kept, so every index in it stays right; what `mine` added comes after, with its own indices moved along. `base` may
be a document that was never stored: the writer's own, from a save that was itself merged. So its entries are looked
for in `theirs`, where others may have put theirs in between.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from conserver.errors import VconConflict
from conserver.vcon import set_tags, tags_of
from conserver.vcon_forms import form_of
from conserver.vcon_json import canonical, copied, pointer_part

# Parties point nowhere, dialogs to parties and dialogs, and so on: each array comes after what it points to.
_ARRAYS = ("parties", "dialog", "attachments", "analysis")
_REFERENCES: dict[str, dict[str, str]] = {
    "parties": {},
    "dialog": {
        **dict.fromkeys(("parties", "originator", "transferee", "transferor", "transfer_target"), "parties"),
        **dict.fromkeys(("original", "consultation", "target_dialog", "recordings", "recording_set"), "dialog"),
        "party_history": "parties",
    },
    "attachments": {"party": "parties", "dialog": "dialog"},
    "analysis": {"dialog": "dialog", "attachment": "attachments"},
}
# What says which entry it is. An entry in which one of these has another value is another entry.
_IDENTITY = ("type", "purpose", "vendor", "start", "message_id")
# These describe one content together: half of it from each writer would be neither.
_CONTENT = ("body", "encoding", "mediatype", "url", "content_hash")

_ABSENT: Any = object()
_Entry = dict[str, Any]
# Where an entry went: its index, or None when that cannot be told.
_Places = list[int | None]
# Where an index of the named array moves to.
_Where = Callable[[str, int], int]


def merge(base: dict[str, Any], theirs: dict[str, Any], mine: dict[str, Any]) -> dict[str, Any]:
    """Return a new document with the changes of both; the three given ones stay as they are.

    Raises VconConflict that names every JSON pointer where both cannot be had: a member or entry that both changed
    differently, entries that were removed or reordered, sealed vCons, another UUID.
    """
    merging = _Merging(base, theirs, mine)
    result = merging.run()
    if merging.conflicts:
        places = "; ".join(f"{pointer or '/'} {problem}" for pointer, problem in dict.fromkeys(merging.conflicts))
        raise VconConflict(
            f"vCon {base.get('uuid')} was changed by somebody else as well: {places}; work on the new copy"
        )
    # A copy, so that a change of the result reaches none of the three.
    return copied(result)  # type: ignore[no-any-return]


@dataclass
class _Array:
    """One of the four arrays in its three states, with the canonical bytes of each entry."""

    base: list[_Entry]
    theirs: list[_Entry]
    mine: list[_Entry]
    in_theirs: _Places = field(default_factory=list)
    """For each entry of `base`: where it is in `theirs`."""
    in_result: _Places = field(default_factory=list)
    """For each entry of `mine`: where it will be."""
    added: list[int] = field(default_factory=list)
    """The entries of `mine` that are appended, as indices into it."""
    uncertain: set[int] = field(default_factory=set)
    """Entries of `base` that more than one entry of theirs may have come from: a conflict once mine needs them."""
    tags: tuple[int, int] | None = None
    """The tags attachment of mine and that of theirs, when both added one: they become one."""

    def __post_init__(self) -> None:
        self.base_bytes = [canonical(entry) for entry in self.base]
        self.theirs_bytes = [canonical(entry) for entry in self.theirs]
        self.mine_bytes = [canonical(entry) for entry in self.mine]


class _Merging:
    def __init__(self, base: dict[str, Any], theirs: dict[str, Any], mine: dict[str, Any]) -> None:
        self.base, self.theirs, self.mine = base, theirs, mine
        self.conflicts: list[tuple[str, str]] = []
        self.arrays: dict[str, _Array] = {}

    def run(self) -> dict[str, Any]:
        if any(form_of(document) != "unsigned" for document in (self.base, self.theirs, self.mine)):
            self._conflict("", "is signed or encrypted")
            return {}
        if not self.base.get("uuid") == self.theirs.get("uuid") == self.mine.get("uuid"):
            self._conflict("/uuid", "differs: these are different vCons")
            return {}
        result = self._members()
        for name in _ARRAYS:
            states = [document.get(name) or [] for document in (self.base, self.theirs, self.mine)]
            if not all(isinstance(state, list) and all(isinstance(entry, dict) for entry in state) for state in states):
                self._conflict(f"/{name}", "is no array of objects")
                return {}
            array = self.arrays[name] = _Array(states[0], states[1], states[2])
            self._find_base_in_theirs(name, array)
            self._check_own(name, array)
            self._place_own(name, array)
        for name, array in self.arrays.items():
            entries = self._entries(name, array)
            if entries:
                result[name] = entries
            elif name in self.theirs or name in self.mine:
                result[name] = self.theirs.get(name, self.mine.get(name))
        return result

    def _conflict(self, pointer: str, problem: str) -> None:
        self.conflicts.append((pointer, problem))

    # --- members that are not one of the four arrays ---

    def _members(self) -> dict[str, Any]:
        base, theirs, mine = (
            {name: value for name, value in document.items() if name not in _ARRAYS and name != "updated_at"}
            for document in (self.base, self.theirs, self.mine)
        )
        result: dict[str, Any] = self._value(base, theirs, mine, "")
        dates = [document["updated_at"] for document in (self.theirs, self.mine) if "updated_at" in document]
        if dates:
            result["updated_at"] = max(dates, key=_instant)
        return result

    def _value(self, base: Any, theirs: Any, mine: Any, pointer: str) -> Any:
        if _same(base, mine):
            return theirs
        if _same(base, theirs) or _same(theirs, mine):
            return mine
        if isinstance(theirs, dict) and isinstance(mine, dict) and (base is _ABSENT or isinstance(base, dict)):
            origin = {} if base is _ABSENT else base
            merged = {}
            for name in [*theirs, *(name for name in mine if name not in theirs)]:
                before, stored, own = (state.get(name, _ABSENT) for state in (origin, theirs, mine))
                value = self._value(before, stored, own, f"{pointer}/{pointer_part(name)}")
                if value is not _ABSENT:
                    merged[name] = value
            return merged
        self._conflict(pointer, "was changed by both")
        return theirs

    # --- where the entries are ---

    def _find_base_in_theirs(self, name: str, array: _Array) -> None:
        """Find the entries of base in theirs: first those that are as they were, then the changed ones between."""
        count = len(array.base)
        if array.base_bytes == array.theirs_bytes[:count] and self._points_alike(name):
            array.in_theirs = list(range(count))
            return
        wanted = [self._comparable(name, entry, self._in_theirs) for entry in array.base]
        given = [self._comparable(name, entry, None) for entry in array.theirs]
        free = 0
        for entry in wanted:
            place = next((at for at in range(free, len(given)) if given[at] == entry), None)
            array.in_theirs.append(place)
            free = free if place is None else place + 1
        for index in range(count):
            if array.in_theirs[index] is None:
                self._find_changed(name, array, index)

    def _find_changed(self, name: str, array: _Array, index: int) -> None:
        places = array.in_theirs
        after = max((place for place in places[:index] if place is not None), default=-1)
        before = next((place for place in places[index:] if place is not None), len(array.theirs))
        missing = next((n for n, place in enumerate(places[index:]) if place is not None), len(places) - index)
        window, entry = range(after + 1, before), self._moved(name, array.base[index], self._in_theirs)
        likeness = {at: _likeness(entry, array.theirs[at]) for at in window}
        best = max(likeness.values(), default=0)
        if len(window) == missing:  # nothing came in between, so each is where it was; or they changed places
            here = window[0]
            if _is_kept(entry, array.theirs[here]) and likeness[here] == best:
                places[index] = here
        elif len(window) > missing:
            likely = [at for at in window if likeness[at] == best > 0]
            if len(likely) == 1:
                places[index] = likely[0]
            if likely:
                array.uncertain |= {index} if len(likely) > 1 else set()
                return
        if places[index] is None:
            self._conflict(f"/{name}/{index}", "was removed, moved or replaced by the other")

    def _points_alike(self, name: str) -> bool:
        """Tell whether what this array points to is in theirs where it was in base."""
        targets = {target for target in _REFERENCES[name].values() if target != name}
        return all(self.arrays[target].in_theirs == list(range(len(self.arrays[target].base))) for target in targets)

    def _check_own(self, name: str, array: _Array) -> None:
        """Refuse what cannot be merged: entries of base that mine removed, moved or replaced."""
        kept = array.mine_bytes[: len(array.base)]
        changed = [index for index, entry in enumerate(kept) if entry != array.base_bytes[index]]
        elsewhere = {array.mine_bytes[index] for index in (*changed, *range(len(array.base), len(array.mine)))}
        for index in changed:
            if array.base_bytes[index] in elsewhere or not _is_kept(array.base[index], array.mine[index]):
                self._conflict(f"/{name}/{index}", "was removed, moved or replaced")
        for index in range(len(kept), len(array.base)):
            self._conflict(f"/{name}/{index}", "was removed")

    def _place_own(self, name: str, array: _Array) -> None:
        """Say where each entry of mine will be.

        An entry that theirs added as well, alike in everything, is the same one: the second of two runs would have
        found the first one's entry, and a save whose answer was lost must not double what it saved.
        """
        count = len(array.base)
        taken = set(array.in_theirs)
        spare: dict[bytes, list[int]] = {}
        for at, entry in enumerate(array.theirs):
            if at not in taken:
                spare.setdefault(self._comparable(name, entry, None), []).append(at)
        same: dict[int, int] = {}
        self._place(array, same)
        for index in range(count, len(array.mine)):
            twins = spare.get(self._comparable(name, array.mine[index], self._in_result))
            if twins:
                same[index] = twins.pop(0)
        tags = self._own_tags(name, array)
        if tags is not None:
            same[tags[0]] = tags[1]
        # Dialogs point to dialogs: two that look alike are the same only if what they point to is.
        while True:
            self._place(array, same)
            wrong = [
                index
                for index, at in same.items()
                if (index, at) != tags
                and canonical(self._moved(name, array.mine[index], self._in_result)) != array.theirs_bytes[at]
            ]
            if not wrong:
                break
            for index in wrong:
                del same[index]
        array.tags = tags

    def _place(self, array: _Array, same: dict[int, int]) -> None:
        array.added = [index for index in range(len(array.base), len(array.mine)) if index not in same]
        ends = {index: len(array.theirs) + place for place, index in enumerate(array.added)}
        own = [same.get(index, ends.get(index)) for index in range(len(array.base), len(array.mine))]
        array.in_result = [*array.in_theirs, *own]

    def _own_tags(self, name: str, array: _Array) -> tuple[int, int] | None:
        """Return the tags attachment of mine and the one of theirs, when both added one."""
        if name != "attachments" or any(_holds_tags(entry) for entry in array.base):
            return None
        new = range(len(array.base), len(array.mine))
        mine = next((index for index in new if _holds_tags(array.mine[index])), None)
        theirs = next((at for at, entry in enumerate(array.theirs) if _holds_tags(entry)), None)
        return None if mine is None or theirs is None else (mine, theirs)

    # --- indices ---

    def _in_theirs(self, name: str, index: int) -> int:
        places = self.arrays[name].in_theirs
        place = places[index] if index < len(places) else None
        return index if place is None else place

    def _in_result(self, name: str, index: int) -> int:
        array = self.arrays[name]
        if index >= len(array.mine):  # it points nowhere, and must go on doing so
            return index + len(array.theirs) + len(array.added) - len(array.mine)
        place = array.in_result[index]
        if place is None:
            if index in array.uncertain:
                self._conflict(f"/{name}/{index}", "cannot be told from what the other added")
            return index
        return place

    def _moved(self, name: str, entry: _Entry, where: _Where) -> _Entry:
        fields = _REFERENCES[name].items()
        return {**entry, **{key: _moved(entry[key], array, where) for key, array in fields if key in entry}}

    def _comparable(self, name: str, entry: _Entry, where: _Where | None) -> bytes:
        """Return the entry as bytes, without what points into its own array: that is not placed yet."""
        references = _REFERENCES[name]
        entry = {key: value for key, value in entry.items() if references.get(key) != name}
        return canonical(entry if where is None else self._moved(name, entry, where))

    # --- the entries ---

    def _entries(self, name: str, array: _Array) -> list[_Entry]:
        result = list(array.theirs)
        for index, (before, after) in enumerate(zip(array.base_bytes, array.mine_bytes, strict=False)):
            place = array.in_theirs[index]
            if before == after:
                continue
            if place is not None:
                result[place] = self._entry(name, array, index, array.theirs[place])
            elif index in array.uncertain:
                self._conflict(f"/{name}/{index}", "was changed by both, and cannot be told from what the other added")
        result += [self._moved(name, array.mine[index], self._in_result) for index in array.added]
        if array.tags is not None:
            mine, theirs = array.tags
            own = self._moved(name, array.mine[mine], self._in_result)
            result[theirs] = {**own, **_with_tags(array.theirs[theirs], {}, own)}
        return result

    def _entry(self, name: str, array: _Array, index: int, theirs: _Entry) -> _Entry:
        pointer, base, mine = f"/{name}/{index}", array.base[index], array.mine[index]
        origin = self._moved(name, base, self._in_theirs)
        changed = [key for key in {**base, **mine} if not _same(base.get(key, _ABSENT), mine.get(key, _ABSENT))]
        if _same(origin, theirs):
            others: list[str] = []
        else:
            others = [
                key for key in {**origin, **theirs} if not _same(origin.get(key, _ABSENT), theirs.get(key, _ABSENT))
            ]
            if not mine or not theirs:
                self._conflict(pointer, "was emptied by one and changed by the other")
        result = dict(theirs)
        if all(_holds_tags(entry) for entry in (base, theirs, mine)):
            result = _with_tags(theirs, base, mine)
            changed = [key for key in changed if key not in ("body", "encoding")]
        moved = self._moved(name, {key: mine[key] for key in changed if key in mine}, self._in_result)
        for key in changed:
            value = moved.get(key, _ABSENT)
            if key in others and not _same(theirs.get(key, _ABSENT), value):
                self._conflict(f"{pointer}/{pointer_part(key)}", "was changed by both")
            elif value is _ABSENT:
                result.pop(key, None)
            else:
                result[key] = value
        if {key for key in changed if key in _CONTENT} and {key for key in others if key in _CONTENT}:
            for key in _CONTENT:
                if not _same(mine.get(key, _ABSENT), theirs.get(key, _ABSENT)):
                    self._conflict(f"{pointer}/{key}", "belongs to a content that both changed")
        return result


def _moved(value: Any, array: str, where: _Where) -> Any:
    if isinstance(value, list):
        return [_moved(item, array, where) for item in value]
    if isinstance(value, dict):  # an entry of party_history
        return {**value, "party": _moved(value["party"], array, where)} if "party" in value else value
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return where(array, value)
    return value


def _same(one: Any, other: Any) -> bool:
    if one is other:
        return True
    return one is not _ABSENT and other is not _ABSENT and canonical(one) == canonical(other)


def _likeness(one: _Entry, other: _Entry) -> int:
    """Count the members that stayed; 0 if that is less than half, or one says that these are two different entries."""
    if any(key in one and key in other and not _same(one[key], other[key]) for key in _IDENTITY):
        return 0
    alike = sum(_same(value, other.get(key, _ABSENT)) for key, value in one.items())
    return alike if 2 * alike >= len(one) else 0


def _is_kept(before: _Entry, after: _Entry) -> bool:
    """Tell whether the second can be the first one, changed. An empty one is a placeholder for what was redacted."""
    return (
        not before or not after or _likeness(before, after) > 0 or (before.keys() == after.keys() and len(before) == 1)
    )


def _holds_tags(entry: _Entry) -> bool:
    return "tags" in (entry.get("purpose"), entry.get("type")) and tags_of(entry) is not None


def _with_tags(theirs: _Entry, base: _Entry, mine: _Entry) -> _Entry:
    """Return the attachment of theirs with the tags of both: as a set, what one removed is gone."""
    before, stored, own = (tags_of(entry) or [] for entry in (base, theirs, mine))
    tags = [tag for tag in stored if tag in own or tag not in before]
    tags += [tag for tag in own if tag not in before and tag not in stored]
    result = dict(theirs)
    if tags != stored:
        set_tags(result, tags)
    return result


def _instant(date: Any) -> float:
    try:
        return datetime.fromisoformat(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return float("-inf")
