"""conserver.vcon: reading, writing, migrating, and the members of Vcon."""

import base64
import copy
import datetime
import decimal
import gzip
import json
import math
import re
import time
import uuid as uuids

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserver.errors import NotAVcon, VconSealed
from conserver.vcon import (
    MAX_DEPTH,
    Vcon,
    derived_uuid,
    dump,
    load,
    migrate,
    payload_of,
    to_version,
    uuid_of,
    validate,
)
from conserver.vcon_json import canonical, copied

UUID = "01928e10-193e-8231-b9a2-279e0d16bc46"
OTHER = "019f15a6-a752-826f-b9a2-279e0d16bc46"

# Text with lone surrogates as well: JSON can hold them, UTF-8 cannot.
anything = st.text(st.characters(exclude_categories=()), max_size=20)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | anything,
    lambda values: st.lists(values, max_size=4) | st.dictionaries(anything, values, max_size=4),
    max_leaves=20,
)


def b64(data):
    """Unpadded base64url, as JOSE has it."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(payload, header_uuid=None):
    """A signed vCon around the bytes; the signature is not a real one."""
    header = {"alg": "RS256", "x5c": ["MII"], **({"uuid": header_uuid} if header_uuid else {})}
    return {"payload": b64(payload), "signatures": [{"header": header, "protected": "e30", "signature": "AA"}]}


def encrypted(uuid=UUID):
    """An encrypted vCon."""
    return {
        "unprotected": {"uuid": uuid},
        "recipients": [{"header": {}, "encrypted_key": "AA"}],
        "iv": "AA",
        "ciphertext": "AA",
        "tag": "AA",
    }


def unsigned(**members):
    """The bytes of an unsigned vCon."""
    return json.dumps({"uuid": UUID, **members}).encode()


def problem(data, **options):
    """The message with which parsing refuses the data."""
    with pytest.raises(NotAVcon) as caught:
        Vcon.parse(data, **options)
    return str(caught.value)


def nested(depth, opening="[", closing="]"):
    """JSON of that many levels."""
    return (opening * depth + "1" + closing * depth).encode()


# load and dump


@given(json_values)
@settings(deadline=None)
def test_every_value_comes_back_as_it_was(value):
    """load reads what the standard library writes, and dump writes what load reads, without a change."""
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        assert canonical(load(text)) == canonical(json.loads(text))
    assert canonical(load(dump(value))) == canonical(value)
    assert canonical(copied(value)) == canonical(value)


@pytest.mark.parametrize(
    "text",
    [
        "-0.0",
        "18446744073709551616",
        "-" + "9" * 4300,
        "0.1",
        "1e22",
        "5e-324",
        "1.7976931348623157e308",
        '"\\ud83d\\ude00"',
        '"\\udc00x\\ud800"',
        '{"\\ud800":[1]}',
        '"\\u0000"',
        '{"a":1,"a":2}',
        "[1,1.0,true]",
    ],
)
def test_what_fast_parsers_change_stays(text):
    """Big integers, negative zero, surrogates and the edges of doubles survive."""
    expected = json.loads(text)

    assert repr(load(text)) == repr(expected)
    assert repr(load(dump(load(text)))) == repr(expected)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"a":\n [1, NaN]}', "not usable JSON: NaN is no JSON number, at line 2 column 6"),
        (b'{"NaN": -Infinity}', "not usable JSON: -Infinity is no JSON number, at line 1 column 9"),
        (b'{"1E400": "1E400", "a": 1E400}', "not usable JSON: 1E400 is too large for a number, at line 1 column 25"),
        (b"[1e9999999999]", "not usable JSON: 1e9999999999 is too large for a number, at line 1 column 2"),
        (b"[" + b"1" * 400 + b".0]", f"not usable JSON: {'1' * 40}... is too large for a number, at line 1 column 2"),
        (b"[" + b"1" * 4301 + b"]", f"not usable JSON: {'1' * 40}... has more than 4300 digits, at line 1 column 2"),
        (b'{"a" 1}', "not JSON: Expecting ':' delimiter at line 1 column 6"),
        (b'{"a": 1} x', "not JSON: Extra data at line 1 column 10"),
        (b'{"a":\n', "not JSON: Expecting value at line 2 column 1"),
        (b'["a\x01"]', "not JSON: Invalid control character at line 1 column 4"),
        (b"", "not JSON: it is empty"),
        (b" \n", "not JSON: it is empty"),
        (b"\xef\xbb\xbf", "not JSON: it is empty"),
        (b'{"a": "\xff"}', "not UTF-8: invalid byte 0xff at 7"),
        (b'"\xed\xa0\x80"', "not UTF-8: invalid byte 0xed at 1"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8: invalid byte 0xff at 0"),
    ],
)
def test_what_is_no_json_is_refused_with_its_place(text, message):
    """The message has what is wrong, the literal, and where it is."""
    with pytest.raises(NotAVcon) as caught:
        load(text)

    assert str(caught.value) == message


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}"), ('[{"[":', "}]")])
def test_the_depth_limit_is_the_same_everywhere(opening, closing):
    """MAX_DEPTH levels are read and written; one more is neither, whatever the parser would manage."""
    per_step = opening.replace('"[', "").count("[") + opening.count("{")
    steps = MAX_DEPTH // per_step
    deepest = load(nested(steps, opening, closing))

    assert load(dump(deepest)) == deepest
    for deeper in (steps + 1, 1000, 50_000):
        with pytest.raises(NotAVcon, match=r"nested deeper than 200 levels, at line 1 column \d+"):
            load(nested(deeper, opening, closing))
    with pytest.raises(NotAVcon, match="is nested deeper than 200 levels"):
        dump([deepest])


def test_brackets_that_do_not_nest_are_no_depth():
    """Many brackets side by side, or in text, are not refused."""
    value = [[[]] * 1000, "[" * 1000, {"{" * 500: [{}] * 500}, '"[' * 300]

    assert load(dump(value)) == value


def test_a_byte_order_mark_is_skipped():
    """Files of some editors begin with one."""
    assert load(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}
    assert load('\ufeff{"a": 1}') == {"a": 1}


def cyclic():
    """A list that contains itself."""
    value = []
    value.append(value)
    return value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "/analysis/0/body/a~1b is nan, which JSON cannot hold"),
        (-math.inf, "/analysis/0/body/a~1b is -inf, which JSON cannot hold"),
        ({1: 2}, "/analysis/0/body/a~1b has the key 1, which is no string"),
        ({None: 2}, "/analysis/0/body/a~1b has the key None, which is no string"),
        ([1, {2}], "/analysis/0/body/a~1b/1 is a set, which is no JSON value; convert it first"),
        (datetime.datetime(2026, 1, 1), "/analysis/0/body/a~1b is a datetime, which is no JSON value"),
        (decimal.Decimal("1.5"), "/analysis/0/body/a~1b is a Decimal, which is no JSON value"),
        (uuids.UUID(UUID), "/analysis/0/body/a~1b is a UUID, which is no JSON value"),
        (b"bytes", "/analysis/0/body/a~1b is a bytes, which is no JSON value"),
        ([10**4300], "/analysis/0/body/a~1b/0 is an integer of more than 4300 digits"),
        (cyclic(), "(or contains itself)"),
    ],
)
def test_what_is_no_json_value_is_never_written(value, message):
    """The encoder would write some of these as something else; the error names the JSON pointer instead."""
    vcon = Vcon({"uuid": UUID, "analysis": [{"body": {"a/b": value}}]})

    with pytest.raises(NotAVcon) as caught:
        vcon.to_bytes()

    assert str(caught.value).startswith("cannot be written as JSON: /analysis/0/body/a~1b")
    assert message in str(caught.value)


def test_what_is_json_in_other_clothes_is_written():
    """Tuples and subclasses of text, numbers and dicts have one meaning in JSON."""

    class Text(str):
        pass

    assert dump({"a": (1, (2,)), "b": Text("t"), Text("c"): type("D", (dict,), {})(d=1)}) == (
        b'{"a":[1,[2]],"b":"t","c":{"d":1}}'
    )


def test_loading_and_dumping_is_quick():
    """Both stay far below the standard library; the limit leaves room for a busy machine."""
    data = unsigned(vcon="0.4.0", dialog=[{"type": "text", "parties": [0, 1], "body": "word " * 40}] * 20)
    document = load(data)

    def best(function):
        times = []
        for _ in range(50):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    assert len(data) > 5000
    assert best(lambda: dump(load(data))) < best(lambda: json.dumps(json.loads(data))) * 1.2
    assert best(lambda: migrate(document)) < 200e-6


# parse: what is a vCon


def test_each_form_is_told_and_has_its_uuid():
    """Unsigned, signed and encrypted vCons are told apart, and each says its UUID in its own place."""
    inner = unsigned(parties=[])
    forms = {
        "unsigned": Vcon.parse(inner),
        "signed": Vcon.parse(json.dumps(signed(inner))),
        "encrypted": Vcon.parse(json.dumps(encrypted())),
    }

    assert [vcon.form for vcon in forms.values()] == list(forms)
    assert [vcon.uuid for vcon in forms.values()] == [UUID] * 3
    assert [vcon.sealed for vcon in forms.values()] == [False, True, True]


@pytest.mark.parametrize(
    "document",
    [
        signed(unsigned(), header_uuid=UUID),
        signed(gzip.compress(unsigned())),
        signed(json.dumps(signed(unsigned())).encode()),
        signed(json.dumps(encrypted()).encode()),
        signed(b"no json", header_uuid=UUID),
    ],
    ids=["header", "gzip", "signed again", "encrypted inside", "broken payload"],
)
def test_a_signed_vcon_has_the_uuid_of_its_header_or_payload(document):
    """The header is asked first; a payload is unpacked however it is wrapped, and nothing is changed."""
    before = copy.deepcopy(document)

    assert uuid_of(document) == UUID
    assert Vcon.parse(json.dumps(document)).document == before


def test_a_tower_of_signatures_is_not_climbed_for_ever():
    """Signing again and again ends at a limit, not at the memory's."""
    document = json.loads(unsigned())
    for _ in range(9):
        document = signed(json.dumps(document).encode())

    assert uuid_of(document) is None
    assert [finding.rule for finding in validate(document)] == ["E21"]


def test_a_payload_that_explodes_is_refused():
    """The payload of a signed vCon may be gzip, and gzip may be a bomb."""
    with pytest.raises(NotAVcon, match="gzip data unpacks to more than 1000 bytes"):
        payload_of(signed(gzip.compress(b" " * 2000 + unsigned())), max_bytes=1000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"[]", "a vCon is a JSON object, not an array"),
        (b"5", "a vCon is a JSON object, not a number"),
        (b"true", "a vCon is a JSON object, not a boolean"),
        (b"{}", "no vCon: the member uuid is missing"),
        (b'{"parties": []}', "no vCon: the member uuid is missing"),
        (b'{"uuid": 5}', "no vCon: uuid is '5', which is no UUID"),
        (b'{"uuid": "../../etc/passwd"}', "no vCon: uuid is '../../etc/passwd', which is no UUID"),
        (unsigned().replace(b'46"', b'46\\n"'), f"no vCon: uuid is '{UUID}\\n', which is no UUID"),
        (unsigned().replace(b"01928e10-193e", b"01928e10193e-"), "which is no UUID"),
        (unsigned(parties=5), f"vCon {UUID}: /parties must be an array, not a number"),
        (unsigned(dialog={}), f"vCon {UUID}: /dialog must be an array, not an object"),
        (unsigned(analysis=[{}, None]), f"vCon {UUID}: /analysis/1 must be an object, not null"),
        (unsigned(attachments=["x"]), f"vCon {UUID}: /attachments/0 must be an object, not a string"),
        (json.dumps(encrypted("../x")).encode(), "an encrypted vCon needs a UUID in /unprotected/uuid"),
        (json.dumps(signed(b"{}")).encode(), "a signed vCon needs a UUID in /signatures/0/header/uuid or in its"),
        (json.dumps(signed(b"x")).encode(), "a signed vCon needs a UUID in /signatures/0/header/uuid or in its"),
        (b'{"payload": 5, "signatures": 5}', "a signed vCon needs a UUID"),
    ],
)
def test_what_is_no_vcon_is_refused(data, message):
    """Only what no link could work with is refused, and the message says why."""
    assert message in problem(data)


def test_a_vcon_that_breaks_rules_is_kept():
    """Rules of the draft are reported, not enforced."""
    vcon = Vcon.parse(unsigned(parties=None, dialog=[{"type": "song"}], vcon="9.9"))

    assert vcon.document["dialog"] == [{"type": "song"}]
    assert {"E2", "E3", "E10"} <= {finding.rule for finding in validate(vcon.document)}


def test_gzip_is_read():
    """application/vcon+gzip is accepted, also in several members."""
    data = unsigned(subject="s")

    assert Vcon.parse(gzip.compress(data)).subject == "s"
    assert Vcon.parse(gzip.compress(data[:20]) + gzip.compress(data[20:])).subject == "s"


def test_sizes_are_limited():
    """A vCon that is too large is refused, compressed or not, bytes or text, before it is unpacked whole."""
    large = unsigned(subject="é" * 600)
    bomb = gzip.compress(b" " * 10_000_000)

    assert problem(large, max_bytes=1000) == f"too large: {len(large)} bytes, at most 1000 are allowed"
    assert problem(large.decode(), max_bytes=1000) == f"too large: {len(large)} bytes, at most 1000 are allowed"
    assert problem(json.loads(json.dumps("é" * 600)), max_bytes=1000).startswith("too large: 1200 bytes")
    assert problem(bomb, max_bytes=20_000) == "gzip data unpacks to more than 20000 bytes"
    assert Vcon.parse(large, max_bytes=len(large)).uuid == UUID


def test_damaged_gzip_is_refused():
    """Cut off and garbled data are told."""
    data = gzip.compress(unsigned())

    assert problem(data[:-4]) == "gzip data is cut off"
    assert problem(data + b"junk").startswith("gzip data is damaged")
    assert problem(b"\x1f\x8bjunk").startswith("gzip data is damaged")


def test_parsing_migrates_unless_told_not_to():
    """A vCon is migrated when it is parsed; a signed one never."""
    old = unsigned(vcon="0.0.1", group=[])
    sealed = json.dumps({**signed(old), "group": []})

    assert Vcon.parse(old).document == {"uuid": UUID, "vcon": "0.4.0"}
    assert Vcon.parse(old, migrate=False).document == json.loads(old)
    assert Vcon.parse(sealed).document == json.loads(sealed)


# migrate


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"appended": {"uuid": "u"}, "must_support": ["x"]}, {"amended": {"uuid": "u"}, "critical": ["x"]}),
        ({"redacted": {}, "amended": None, "appended": {}, "group": []}, {}),
        ({"group": ["kept"], "redacted": {"uuid": "u"}}, {"group": ["kept"], "redacted": {"uuid": "u"}}),
        ({"vcon": "0.0.1"}, {"vcon": "0.4.0"}),
        ({"vcon": "0.3.0"}, {"vcon": "0.4.0"}),
        ({"vcon": "1.0"}, {"vcon": "1.0"}),
        ({"created_at": "2025-02-28T16:41:55.656349123"}, {"created_at": "2025-02-28T16:41:55.656349123+00:00"}),
        ({"created_at": "2025-02-28 16:41+0130"}, {"created_at": "2025-02-28T16:41:00+01:30"}),
        ({"created_at": "2025-02-28"}, {"created_at": "2025-02-28T00:00:00+00:00"}),
        ({"created_at": "Fri, 28 Feb 2025 16:41:55 -0500"}, {"created_at": "2025-02-28T16:41:55-05:00"}),
        ({"updated_at": 1740760915.5}, {"updated_at": "2025-02-28T16:41:55.500000+00:00"}),
        ({"updated_at": "1740760915500"}, {"updated_at": "2025-02-28T16:41:55.500000+00:00"}),
        ({"created_at": "soon", "updated_at": 12}, {"created_at": "soon", "updated_at": 12}),
    ],
)
def test_members_of_old_vcons_are_renamed_and_mended(before, after):
    """The top level: renames, empty members, dates, the version."""
    document = copy.deepcopy(before)

    done = migrate(document)

    assert document == after
    assert bool(done) == (before != after)


SHA = "M5tMhHrAZNSG-FdyROznijRXmBZJIWOlxBk5XytyPXp4rj6moY0s4hLivFtR6xv6OqL11bfZ_fcONbsj-6rgRA"


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("dialog", {"mimetype": "a/b"}, {"mediatype": "a/b"}),
        ("dialog", {"mimetype": "a/b", "mediatype": None}, {"mediatype": "a/b"}),
        ("dialog", {"mimetype": "a/b", "mediatype": "a/b"}, {"mediatype": "a/b"}),
        ("dialog", {"mimetype": "a/b", "mediatype": "c/d"}, {"mimetype": "a/b", "mediatype": "c/d"}),
        ("dialog", {"alg": "SHA-512", "signature": SHA + "=="}, {"content_hash": f"sha512-{SHA}"}),
        ("dialog", {"alg": "SHA-512", "signature": "a+/="}, {"content_hash": "sha512-a-_"}),
        (
            "dialog",
            {"alg": "SHA-512", "signature": SHA, "content_hash": [f"sha512-{SHA}"]},
            {"content_hash": [f"sha512-{SHA}"]},
        ),
        (
            "dialog",
            {"alg": "SHA-512", "signature": SHA, "content_hash": "sha512-x"},
            {"alg": "SHA-512", "signature": SHA, "content_hash": "sha512-x"},
        ),
        ("dialog", {"alg": "LM-OTS", "signature": "x"}, {"alg": "LM-OTS", "signature": "x"}),
        ("dialog", {"transfer-target": 1, "target-dialog": 2}, {"transfer_target": 1, "target_dialog": 2}),
        ("dialog", {"session_id": "abc"}, {"session_id": {"local": "abc"}}),
        (
            "dialog",
            {"party_history": [{"event": "dtmfdown", "dtmf": "5", "time": "2025-02-28T00:00:00"}, 5]},
            {"party_history": [{"event": "keydown", "button": "5", "time": "2025-02-28T00:00:00+00:00"}, 5]},
        ),
        ("dialog", {"start": "2025-02-28T16:41:55"}, {"start": "2025-02-28T16:41:55+00:00"}),
        ("dialog", {"role": "x", "meta": {"a": 1}}, {"role": "x", "meta": {"a": 1}}),
        ("analysis", {"schema_version": "1", "must_support": []}, {"schema": "1", "critical": []}),
        ("analysis", {"vendor_schema": "s", "vendor_product": "p"}, {"schema": "s", "product": "p"}),
        ("analysis", {"vendor_schema": {"model": "m"}}, {"vendor_schema": {"model": "m"}}),
        ("analysis", {"transcript": {"a": 1}}, {"body": {"a": 1}, "encoding": "json"}),
        (
            "analysis",
            {"transcript": "t", "body": "b", "encoding": "none"},
            {"transcript": "t", "body": "b", "encoding": "none"},
        ),
        ("analysis", {"body": {"a": 1}, "encoding": "none"}, {"body": {"a": 1}, "encoding": "json"}),
        ("analysis", {"body": "text"}, {"body": "text", "encoding": "none"}),
        (
            "dialog",
            {"body": "hi", "mediatype": "text/plain"},
            {"body": "hi", "mediatype": "text/plain", "encoding": "none"},
        ),
        (
            "dialog",
            {"body": "AAEC", "mediatype": "audio/x-wav"},
            {"body": "AAEC", "mediatype": "audio/x-wav", "encoding": "base64url"},
        ),
        ("dialog", {"body": "A+/=", "mediatype": "audio/x-wav"}, {"body": "A+/=", "mediatype": "audio/x-wav"}),
        ("dialog", {"type": "recording", "body": "AAEC"}, {"type": "recording", "body": "AAEC"}),
        ("dialog", {"body": ""}, {"body": ""}),
        ("attachments", {"type": "tags"}, {"purpose": "tags"}),
        ("attachments", {"type": "a", "purpose": "b"}, {"type": "a", "purpose": "b"}),
        ("attachments", {"body": [1], "encoding": None}, {"body": [1], "encoding": "json"}),
    ],
)
def test_entries_of_old_vcons_are_renamed_and_mended(name, before, after):
    """Dialogs, analyses and attachments: what the draft calls otherwise today, and what it wants to be said."""
    document = {name: [copy.deepcopy(before)]}

    done = migrate(document)

    assert document == {name: [after]}
    assert bool(done) == (before != after)


def test_an_old_attachment_belongs_to_the_only_dialog():
    """The draft wants a dialog index since 0.3.0; a guess is made only where there is nothing to guess."""
    one = {"vcon": "0.0.1", "dialog": [{}], "attachments": [{"purpose": "p"}, {"purpose": "q", "dialog": 3}]}
    two = {"vcon": "0.0.1", "dialog": [{}, {}], "attachments": [{"purpose": "p"}]}
    current = {"dialog": [{}], "attachments": [{"purpose": "p"}]}

    for document in (one, two, current):
        migrate(document)

    assert [entry["dialog"] for entry in one["attachments"]] == [0, 3]
    assert two["attachments"] == current["attachments"] == [{"purpose": "p"}]


def test_migration_says_what_it_did():
    """Each change is one phrase with the place."""
    document = {"vcon": "0.0.1", "dialog": [{"mimetype": "a/b", "body": [1]}], "group": []}

    assert migrate(document) == [
        "/group: dropped, it was empty",
        "/dialog/0/mimetype: renamed to mediatype",
        "/dialog/0/encoding: missing is now json",
        "/vcon: 0.0.1 is now 0.4.0",
    ]


old_names_text = (
    "vcon group redacted amended appended must_support critical created_at parties dialog analysis "
    "attachments start mimetype mediatype alg signature content_hash body encoding type purpose "
    "transcript vendor_schema schema session_id party_history event dtmf button time transfer-target "
    "transfer_target uuid"
)
old_names = st.sampled_from(old_names_text.split())
old_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(
        ["0.0.1", "SHA-512", "none", "json", "dtmfup", "2025-01-01", "text/plain", "recording", "", "AAA="]
    )
    | anything,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(old_names, values, max_size=5),
    max_leaves=25,
)
old_entries = st.lists(st.dictionaries(old_names, old_values, max_size=6), max_size=3)
old_documents = st.fixed_dictionaries(
    {}, optional={name: old_entries for name in ("dialog", "analysis", "attachments")}
).flatmap(lambda arrays: st.dictionaries(old_names, old_values, max_size=5).map(lambda members: {**members, **arrays}))


@given(old_documents | json_values | old_values)
@settings(deadline=None, max_examples=300)
def test_migrating_twice_is_migrating_once(document):
    """Whatever the document, migration does not raise, and a second one finds nothing to do."""
    migrate(document)
    once = canonical(document)

    assert migrate(document) == []
    assert canonical(document) == once


def leaves(value):
    """The texts and numbers of a JSON value, however they are arranged."""
    if isinstance(value, (dict, list)):
        return {leaf for item in (value.values() if isinstance(value, dict) else value) for leaf in leaves(item)}
    return {repr(value)} if value not in (None, "") else set()


@given(old_documents)
@settings(deadline=None)
def test_migration_loses_no_value(document):
    """Renaming keeps both when both names are there; only what is rewritten (dates, hashes, versions) may change."""
    before = leaves(document)

    done = migrate(document)

    rewritten = [phrase for phrase in done if not re.search(r"renamed to|dropped|/encoding:", phrase)]
    assert bool(rewritten) or before <= leaves(document) | {"'none'"}


def test_a_current_document_is_left_alone():
    """Nothing is changed in a vCon of the current draft, with or without the deprecated version."""
    for members in ({}, {"vcon": "0.4.0"}):
        document = json.loads(
            unsigned(
                created_at="2026-01-01T00:00:00Z",
                dialog=[{"type": "text", "start": "2026-01-01T00:00:00.5-05:00", "body": "b", "encoding": "none"}],
                **members,
            )
        )
        before = copy.deepcopy(document)

        assert migrate(document) == []
        assert document == before


# to_version


def test_0_0_1_is_written_for_old_consumers():
    """Old names, native bodies, and the members that 0.0.1 always has; the vCon itself stays as it is."""
    document = {
        "uuid": UUID,
        "amended": {"uuid": OTHER},
        "critical": ["x"],
        "dialog": [{"type": "recording", "mediatype": "a/b", "url": "https://x", "content_hash": f"sha512-{SHA}"}],
        "analysis": [{"type": "t", "schema": "s", "body": '{"a": 1}', "encoding": "json"}],
        "attachments": [{"purpose": "tags", "body": ["a:b"], "encoding": "json"}],
    }
    before = copy.deepcopy(document)

    old = to_version(document, "0.0.1")

    assert document == before
    assert old == {
        "uuid": UUID,
        "vcon": "0.0.1",
        "appended": {"uuid": OTHER},
        "must_support": ["x"],
        "group": [],
        "redacted": {},
        "dialog": [
            {"type": "recording", "mimetype": "a/b", "url": "https://x", "alg": "SHA-512", "signature": SHA + "=="}
        ],
        "analysis": [{"type": "t", "schema_version": "s", "body": {"a": 1}, "encoding": "none"}],
        "attachments": [{"type": "tags", "body": ["a:b"], "encoding": "none"}],
    }


def test_there_and_back_is_the_same():
    """Migrating what was written for an old consumer gives the vCon back."""
    document = {
        "uuid": UUID,
        "vcon": "0.4.0",
        "created_at": "2026-01-01T00:00:00Z",
        "amended": {"uuid": OTHER},
        "parties": [{"tel": "+1"}],
        "dialog": [
            {"type": "recording", "mediatype": "a/b", "content_hash": f"sha512-{SHA}"},
            {"type": "recording", "content_hash": [f"sha512-{SHA}", "sha256-x"]},
            {"type": "transfer", "transfer_target": 0, "target_dialog": 0},
            {"type": "text", "body": "hi", "encoding": "none", "mediatype": "text/plain"},
        ],
        "analysis": [{"type": "t", "schema": "s", "body": {"a": [1]}, "encoding": "json"}],
        "attachments": [{"purpose": "tags", "dialog": 0, "body": ["a:b"], "encoding": "json"}],
    }

    again = to_version(document, "0.0.1")
    migrate(again)

    assert again == document


def test_sealed_vcons_are_copied_for_old_consumers():
    """There is no older way to write a signed vCon."""
    document = signed(unsigned())

    old = to_version(document, "0.0.1")

    assert old == document
    assert old is not document


def test_an_unknown_version_cannot_be_written():
    """The message names what can be."""
    with pytest.raises(ValueError, match=r"cannot write vCons of version '0.0.2': known are 0.0.1"):
        to_version({}, "0.0.2")


# Vcon


def test_a_new_vcon_is_current_and_has_a_uuid_of_its_own(monkeypatch):
    """build_new stamps the current draft, a UUIDv8 and the time; two of the same instant differ."""
    monkeypatch.setenv("UUID8_DOMAIN_NAME", "example.com")
    before = time.time()

    vcon = Vcon.build_new()

    assert vcon.vcon == "0.4.0"
    assert uuids.UUID(vcon.uuid).version == 8
    assert before - 1 < int(vcon.uuid[:8] + vcon.uuid[9:13], 16) / 1000 < time.time() + 1
    assert (vcon.parties, vcon.dialog, vcon.analysis, vcon.attachments) == ([], [], [], [])
    assert {finding.rule for finding in validate(vcon.document)} == set()
    assert len({Vcon.uuid8_domain_name("example.com") for _ in range(5000)}) == 5000


def test_lists_of_a_vcon_are_live():
    """Appending to a list of the vCon changes the vCon, also when the document had no such list."""
    vcon = Vcon({"uuid": UUID, "dialog": [{"type": "text"}], "analysis": None})

    parties = vcon.parties
    parties.append({"name": "Alice"})
    vcon.dialog.append({"type": "text"})
    vcon.analysis.append({"type": "a"})
    in_between = vcon.to_dict()
    parties.append({"name": "Bob"})

    assert in_between["parties"] == [{"name": "Alice"}]
    assert vcon.document["parties"] == [{"name": "Alice"}, {"name": "Bob"}]
    assert vcon.document["analysis"] == [{"type": "a"}]
    assert len(vcon.document["dialog"]) == 2


def test_looking_at_a_list_changes_nothing():
    """Reading a list that is not there leaves the document as it was."""
    vcon = Vcon.parse(unsigned())

    assert vcon.parties == vcon.dialog == vcon.analysis == vcon.attachments == vcon.tags == vcon.group == []
    assert vcon.find_dialog("type", "text") is None
    assert vcon.to_bytes() == unsigned().replace(b" ", b"")


def test_a_list_that_came_in_between_is_kept():
    """Entries for a missing list join one that the document got meanwhile."""
    vcon = Vcon({"uuid": UUID})
    parties = vcon.parties
    vcon.vcon_dict["parties"] = [{"name": "first"}]
    parties.append({"name": "second"})

    assert vcon.document["parties"] == [{"name": "first"}, {"name": "second"}]


def test_lists_can_be_replaced():
    """Assigning a list puts it into the document."""
    vcon = Vcon({"uuid": UUID})
    for name in ("parties", "dialog", "analysis", "attachments"):
        setattr(vcon, name, [{"name": name}])

    assert vcon.document == {
        "uuid": UUID,
        **{n: [{"name": n}] for n in ("parties", "dialog", "analysis", "attachments")},
    }


def test_a_sealed_vcon_takes_no_entries():
    """What is added to a signed vCon is not lost silently: it is refused when the vCon is used."""
    vcon = Vcon(signed(unsigned()))
    vcon.parties.append({"name": "late"})

    with pytest.raises(VconSealed, match=f"vCon {UUID} is signed: parties cannot be added to"):
        vcon.to_bytes()


def test_tags_are_text_and_added_once():
    """A tag is name:value; the same one is not added twice."""
    vcon = Vcon({"uuid": UUID})

    vcon.add_tag("mood", "good:very")
    vcon.add_tag("mood", "good:very")
    vcon.add_tag("n", 1)

    assert vcon.tags == ["mood:good:very", "n:1"]
    assert vcon.get_tag("mood") == "good:very"
    assert vcon.get_tag("none") is None
    assert vcon.attachments == [{"purpose": "tags", "body": ["mood:good:very", "n:1"], "encoding": "json"}]


@pytest.mark.parametrize(
    ("entry", "after"),
    [
        ({"type": "tags", "body": ["a:1"], "encoding": "none"}, ["a:1", "b:2"]),
        ({"purpose": "tags", "body": '["a:1"]', "encoding": "json"}, '["a:1","b:2"]'),
        ({"purpose": "tags", "body": {"a": 1}, "encoding": "json"}, ["a:1", "b:2"]),
        ({"purpose": "tags", "body": '{"a": "1"}', "encoding": "json"}, '["a:1","b:2"]'),
    ],
)
def test_tags_of_every_style_are_read_and_added_to(entry, after):
    """Lists, text of lists, and objects; what was text stays text."""
    vcon = Vcon({"uuid": UUID, "attachments": [entry]})

    vcon.add_tag("b", 2)

    assert vcon.tags == ["a:1", "b:2"]
    assert vcon.attachments[0]["body"] == after


def test_a_tags_attachment_that_holds_something_else_is_not_overwritten():
    """A new tag goes into an attachment of its own, and what was there stays."""
    odd = {"purpose": "tags", "body": [{"a": 1}, "x:y"]}
    vcon = Vcon({"uuid": UUID, "attachments": [dict(odd)]})
    vcon.add_tag("a", 1)
    vcon.add_tag("x", "y")

    assert vcon.tags == ["x:y", "a:1"]
    assert vcon.attachments == [odd, {"purpose": "tags", "body": ["a:1"], "encoding": "json"}]


def test_tags_of_several_attachments_are_all_read():
    """Each tag once, in the order of the document."""
    bodies = [["a:1", "b:2"], {"c": 3}, '["a:1", "d:4"]']
    vcon = Vcon({"uuid": UUID, "attachments": [{"type": "tags", "body": body} for body in bodies]})

    assert vcon.tags == ["a:1", "b:2", "c:3", "d:4"]


def test_analyses_and_attachments_are_added_and_found():
    """Bodies that are no text have the encoding json; extra members are kept."""
    vcon = Vcon({"uuid": UUID})

    transcript = vcon.add_analysis(type="transcript", dialog=0, vendor="v", body={"a": 1}, extra={"product": "p"})
    vcon.add_analysis(type="summary", dialog=None, vendor="v", body="text")
    note = vcon.add_attachment(type="note", body="n", dialog=0)

    assert vcon.analysis == [
        {"type": "transcript", "vendor": "v", "body": {"a": 1}, "encoding": "json", "product": "p", "dialog": 0},
        {"type": "summary", "vendor": "v", "body": "text", "encoding": "none"},
    ]
    assert vcon.find_analysis_by_type("transcript") is transcript
    assert vcon.attachments == [{"purpose": "note", "body": "n", "encoding": "none", "dialog": 0}]
    assert vcon.find_attachment_by_purpose("note") is vcon.find_attachment_by_type("note") is note
    assert vcon.find_analysis_by_type("x") is vcon.find_attachment_by_purpose("x") is None


def test_a_wrong_encoding_is_refused():
    """The message names what there is."""
    with pytest.raises(ValueError, match="encoding 'base64' is none of base64url, json, none"):
        Vcon().add_attachment(body="x", encoding="base64")
    with pytest.raises(ValueError, match="a base64url body must be text, not dict"):
        Vcon().add_attachment(body={}, encoding="base64url")


def test_parties_and_dialogs_are_found_by_dotted_paths():
    """A path goes through objects; what is not there is not found."""
    vcon = Vcon({"uuid": UUID})
    vcon.add_party({"tel": "+1"})
    vcon.add_party({"meta": {"role": "agent"}})
    vcon.add_dialog({"type": "text", "meta": {"n": 5}})

    assert vcon.find_party_index("meta.role", "agent") == 1
    assert vcon.find_party_index("tel.x", "agent") is None
    assert vcon.find_dialog("meta.n", 5) is vcon.dialog[0]


def test_bodies_are_decoded():
    """Text of JSON is parsed, JSON is taken as it is, and what is no JSON stays text."""
    assert Vcon.decoded_body({"body": '{"a": 1}', "encoding": "json"}) == {"a": 1}
    assert Vcon.decoded_body({"body": {"a": 1}, "encoding": "json"}) == {"a": 1}
    assert Vcon.decoded_body({"body": "plain", "encoding": "json"}) == "plain"
    assert Vcon.decoded_body({"body": "{}", "encoding": "none"}) == "{}"
    entry = {"type": "t", "body": "[1]", "encoding": "json"}
    assert Vcon.with_decoded_body(entry) == {"type": "t", "body": [1], "encoding": "json"}
    assert entry["body"] == "[1]"


def test_output_is_the_same_in_every_shape():
    """dumps, to_json, to_bytes, to_dict and hash agree; the dict is a copy."""
    vcon = Vcon.build_from_json(unsigned(subject="ü"))

    copy_of_it = vcon.to_dict()
    copy_of_it["subject"] = "other"

    assert vcon.dumps() == vcon.to_json() == vcon.to_bytes().decode() == f'{{"uuid":"{UUID}","subject":"ü"}}'
    assert vcon.subject == "ü"
    assert re.fullmatch(r"[0-9a-f]{64}", vcon.hash)
    assert vcon == Vcon.parse(vcon.to_bytes())
    assert vcon != copy_of_it
    assert repr(vcon) == f"Vcon(unsigned, uuid='{UUID}')"


def test_members_read_the_document():
    """The simple members are those of the document, or None."""
    members = {"created_at": "c", "updated_at": "u", "redacted": {"a": 1}, "amended": {"b": 1}, "group": [1]}
    vcon = Vcon({"uuid": UUID, **members})

    for name, value in members.items():
        assert getattr(vcon, name) == value
    assert vcon.appended == {"b": 1}
    assert Vcon().uuid is Vcon().redacted is Vcon().subject is None


# derived_uuid


@given(st.uuids(), anything)
def test_a_derived_uuid_is_the_same_each_time(uuid, purpose):
    """It depends on the UUID and the purpose, is a UUIDv8, and keeps the time of the first one."""
    derived = derived_uuid(str(uuid), purpose)

    assert derived == derived_uuid(str(uuid).upper(), purpose)
    assert uuids.UUID(derived).version == 8
    assert uuids.UUID(derived).variant == uuids.RFC_4122
    assert derived[:13] == str(uuid)[:13]
    assert derived != derived_uuid(str(uuid), purpose + "x")


def test_only_a_uuid_has_derived_ones():
    """Anything else is a mistake of the caller."""
    with pytest.raises(ValueError, match="'x' is no UUID"):
        derived_uuid("x", "p")


def test_an_empty_new_name_does_not_keep_the_old_one() -> None:
    """Else only a second migration would see the old name."""
    document = {"amended": {}, "appended": {"uuid": "x"}}

    migrate(document)

    assert document == {"amended": {"uuid": "x"}}
