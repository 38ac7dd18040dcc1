"""Rules about what a storage holds: vCons of all kinds, saved again, deleted, by many threads."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

from conserver.differences import difference, short
from conserver.errors import VconNotFound
from conserver.testing.calls import two_party_call, uuid_of
from conserver.testing.case import Case, must
from conserver.vcon import Vcon


def saves(case: Case) -> None:
    """Nothing is raised."""
    case.put(two_party_call())


def save_then_get(case: Case) -> None:
    """An ordinary vCon is the same JSON value again."""
    case.keeps(two_party_call())


def no_options_change(case: Case) -> None:
    """All threads share one set of options."""
    before = copy.deepcopy(case.storage.options)
    case.put(two_party_call())
    must(before == case.storage.options, "save changed its options, which all threads share")


def saved_twice(case: Case) -> None:
    """The later save replaces all of the earlier one, also where places are named after the date."""
    vcon = two_party_call()
    case.put(vcon)
    vcon.add_tag("said", "twice")
    vcon.document["created_at"] = "2001-02-03T04:05:06+00:00"
    uuid = case.keeps(vcon)
    if case.storage.delete is not None:
        case.delete(uuid)
        must(case.get(uuid) is None, "a vCon that was saved twice is still there after one delete")


def shrinks(case: Case) -> None:
    """Parts that the later version lacks are gone."""
    vcon = two_party_call()
    for _ in range(5):
        vcon.add_dialog(copy.deepcopy(vcon.dialog[0]))
    case.put(vcon)
    del vcon.dialog[1:], vcon.parties[1:]
    vcon.analysis.clear()
    case.keeps(vcon)


def unknown_is_none(case: Case) -> None:
    """What was never saved is no error."""
    found = case.get(uuid_of(two_party_call()))
    must(found is None, f"get returned {short(found)}, not None, for a UUID that was never saved")


def missing_raises(case: Case) -> None:
    """A vCon that is not there to be saved is told, not passed over."""
    uuid = uuid_of(two_party_call())
    try:
        with case.chain():
            case.storage.save(uuid, case.storage.options)
    except VconNotFound:
        return
    raise AssertionError("save of a vCon that does not exist must raise VconNotFound")


def deletes(case: Case) -> None:
    """One delete takes one vCon, and says whether there was one."""
    other = case.put(two_party_call())
    uuid = case.put(two_party_call())
    first, found, again = case.delete(uuid), case.get(uuid), case.delete(uuid)
    must(first is True, f"delete returned {first!r}, not True, for a vCon that was saved")
    must(found is None, "get still finds a vCon that was deleted")
    must(again is False, f"delete returned {again!r}, not False, for a vCon that is gone")
    must(case.get(other) is not None, "delete of one vCon took another one along")


def lists(case: Case) -> None:
    """All of them, each once, in order, and from any of them on; a deleted one is not among them."""
    saved = {case.put(two_party_call()) for _ in range(5)}
    listed = case.uuids()
    must(saved <= {*listed}, f"list_uuids named {len(saved & {*listed})} of 5 vCons that were saved")
    must(listed == sorted({*listed}), "list_uuids must name each vCon once, in the order of the UUIDs as text")
    middle = sorted(saved)[2]
    must(case.uuids(middle) == [uuid for uuid in listed if uuid > middle], "list_uuids must go on behind *after*")
    if case.storage.delete is not None:
        case.delete(middle)
        must(middle not in case.uuids(), "list_uuids named a vCon that was deleted")


def unicode(case: Case) -> None:
    """Text of all scripts, and what a query language could take for its own."""
    vcon = two_party_call()
    vcon.document["subject"] = "žluťoučký kůň 馬 🐎 \u202eשלם\u202c e\u0301 \u2028 \x7f \\ \" ' ; -- %s {}"
    vcon.parties[0]["name"] = "Ἀδα\nMoss\t"
    case.keeps(vcon)


def awkward_text(case: Case) -> None:
    """What JSON can say and many a database refuses: NUL, half a pair of surrogates, odd names of members."""
    vcon = two_party_call()
    vcon.document["subject"] = "before\0after"
    vcon.parties[0]["name"] = "\ud800 Moss"
    vcon.document["x_texts"] = ["\0", "\udfff", "\uffff\ufdd0", "\\u0000", "\r\n"]
    vcon.document["x_names"] = {"a\0b": 1, "$where": 2, "a.b": 3, "": 4, "__proto__": {}, "\ud800": 5, " ": 6}
    case.keeps(vcon)


def numbers(case: Case) -> None:
    """Integers of any size, and numbers that are not integers though they look like them."""
    vcon = two_party_call()
    vcon.document["x_numbers"] = [2**53 + 1, 2**63, -(2**70), 10**30, 0.1, 1e-320, 1.0, 1e5, 1e22, 1.7e308, True, None]
    case.keeps(vcon)


def unknown_members(case: Case) -> None:
    """What no draft knows is kept, and in its order where that counts."""
    vcon = two_party_call()
    vcon.document["x_unknown"] = {"": [{}, [], {"$set.a": None}], "_id": 7}
    vcon.dialog[0]["x_trunk"] = ["a", {"b": 1}]
    case.keeps(vcon)


def undated(case: Case) -> None:
    """`created_at` is missing, or no date."""
    vcon = two_party_call()
    vcon.document["created_at"] = "yesterday"
    case.keeps(vcon)
    bare = two_party_call()
    case.keeps(Vcon({"vcon": "0.4.0", "uuid": bare.uuid, "parties": []}))


def signed(case: Case) -> None:
    """The envelope is kept as it is, or the signature would not hold."""
    uuid = uuid_of(two_party_call())
    signature = {"header": {"uuid": uuid}, "protected": "eyJhbGciOiJSUzI1NiJ9", "signature": "c2lnbmF0dXJl"}
    case.keeps(Vcon({"payload": "eyJwYXJ0aWVzIjpbXX0", "signatures": [signature]}))


def large(case: Case) -> None:
    """A recording inside of the vCon."""
    vcon = two_party_call()
    vcon.dialog[0].update(body="QUJD" * 1_250_000, encoding="base64url")
    del vcon.dialog[0]["url"]
    case.keeps(vcon)


def at_once(case: Case) -> None:
    """64 vCons from 16 threads."""

    def one(number: int) -> None:
        vcon = two_party_call()
        vcon.document["subject"] = f"call {number}"
        if case.storage.get is None:
            case.put(vcon)
        else:
            case.keeps(vcon)

    with ThreadPoolExecutor(16) as threads:
        list(threads.map(one, range(64)))


def one_at_once(case: Case) -> None:
    """Saves of one vCon that meet leave one whole version: the retry of a save may overtake it."""
    versions = []
    for number in range(16):
        vcon = two_party_call("0190c0de-1234-8567-8000-00000000abcd")
        vcon.document["subject"] = f"version {number}"
        for _ in range(number):
            vcon.add_dialog(copy.deepcopy(vcon.dialog[0]))
        versions.append(vcon)
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(case.put, versions))
    found = case.get(uuid_of(versions[0]))
    whole = any(not difference(vcon.document, found) for vcon in versions)
    must(whole, f"16 saves of one vCon left {short(found)}, which is none of its versions")
