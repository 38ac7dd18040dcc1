"""conserver.merge: two writers, one vCon, nothing lost."""

import copy
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserver.errors import VconConflict
from conserver.merge import merge
from conserver.vcon import Vcon, dump, load

UUID = "01928e10-193e-8231-b9a2-279e0d16bc46"


def vcon(**members):
    """A vCon with two parties and one dialog, and what the test wants beside."""
    return {
        "uuid": UUID,
        "created_at": "2026-01-01T00:00:00Z",
        "parties": [{"tel": "+1", "name": "Alice"}, {"tel": "+2", "name": "Bob"}],
        "dialog": [{"type": "text", "start": "2026-01-01T00:00:00Z", "parties": [0, 1], "body": "hi"}],
        "analysis": [],
        "attachments": [],
        **members,
    }


def changed(base, change):
    """A copy of base with the change made."""
    document = copy.deepcopy(base)
    change(document)
    return document


def analysis(name, **members):
    """An analysis that is told by its vendor."""
    return {"type": "summary", "vendor": name, "body": name, "encoding": "none", **members}


def conflict(base, theirs, mine):
    """The message of the conflict that merging raises."""
    with pytest.raises(VconConflict) as caught:
        merge(base, theirs, mine)
    return str(caught.value)


def test_new_entries_of_both_are_kept_theirs_first():
    """What both add at the end stays, theirs before mine, each writer's in their order."""
    base = vcon()
    theirs = changed(base, lambda d: d["analysis"].extend([analysis("a"), analysis("b")]))
    mine = changed(base, lambda d: d["analysis"].extend([analysis("x"), analysis("y")]))

    merged = merge(base, theirs, mine)

    assert [entry["vendor"] for entry in merged["analysis"]] == ["a", "b", "x", "y"]


def test_indices_of_mine_move_with_what_they_point_to():
    """Every index field of mine's new entries points to the same entries afterwards."""
    base = vcon()
    theirs = changed(base, lambda d: (d["parties"].append({"name": "T"}), d["dialog"].append({"type": "text"})))
    mine = copy.deepcopy(base)
    mine["parties"] += [{"name": "M1"}, {"name": "M2"}]
    mine["dialog"] += [
        {
            "type": "recording",
            "parties": [[0, 2], None, 3],
            "originator": 3,
            "recording_set": 3,
            "party_history": [{"party": 2, "event": "join"}, {"event": "drop"}],
        },
        {
            "type": "transfer",
            "transferee": 2,
            "transferor": 0,
            "transfer_target": [1, 3],
            "original": 0,
            "consultation": [1],
            "target_dialog": 2,
        },
        {"type": "recording-set", "recordings": [1], "parties": True, "originator": 1.0},
    ]
    mine["attachments"].append({"purpose": "note", "party": 2, "dialog": 3})
    mine["analysis"].append(analysis("m", dialog=[0, 1], attachment=0))

    merged = merge(base, theirs, mine)

    recording, transfer, recording_set = merged["dialog"][2:]
    assert recording["parties"] == [[0, 3], None, 4]
    assert recording["originator"] == 4
    assert recording["recording_set"] == 4
    assert recording["party_history"] == [{"party": 3, "event": "join"}, {"event": "drop"}]
    assert transfer["transferee"] == 3
    assert transfer["transferor"] == 0
    assert transfer["transfer_target"] == [1, 4]
    assert transfer["original"] == 0
    assert transfer["consultation"] == [2]
    assert transfer["target_dialog"] == 3
    assert recording_set["recordings"] == [2]
    assert recording_set["parties"] is True
    assert isinstance(recording_set["originator"], float)
    assert merged["attachments"] == [{"purpose": "note", "party": 3, "dialog": 4}]
    assert merged["analysis"][0]["dialog"] == [0, 2]
    assert merged["analysis"][0]["attachment"] == 0


def test_a_changed_entry_of_base_may_point_to_a_new_one():
    """An index that mine sets in an old entry moves, one that it did not touch stays, wherever it points."""
    base = vcon(analysis=[analysis("a", dialog=7)])
    theirs = changed(base, lambda d: d["dialog"].append({"type": "text", "body": "theirs"}))
    mine = copy.deepcopy(base)
    mine["dialog"].append({"type": "recording-set", "recordings": [0]})
    mine["dialog"][0]["recording_set"] = 1
    mine["analysis"][0]["product"] = "p"

    merged = merge(base, theirs, mine)

    assert merged["dialog"][0]["recording_set"] == 2
    assert merged["analysis"] == [analysis("a", dialog=7, product="p")]


def test_an_index_that_points_nowhere_goes_on_pointing_nowhere():
    """A dangling index of a new entry does not come to point to an entry of the other."""
    base = vcon()
    theirs = changed(base, lambda d: d["dialog"].append({"type": "text"}))
    mine = changed(base, lambda d: d["analysis"].append(analysis("a", dialog=1)))

    merged = merge(base, theirs, mine)

    assert merged["analysis"][0]["dialog"] == 2
    assert len(merged["dialog"]) == 2


def test_different_fields_of_one_entry_merge():
    """Each side's change of another field of one entry is taken, also a field that one removed."""
    base = vcon(dialog=[{"type": "text", "start": "s", "duration": 1, "meta": {"a": 1}, "subject": "s"}])
    theirs = changed(base, lambda d: d["dialog"][0].update(duration=2))
    mine = changed(base, lambda d: (d["dialog"][0].update(meta={"a": 2}), d["dialog"][0].pop("subject")))

    merged = merge(base, theirs, mine)

    assert merged["dialog"] == [{"type": "text", "start": "s", "duration": 2, "meta": {"a": 2}}]


def test_unknown_members_merge_inside_objects():
    """Members that the format does not know are merged down to the values; lists only whole."""
    base = vcon(extra={"deep": {"a": 1, "b": [1]}, "gone": 1})
    theirs = changed(base, lambda d: (d["extra"]["deep"].update(a=2), d.update(theirs=1)))
    mine = changed(base, lambda d: (d["extra"]["deep"].update(b=[1, 2]), d["extra"].pop("gone"), d.update(mine=None)))

    merged = merge(base, theirs, mine)

    assert merged["extra"] == {"deep": {"a": 2, "b": [1, 2]}}
    assert merged["theirs"] == 1
    assert merged["mine"] is None


def test_a_value_of_another_type_is_a_change():
    """1, 1.0 and true are equal in Python and different in JSON."""
    base = vcon(flag=1)

    assert (
        merge(base, changed(base, lambda d: d.update(x=1)), changed(base, lambda d: d.update(flag=True)))["flag"]
        is True
    )


def test_identical_changes_are_no_conflict():
    """Both changing the same to the same is one change."""
    base = vcon(subject="a")
    both = changed(base, lambda d: (d.update(subject="b"), d["parties"][0].update(name="Al")))

    assert merge(base, both, copy.deepcopy(both)) == both


def test_an_entry_that_both_added_alike_is_one():
    """Two runs of one push add the same analysis, party and dialog once, and indices to them agree."""
    base = vcon()
    added = {"type": "text", "start": "s", "parties": [2]}
    theirs = changed(
        base,
        lambda d: (
            d["parties"].extend([{"name": "T"}, {"name": "Bot"}]),
            d["dialog"].append({**added, "parties": [3]}),
            d["analysis"].append(analysis("a", dialog=1)),
        ),
    )
    mine = changed(
        base,
        lambda d: (
            d["parties"].append({"name": "Bot"}),
            d["dialog"].append(added),
            d["analysis"].extend([analysis("a", dialog=1), analysis("a", dialog=1)]),
        ),
    )

    merged = merge(base, theirs, mine)

    assert [party["name"] for party in merged["parties"][2:]] == ["T", "Bot"]
    assert merged["dialog"][1:] == [{**added, "parties": [3]}]
    assert merged["analysis"] == [analysis("a", dialog=1), analysis("a", dialog=1)]


def test_entries_that_only_look_alike_are_two():
    """The same index may mean two dialogs: then the analyses are different ones."""
    base = vcon()
    theirs = changed(
        base,
        lambda d: (d["dialog"].append({"type": "text", "body": "t"}), d["analysis"].append(analysis("a", dialog=1))),
    )
    mine = changed(
        base,
        lambda d: (d["dialog"].append({"type": "text", "body": "m"}), d["analysis"].append(analysis("a", dialog=1))),
    )

    merged = merge(base, theirs, mine)

    assert [entry["dialog"] for entry in merged["analysis"]] == [1, 2]


def test_recording_sets_that_only_look_alike_are_two():
    """The same index of a dialog may mean two recordings: then each set keeps its own."""
    base = vcon()
    added = [[{"type": "recording", "body": body}, {"type": "recording-set", "recordings": [1]}] for body in "tm"]
    theirs, mine = (changed(base, lambda d, new=new: d["dialog"].extend(new)) for new in added)

    merged = merge(base, theirs, mine)

    assert [entry.get("body", entry.get("recordings")) for entry in merged["dialog"][1:]] == ["t", [1], "m", [3]]


def test_a_recording_set_that_was_saved_already_is_not_doubled():
    """Dialogs that point to each other are recognised as the same, too: a save whose answer was lost may come again."""
    base = vcon()
    mine = changed(
        base,
        lambda d: d["dialog"].extend(
            [{"type": "recording", "recording_set": 2}, {"type": "recording-set", "recordings": [1]}]
        ),
    )
    theirs = changed(mine, lambda d: d["analysis"].append(analysis("t", dialog=2)))

    assert merge(base, theirs, mine) == theirs


@pytest.mark.parametrize("body", [["a:1"], '["a:1"]', {"a": "1"}])
def test_tags_merge_as_a_set(body):
    """Tags added by both are there once, one that one side removed is gone, in whatever way they are written."""
    base = vcon(attachments=[{"purpose": "tags", "encoding": "json", "body": body}])
    theirs, mine = Vcon(copy.deepcopy(base)), Vcon(copy.deepcopy(base))
    theirs.add_tag("b", 2)
    theirs.add_tag("both", 1)
    mine.add_tag("both", 1)
    mine.add_tag("c", 3)

    merged = Vcon(merge(base, theirs.document, mine.document))

    assert merged.tags == ["a:1", "b:2", "both:1", "c:3"]
    assert isinstance(merged.attachments[0]["body"], str) == isinstance(body, str)


def test_a_removed_tag_is_gone():
    """A tag that either side removed does not come back from the other."""
    base = vcon(attachments=[{"purpose": "tags", "encoding": "json", "body": ["a:1", "b:2"]}])
    theirs = changed(base, lambda d: d["attachments"][0].update(body=["b:2", "c:3"]))
    mine = changed(base, lambda d: d["attachments"][0].update(body=["a:1", "d:4"]))

    assert Vcon(merge(base, theirs, mine)).tags == ["c:3", "d:4"]


def test_tags_attachments_that_both_created_become_one():
    """Two writers that both add the first tag leave one attachment, and indices to it are right."""
    base = vcon()
    theirs, mine = Vcon(copy.deepcopy(base)), Vcon(copy.deepcopy(base))
    theirs.add_attachment(purpose="note", body="t")
    theirs.add_tag("a", 1)
    mine.add_tag("b", 2)
    mine.add_attachment(purpose="note", body="m")
    mine.add_analysis(type="x", vendor="v", dialog=None, body="b", extra={"attachment": [0, 1]})

    merged = Vcon(merge(base, theirs.document, mine.document))

    assert [entry["purpose"] for entry in merged.attachments] == ["note", "tags", "note"]
    assert merged.tags == ["a:1", "b:2"]
    assert merged.analysis[0]["attachment"] == [1, 2]


@pytest.mark.parametrize(
    ("theirs", "mine", "later"),
    [
        ("2026-01-01T10:00:00Z", "2026-01-01T11:30:00+02:00", "2026-01-01T10:00:00Z"),
        ("2026-01-01T10:00:00Z", "2026-01-01T10:00:00.5Z", "2026-01-01T10:00:00.5Z"),
        ("yesterday", "2026-01-01T10:00:00Z", "2026-01-01T10:00:00Z"),
        (None, "2026-01-01T10:00:00Z", "2026-01-01T10:00:00Z"),
    ],
)
def test_the_later_updated_at_wins(theirs, mine, later):
    """updated_at is the later instant, whatever zone it is written in."""
    base = vcon()

    assert merge(base, vcon(updated_at=theirs), vcon(updated_at=mine))["updated_at"] == later


def test_all_conflicts_are_named_at_once():
    """The message has the pointer of everything that both changed differently."""
    base = vcon(subject="a", **{"x/y": {"z": 1}})
    theirs = changed(base, lambda d: (d.update(subject="b"), d["x/y"].update(z=2), d["parties"][0].update(name="T")))
    mine = changed(base, lambda d: (d.update(subject="c"), d["x/y"].update(z=3), d["parties"][0].update(name="M")))

    assert conflict(base, theirs, mine) == (
        f"vCon {UUID} was changed by somebody else as well: /subject was changed by both; /x~1y/z was changed by both; "
        "/parties/0/name was changed by both; work on the new copy"
    )


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        (lambda d: d["parties"].pop(0), "/parties/0 was removed"),
        (lambda d: d["parties"].pop(1), "/parties/1 was removed"),
        (lambda d: d["parties"].reverse(), "/parties/0 was removed, moved or replaced"),
        (lambda d: d["parties"].insert(0, {"name": "New"}), "/parties/0 was removed, moved or replaced"),
        (lambda d: d.pop("dialog"), "/dialog/0 was removed"),
        (lambda d: d["dialog"].__setitem__(0, {"type": "recording", "start": "x"}), "/dialog/0 was removed, moved"),
    ],
)
def test_removing_and_reordering_is_a_conflict(change, pointer):
    """Indices would come to mean something else, so mine is refused, and theirs where it shows."""
    base = vcon()
    other = changed(base, lambda d: d["analysis"].append(analysis("a", dialog=0)))
    broken = changed(base, change)

    assert pointer in conflict(base, other, broken)


def test_entries_that_changed_places_are_a_conflict_however_alike():
    """Two analyses of one kind that swap their places, or one that leaves while another comes, are told."""
    base = vcon(analysis=[analysis("v", body="a"), analysis("v", body="b")])
    other = changed(base, lambda d: d.update(subject="s"))
    swapped = changed(base, lambda d: d["analysis"].reverse())
    shifted = changed(base, lambda d: d.update(analysis=[*d["analysis"][1:], analysis("v", body="c")]))

    assert "/analysis/0 was removed, moved or replaced" in conflict(base, other, swapped)
    assert "/analysis/1 was removed, moved or replaced" in conflict(base, other, shifted)


def test_what_takes_the_place_of_another_is_not_that_one():
    """Of notes that changed places and were changed, and of one that left while another came, the writer is told."""
    notes = [{"purpose": "note", "party": 0, "body": text, "size": n} for n, text in enumerate("ab")]
    base = vcon(attachments=notes)
    swapped = changed(base, lambda d: d.update(attachments=[{**note, "encoding": "none"} for note in notes[::-1]]))
    replaced = changed(base, lambda d: d["attachments"].__setitem__(1, {"party": 0, "body": "new", "url": "u"}))
    mine = changed(base, lambda d: d["analysis"].append(analysis("a", attachment=1)))

    assert "/attachments/0 was removed, moved or replaced by the other" in conflict(base, swapped, mine)
    assert "/attachments/1 was removed, moved or replaced by the other" in conflict(base, replaced, mine)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["parties"].pop(0),
        lambda d: d["parties"].reverse(),
        lambda d: d.pop("dialog"),
        lambda d: d["dialog"].__setitem__(0, {"type": "recording", "start": "x"}),
    ],
)
def test_what_the_other_removed_or_reordered_is_a_conflict(change):
    """The stored version no longer has what mine may point to."""
    base = vcon()
    mine = changed(base, lambda d: d["analysis"].append(analysis("a", dialog=0)))

    assert "was removed, moved or replaced by the other" in conflict(base, changed(base, change), mine)


def test_half_a_content_from_each_is_a_conflict():
    """One side's body with the other side's encoding would be neither."""
    base = vcon(analysis=[analysis("a")])
    theirs = changed(base, lambda d: d["analysis"][0].update(body="b"))
    mine = changed(base, lambda d: d["analysis"][0].update(encoding="json"))

    assert "/analysis/0/body belongs to a content that both changed" in conflict(base, theirs, mine)


def test_a_redaction_does_not_come_back():
    """An entry that one emptied and the other changed is a conflict; one that nobody else changed stays empty."""
    base = vcon()
    empty = changed(base, lambda d: d["dialog"].__setitem__(0, {}))
    touched = changed(base, lambda d: d["dialog"][0].update(duration=3))
    elsewhere = changed(base, lambda d: d["dialog"].append({"type": "text"}))

    assert "/dialog/0 was emptied by one and changed by the other" in conflict(base, empty, touched)
    assert "/dialog/0 was emptied by one and changed by the other" in conflict(base, touched, empty)
    assert merge(base, elsewhere, empty)["dialog"] == [{}, {"type": "text"}]
    assert merge(base, empty, elsewhere)["dialog"] == [{}, {"type": "text"}]


@pytest.mark.parametrize("sealed", [{"payload": "x", "signatures": []}, {"ciphertext": "x", "recipients": []}])
def test_sealed_vcons_do_not_merge(sealed):
    """A signed or encrypted vCon cannot be changed by anybody."""
    assert "/ is signed or encrypted" in conflict(vcon(), vcon(), sealed)
    assert "/ is signed or encrypted" in conflict(vcon(), sealed, vcon())


def test_other_vcons_do_not_merge():
    """Another UUID is another vCon."""
    assert "/uuid differs" in conflict(vcon(), vcon(uuid=UUID.replace("0", "1")), vcon())


def test_an_array_that_is_none_is_refused():
    """Documents that no door let in are told, not guessed at."""
    assert "/parties is no array of objects" in conflict(vcon(), vcon(), vcon(parties=5))


def test_the_given_documents_stay_as_they_are():
    """Neither the merge nor a later change of its result reaches the inputs."""
    base = vcon(extra={"a": [1]})
    theirs = changed(base, lambda d: d["analysis"].append(analysis("a", dialog=0)))
    mine = changed(base, lambda d: (d["parties"].append({"name": "M"}), d["dialog"][0].update(duration=1)))
    before = dump([base, theirs, mine])

    merged = merge(base, theirs, mine)
    merged["extra"]["a"].append(2)
    for name in ("parties", "dialog", "analysis"):
        merged[name][0]["changed"] = True

    assert dump([base, theirs, mine]) == before


def test_a_second_save_finds_its_own_entries_behind_those_of_the_other():
    """The base is the writer's own document: what it added first lies elsewhere in the stored one."""
    start = vcon()
    mine_1 = changed(start, lambda d: (d["parties"].append({"name": "M"}), d["analysis"].append(analysis("m1"))))
    theirs = changed(start, lambda d: (d["parties"].append({"name": "T"}), d["analysis"].append(analysis("t1"))))
    stored = merge(start, theirs, mine_1)
    mine_2 = changed(
        mine_1, lambda d: (d["dialog"].append({"type": "text", "parties": [2]}), d["analysis"][0].update(product="p"))
    )

    merged = merge(mine_1, stored, mine_2)

    assert [party["name"] for party in merged["parties"]] == ["Alice", "Bob", "T", "M"]
    assert merged["dialog"][1]["parties"] == [3]
    assert merged["analysis"] == [analysis("t1"), analysis("m1", product="p")]


def test_a_second_save_does_not_take_a_likeness_for_its_own():
    """Two entries that differ only in an index are told apart by what it points to."""
    start = vcon()
    mine_1 = changed(
        start,
        lambda d: (d["dialog"].append({"type": "text", "body": "m"}), d["analysis"].append(analysis("a", dialog=1))),
    )
    theirs = changed(
        start,
        lambda d: (d["dialog"].append({"type": "text", "body": "t"}), d["analysis"].append(analysis("a", dialog=1))),
    )
    stored = merge(start, theirs, mine_1)
    mine_2 = changed(mine_1, lambda d: d["analysis"][0].update(product="p"))

    merged = merge(mine_1, stored, mine_2)

    assert merged["analysis"] == [analysis("a", dialog=1), analysis("a", dialog=2, product="p")]


def test_an_entry_that_cannot_be_told_apart_is_a_conflict_only_when_needed():
    """If theirs changed an entry and added ones as like to it, mine may not point to it or change it."""
    base = vcon(parties=[{"name": "A", "org": "o"}])
    theirs = changed(base, lambda d: d.update(parties=[{"name": "B", "org": "o"}, {"name": "C", "org": "o"}]))
    pointing = changed(base, lambda d: d["dialog"].append({"type": "text", "parties": [0]}))
    changing = changed(base, lambda d: d["parties"][0].update(tel="+3"))
    apart = changed(base, lambda d: d.update(subject="s"))

    assert "/parties/0 cannot be told from what the other added" in conflict(base, theirs, pointing)
    assert "/parties/0 was changed by both" in conflict(base, theirs, changing)
    assert merge(base, theirs, apart)["parties"] == theirs["parties"]


class Author:
    """A writer of the model: appends labelled entries and remembers what each pointed to."""

    def __init__(self, name, stored, truth):
        self.name, self.truth = name, truth
        self.base = copy.deepcopy(stored)
        self.own = copy.deepcopy(stored)
        self.count = 0

    def act(self, array, draw):
        """Append an entry that points to any entries of this writer's document, its own new ones included."""
        label = f"{self.name}{self.count}"
        self.count += 1
        own = self.own
        any_party = st.integers(0, len(own["parties"]) - 1)
        any_dialog = st.integers(0, len(own["dialog"]) - (0 if array == "dialog" else 1))
        entry = {"label": label}
        if array == "dialog":
            entry |= {
                "parties": draw(st.lists(st.one_of(st.none(), any_party, st.lists(any_party, max_size=2)), max_size=3))
            }
            entry |= {"recordings": draw(st.lists(any_dialog, max_size=2))}
        elif array == "attachments":
            entry |= {"party": draw(any_party), "dialog": draw(any_dialog)}
        elif array == "analysis":
            entry |= {"dialog": draw(st.one_of(any_dialog, st.lists(any_dialog, max_size=2)))}
            if own["attachments"]:
                entry |= {"attachment": draw(st.integers(0, len(own["attachments"]) - 1))}
        own[array].append(entry)
        self.truth[label] = resolved(own, array, entry)

    def save(self, stored):
        """What the store does: the base becomes this writer's own document, never what was merged."""
        result = copy.deepcopy(self.own) if self.base == stored else merge(self.base, stored, self.own)
        self.base = copy.deepcopy(self.own)
        return result


def resolved(document, array, entry):
    """The entry with labels in the place of indices."""
    targets = {"recordings": "dialog", "dialog": "dialog", "attachment": "attachments"}

    def labels(value, target):
        if isinstance(value, list):
            return [labels(item, target) for item in value]
        return value if value is None else document[target][value]["label"]

    return {
        key: value if key in ("label", "note") else labels(value, targets.get(key, "parties"))
        for key, value in entry.items()
    }


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_two_writers_that_only_add_never_conflict_and_lose_nothing(data):
    """Whatever two writers append in two saves each, in any order: every entry is there once and points to the same."""
    stored = {"uuid": UUID, "parties": [{"label": "p"}], "dialog": [{"label": "d"}], "analysis": [], "attachments": []}
    truth = {}
    authors = [Author("a", stored, truth), Author("b", stored, truth)]
    arrays = st.lists(st.sampled_from(["parties", "dialog", "analysis", "attachments"]), max_size=3)

    for turn in data.draw(st.permutations([0, 0, 1, 1])):
        for author in authors:
            for array in data.draw(arrays):
                author.act(array, data.draw)
        stored = authors[turn].save(stored)
    for author in authors:
        stored = author.save(stored)

    entries = {
        entry["label"]: resolved(stored, array, entry)
        for array in ("parties", "dialog", "analysis", "attachments")
        for entry in stored[array]
        if entry["label"] not in "pd"
    }
    assert entries == truth
    assert sum(len(stored[array]) for array in ("parties", "dialog", "analysis", "attachments")) == len(truth) + 2
    for name in "ab":
        for array in ("parties", "dialog", "analysis", "attachments"):
            numbers = [int(entry["label"][1:]) for entry in stored[array] if entry["label"].startswith(name)]
            assert numbers == sorted(numbers)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_two_writers_that_also_change_entries_lose_nothing_or_conflict(data):
    """With changes of old entries, of members and of tags beside: each change is there, or it is a conflict."""
    stored = vcon(
        parties=[{"label": "p0"}, {"label": "p1"}],
        dialog=[{"label": "d0", "parties": [0]}, {"label": "d1", "parties": [1]}],
        attachments=[{"purpose": "tags", "encoding": "json", "body": ["t:0"], "label": "tags"}],
    )
    truth, done = {}, {}
    authors = [Author("a", stored, truth), Author("b", stored, truth)]

    try:
        for turn in data.draw(st.permutations([0, 0, 1, 1])):
            author = authors[turn]
            action = data.draw(st.sampled_from(["dialog", "parties", "note", "member", "tag", "remove"]))
            value = f"{author.name}{data.draw(st.integers(0, 3))}"
            if action in ("dialog", "parties"):
                author.act(action, data.draw)
            elif action == "note":
                at = data.draw(st.integers(0, len(author.own["dialog"]) - 1))
                label = author.own["dialog"][at]["label"]
                author.own["dialog"][at]["note"] = value
                done[("note", label)] = value
            elif action == "member":
                author.own["member"] = value
                done["member"] = value
            elif action == "tag":
                Vcon(author.own).add_tag("t", value)
                done[("tag", value)] = f"t:{value}"
            else:
                author.own["parties"].pop(data.draw(st.integers(0, len(author.own["parties"]) - 1)))
            stored = author.save(stored)
            if action == "remove":
                return  # alone, removing is no conflict; what points to it is then the writer's own affair
    except VconConflict:
        return

    entries = {entry["label"]: (array, entry) for array in ("parties", "dialog") for entry in stored[array]}
    for label, meant in truth.items():
        found = resolved(stored, *entries[label])
        assert {**found, "note": None} == {**meant, "note": None}
    for what, value in done.items():
        if what == "member":
            assert stored["member"] == value
        elif what[0] == "note":
            assert entries[what[1]][1]["note"] == value
        else:
            assert value in Vcon(stored).tags


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_entries_that_look_alike_are_never_lost(data):
    """With entries of very few kinds, each that a writer added is stored in a form that means the same."""
    stored = {"uuid": UUID, "parties": [{"name": "p"}], "dialog": [{"type": "d", "parties": 0}], "analysis": []}
    owns = [copy.deepcopy(stored), copy.deepcopy(stored)]
    bases = [copy.deepcopy(stored), copy.deepcopy(stored)]

    def meaning(document, entry):
        if isinstance(entry.get("dialog"), int):
            return (entry["type"], meaning(document, document["dialog"][entry["dialog"]]))
        if "parties" in entry:
            return (entry["type"], document["parties"][entry["parties"]]["name"])
        return entry["name"]

    for turn in data.draw(st.permutations([0, 0, 1, 1])):
        own = owns[turn]
        for array in data.draw(st.lists(st.sampled_from(["parties", "dialog", "analysis"]), max_size=3)):
            if array == "parties":
                own["parties"].append({"name": data.draw(st.sampled_from("pq"))})
            elif array == "dialog":
                own["dialog"].append({"type": "d", "parties": data.draw(st.integers(0, len(own["parties"]) - 1))})
            else:
                own["analysis"].append({"type": "a", "dialog": data.draw(st.integers(0, len(own["dialog"]) - 1))})
        try:
            stored = copy.deepcopy(own) if bases[turn] == stored else merge(bases[turn], stored, own)
        except VconConflict:
            return
        bases[turn] = copy.deepcopy(own)

    for saved in bases:
        for array in ("parties", "dialog", "analysis"):
            stored_meanings = [meaning(stored, entry) for entry in stored[array]]
            for entry in saved[array]:
                assert stored_meanings.count(meaning(saved, entry)) >= [
                    meaning(saved, other) for other in saved[array]
                ].count(meaning(saved, entry))


def test_merging_is_quick():
    """A vCon of 50 kB merges in about two milliseconds; the limit leaves room for a slow machine."""
    words = [{"word": f"w{i}", "start": i * 0.25, "confidence": 0.5} for i in range(190)]
    base = vcon(analysis=[analysis(f"v{i}", body={"words": words}, encoding="json") for i in range(6)])
    theirs = changed(base, lambda d: d["analysis"].append(analysis("t")))
    mine = changed(base, lambda d: d["analysis"].append(analysis("m")))
    base, theirs, mine = (load(dump(document)) for document in (base, theirs, mine))

    elapsed = []
    for _ in range(20):
        start = time.thread_time()
        merge(base, theirs, mine)
        elapsed.append(time.thread_time() - start)

    assert len(dump(base)) > 45_000
    assert min(elapsed) < 0.025
