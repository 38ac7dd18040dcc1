"""conserver.vcon_rules: every rule has a vCon that breaks it, and a line in the documentation."""

import base64
import copy
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conserver.vcon import RULES, VconFinding, validate

UUID = "01928e10-193e-8231-b9a2-279e0d16bc46"
PAGE = Path(__file__).parent.parent / "docs" / "reference" / "vcon.md"
DATE = "2026-01-01T00:00:00Z"
HASH = "sha512-" + "A" * 86


def vcon(**members):
    """A vCon that breaks no rule, with other members in place of its own."""
    return {
        "uuid": UUID,
        "created_at": DATE,
        "parties": [{"tel": "+1"}, {"tel": "+2", "name": "Bob", "validation": "none"}],
        "dialog": [
            {"type": "recording", "start": DATE, "parties": [0, [1], None], "url": "https://x/a", "content_hash": HASH},
            {"type": "text", "start": DATE, "parties": 0, "body": "hi", "encoding": "none", "mediatype": "text/plain"},
            {},
        ],
        "analysis": [{"type": "summary", "vendor": "v", "dialog": [0, 1], "body": {"a": 1}, "encoding": "json"}],
        "attachments": [
            {"purpose": "p", "start": DATE, "party": 0, "dialog": 0, "body": "YQ", "encoding": "base64url"}
        ],
        **members,
    }


def dialog(**members):
    """A vCon whose third dialog is a text with these members."""
    document = vcon()
    document["dialog"][2] = {"type": "text", "start": DATE, **members}
    return document


def transfer(**members):
    """A vCon whose third dialog is a transfer."""
    roles = {"transferee": 0, "transferor": 1, "transfer_target": [0], "original": 0, "target_dialog": [1]}
    return dialog(type="transfer", **{**roles, **members})


def recording_set(back=3, **members):
    """A vCon with a set of one recording, which points to `back`."""
    document = vcon()
    document["dialog"][2] = {"type": "recording", "start": DATE, "recording_set": back}
    document["dialog"].append({"type": "recording-set", "start": DATE, "recordings": [2], **members})
    return document


def signed(payload, **header):
    """A signed vCon around a document, or around what is none."""
    data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    text = base64.urlsafe_b64encode(data).rstrip(b"=").decode()
    entry = {"header": {"x5u": "https://x/cert", **header}, "protected": "e30", "signature": "AA"}
    return {"payload": text, "signatures": [entry]}


def encrypted(**members):
    """An encrypted vCon."""
    parts = dict.fromkeys(("iv", "ciphertext", "tag"), "AA")
    return {"unprotected": {"uuid": UUID}, "recipients": [{"encrypted_key": "AA"}], **parts, **members}


def history(*items):
    """A vCon with this party history."""
    return dialog(party_history=[{"party": 0, "time": DATE, **item} for item in items])


GOOD = {
    "unsigned": vcon(),
    "nothing but what must be": {"uuid": UUID, "created_at": DATE},
    "transfer": transfer(),
    "incomplete": dialog(type="incomplete", disposition="busy"),
    "recording set": recording_set(),
    "history": history({"event": "join"}, {"event": "keydown", "button": "5"}),
    "session": dialog(parties=[0, [1]], session_id=[{"local": "a", "remote": "b"}, [{}]]),
    "redacted": vcon(redacted={"type": "PII", "uuid": UUID}),
    "amended": vcon(amended={"url": "https://x", "content_hash": [HASH, "sha256-AA"]}),
    "extension": vcon(extensions=["CC"], strange=1),
    "leap second": vcon(created_at="2016-12-31T23:59:60Z", updated_at="2016-12-31t23:59:60.5z"),
    "signed": signed(vcon(), uuid=UUID),
    "signed again": signed(signed(vcon())),
    "signed, old payload": signed(vcon(vcon="0.0.1", group=[])),
    "encrypted": encrypted(),
}

# What breaks each rule: the document, and the pointer and a part of the message that must be found.
BROKEN = {
    "E0": [
        ([], "", "a vCon is a JSON object, not an array"),
        (vcon(parties=5), "/parties", "must be an array, not 5"),
        (vcon(analysis=[None]), "/analysis/0", "must be an object, not missing"),
    ],
    "E1": [
        (vcon(uuid="x"), "/uuid", "is 'x'; it must be a UUID such as"),
        ({"created_at": DATE}, "/uuid", "is missing"),
    ],
    "E2": [
        ({"uuid": UUID}, "/created_at", "is missing"),
        (vcon(created_at="2026-01-01T00:00:00"), "/created_at", "write it like 2026-01-31T12:00:00Z, with a zone"),
        (vcon(updated_at="2026-02-31T00:00:00Z"), "/updated_at", "is '2026-02-31T00:00:00Z'"),
        (vcon(updated_at=5), "/updated_at", "is 5"),
        (dialog(start="2026-01-01T25:00:00Z"), "/dialog/2/start", "is '2026-01-01T25"),
        (history({"event": "join", "time": "now"}), "/dialog/2/party_history/0/time", "is 'now'"),
        (vcon(attachments=[{"start": "x", "party": 0, "dialog": 0}]), "/attachments/0/start", "is 'x'"),
    ],
    "E3": [(vcon(vcon="0.0.1"), "/vcon", "is '0.0.1'; leave it out, or migrate the vCon and write 0.4.0")],
    "E4": [(vcon(redacted={"type": "t"}, amended={"uuid": UUID}), "/amended", "stands beside /redacted")],
    "E5": [(vcon(critical=["x"], extensions=["x"]), "/critical/0", "'x' is not supported here")],
    "E6": [
        (dialog(url="https://x"), "/dialog/2/content_hash", "is missing; a url needs it"),
        (dialog(url="http://x", content_hash=HASH), "/dialog/2/url", "is 'http://x'; it must begin with https://"),
        (vcon(redacted={"type": "t", "url": 5, "content_hash": HASH}), "/redacted/url", "is 5"),
    ],
    "E7": [
        (dialog(content_hash="SHA-512"), "/dialog/2/content_hash", "it must be like sha512-"),
        (dialog(content_hash="sha512-AA"), "/dialog/2/content_hash", "has 2 characters after sha512-, not 86"),
        (dialog(content_hash=[]), "/dialog/2/content_hash", "is an empty list"),
        (dialog(content_hash=[HASH, 5]), "/dialog/2/content_hash/1", "is 5"),
    ],
    "E8": [
        (dialog(body="x", mediatype="text/plain"), "/dialog/2/encoding", "is missing; it must be base64url, json"),
        (dialog(body="x", mediatype="text/plain", encoding=[]), "/dialog/2/encoding", "is an array"),
        (dialog(body=[1], mediatype="text/plain", encoding="none"), "/dialog/2/body", "must be a string"),
        (dialog(body="a+b/", mediatype="text/plain", encoding="base64url"), "/dialog/2/body", "is no base64url"),
        (dialog(body="abcde", mediatype="text/plain", encoding="base64url"), "/dialog/2/body", "is no base64url"),
    ],
    "E9": [(dialog(body="x", encoding="none"), "/dialog/2/mediatype", "is missing; an inline body needs it")],
    "E10": [
        (dialog(type="song"), "/dialog/2/type", "is 'song'; it must be one of recording, recording-set, text"),
        (vcon(dialog=[{"type": "text"}], analysis=[], attachments=[]), "/dialog/0/start", "is missing"),
    ],
    "E11": [
        (dialog(type="incomplete"), "/dialog/2/disposition", "is missing; it must be one of no-answer"),
        (dialog(type="incomplete", disposition="sad"), "/dialog/2/disposition", "is 'sad'"),
        (dialog(disposition="busy"), "/dialog/2/disposition", "belongs to incomplete dialogs, not to 'text'"),
        (
            dialog(type="incomplete", disposition="busy", body="x", encoding="none", mediatype="text/plain"),
            "/dialog/2/body",
            "must not be in a dialog of type incomplete",
        ),
    ],
    "E12": [
        (transfer(parties=[0]), "/dialog/2/parties", "must not be in a dialog of type transfer"),
        (transfer(filename="f"), "/dialog/2/filename", "must not be in a dialog of type transfer"),
        (transfer(content_hash=HASH), "/dialog/2/content_hash", "must not be in a dialog of type transfer"),
    ],
    "E13": [(dialog(transferee=0), "/dialog/2/transferee", "belongs to transfers, not to 'text'")],
    "E14": [
        (recording_set(recordings=None), "/dialog/3/recordings", "must list the recordings of the set"),
        (recording_set(recordings=[1]), "/dialog/3/recordings/0", "/dialog/1 is 'text', no recording"),
        (recording_set(url="https://x", content_hash=HASH), "/dialog/3/url", "must not be in a dialog of type"),
        (dialog(recordings=[0]), "/dialog/2/recordings", "belongs to recording-sets, not to 'text'"),
        (dialog(recording_set=0), "/dialog/2/recording_set", "belongs to recordings, not to 'text'"),
    ],
    "E15": [
        (dialog(parties=[0, [2]]), "/dialog/2/parties/1/0", "is 2, but /parties has 2 entries"),
        (dialog(originator=9), "/dialog/2/originator", "is 9, but /parties has 2 entries"),
        (transfer(transferee=9), "/dialog/2/transferee", "is 9"),
        (transfer(transferor=9), "/dialog/2/transferor", "is 9"),
        (transfer(transfer_target=[0, 9]), "/dialog/2/transfer_target/1", "is 9"),
        (transfer(original=9), "/dialog/2/original", "is 9, but /dialog has 3 entries"),
        (transfer(consultation=[9]), "/dialog/2/consultation/0", "is 9"),
        (transfer(target_dialog=9), "/dialog/2/target_dialog", "is 9"),
        (recording_set(recordings=[9]), "/dialog/3/recordings/0", "is 9"),
        (recording_set(back=9), "/dialog/2/recording_set", "is 9"),
        (history({"event": "join", "party": 9}), "/dialog/2/party_history/0/party", "is 9"),
        (vcon(attachments=[{"start": DATE, "party": 9, "dialog": 0}]), "/attachments/0/party", "is 9"),
        (vcon(attachments=[{"start": DATE, "party": 0, "dialog": 9}]), "/attachments/0/dialog", "is 9"),
        (vcon(analysis=[{"type": "t", "vendor": "v", "dialog": 3}]), "/analysis/0/dialog", "is 3"),
        (vcon(analysis=[{"type": "t", "vendor": "v", "attachment": [1]}]), "/analysis/0/attachment/0", "is 1"),
    ],
    "E16": [
        (dialog(parties=True), "/dialog/2/parties", "is True; an index into /parties is an integer from 0"),
        (dialog(originator=1.0), "/dialog/2/originator", "is 1.0"),
        (dialog(originator=-1), "/dialog/2/originator", "is -1"),
        (dialog(parties=[[[0]]]), "/dialog/2/parties/0/0", "is an array"),
        (dialog(originator="0"), "/dialog/2/originator", "is '0'"),
    ],
    "E17": [
        (history({"event": "sneeze"}), "/dialog/2/party_history/0/event", "is 'sneeze'; it must be one of join"),
        (history({"event": "keyup"}), "/dialog/2/party_history/0/button", "is missing; keyup needs it"),
        (dialog(party_history=[5]), "/dialog/2/party_history/0", "must be an object, not 5"),
    ],
    "E18": [
        (dialog(session_id="abc"), "/dialog/2/session_id", "must be an object, or a list that mirrors parties"),
        (dialog(parties=[0, 1], session_id=[{}]), "/dialog/2/session_id", "mirrors parties"),
        (dialog(parties=[0, [1]], session_id=[{}, [5]]), "/dialog/2/session_id", "mirrors parties"),
    ],
    "E19": [
        (vcon(analysis=[{"vendor": "v"}]), "/analysis/0/type", "is missing; it must be a string"),
        (vcon(analysis=[{"type": "t", "vendor": 5}]), "/analysis/0/vendor", "is 5; it must be a string"),
        (vcon(attachments=[{"start": DATE, "dialog": 0}]), "/attachments/0/party", "is missing"),
    ],
    "E20": [(vcon(redacted={"uuid": UUID}), "/redacted/type", "is missing; say what kind of redaction it is")],
    "E21": [
        (signed(b"no json"), "/payload", "not JSON"),
        ({"payload": "!", "signatures": [signed(vcon())["signatures"][0]]}, "/payload", "is no base64url"),
        ({"payload": 5, "signatures": []}, "/signatures", "must be an array with at least one signature"),
        ({**signed(vcon()), "signatures": [5]}, "/signatures/0", "must be an object, not 5"),
        ({**signed(vcon()), "signatures": [{}]}, "/signatures/0/protected", "is missing, or is no string"),
        (signed(vcon(), x5u="http://x"), "/signatures/0/header", "needs the certificates in x5c"),
    ],
    "E22": [(signed(vcon(), uuid=UUID[:-1] + "7"), "/signatures/0/header/uuid", f"but the payload is vCon {UUID}")],
    "E23": [
        (encrypted(recipients=[]), "/recipients", "must be an array with at least one recipient"),
        (encrypted(tag=None), "/tag", "is missing, or is no string"),
    ],
    "E24": [(encrypted(unprotected=None), "/unprotected/uuid", "is missing; without it nobody can tell")],
    "W1": [(vcon(uuid=UUID[:14] + "4" + UUID[15:]), "/uuid", "is a UUID of version 4; the draft asks for version 8")],
    "W2": [(vcon(updated_at="2026-01-01T00:30:00+01:00"), "/updated_at", f"is before created_at {DATE}")],
    "W3": [(vcon(critical=["x"]), "/critical/0", "'x' is missing in /extensions")],
    "W4": [
        (vcon(strange=1), "", "'strange' is not in the draft; name the extension in /extensions"),
        (vcon(parties=[{"role": "a", "meta": {}}, {}]), "/parties/0", "'role, meta' is not in the draft"),
    ],
    "W5": [
        (
            dialog(url="https://x", content_hash=HASH, body="b", encoding="none", mediatype="text/plain"),
            "/dialog/2/body",
            "stands beside url",
        )
    ],
    "W6": [(transfer(original=None), "/dialog/2/original", "is missing in this transfer")],
    "W7": [(recording_set(back=0), "/dialog/2/recording_set", "does not point back to the set /dialog/3")],
    "W8": [(vcon(parties=[{"did": "x"}, {}]), "/parties/0/did", "'x' does not begin with did:")],
    "W9": [(vcon(parties=[{"name": "Al"}, {"name": "anonymous"}]), "/parties/0/validation", "is missing; say how")],
    "W10": [
        (
            vcon(dialog=[{"type": "text", "start": DATE, "message_id": "m"}] * 2),
            "/dialog/1/message_id",
            "'m' is also in /dialog/0",
        )
    ],
    "W11": [(dialog(mediatype="image/png; a=b"), "/dialog/2/mediatype", "'image/png; a=b' is none of text/plain")],
    "W12": [(vcon(attachments=[{"purpose": "tags", "dialog": 0}]), "/attachments/0/party", "is missing")],
}


@pytest.mark.parametrize("document", GOOD.values(), ids=GOOD.keys())
def test_a_vcon_that_follows_the_draft_has_no_findings(document):
    """What the draft allows is not reported, in any form."""
    assert validate(document) == []


@pytest.mark.parametrize(
    ("rule", "document", "pointer", "message"),
    [(rule, *case) for rule, cases in BROKEN.items() for case in cases],
)
def test_what_breaks_a_rule_is_found(rule, document, pointer, message):
    """The finding names the rule, the place, the value and what to do; the document stays as it is."""
    before = copy.deepcopy(document)

    findings = [f for f in validate(document) if f.rule == rule and f.pointer == pointer and message in f.message]

    assert len(findings) == 1
    assert findings[0].level == ("error" if rule[0] == "E" else "warning")
    assert document == before


def test_every_rule_has_a_breaking_document():
    """A rule that nothing breaks would be no rule."""
    assert list(BROKEN) == list(RULES)


def test_every_rule_is_documented():
    """The page lists each rule with the words of the code."""
    rows = dict(re.findall(r"^\| ([EW]\d+) \| (.*?) \|$", PAGE.read_text(), re.MULTILINE))

    assert rows == RULES


def test_a_supported_extension_may_be_critical():
    """What the caller says it supports is no error."""
    document = vcon(critical=["x"], extensions=["x"])

    assert validate(document, supported={"x"}) == []


def test_findings_of_a_payload_say_so():
    """A signed vCon's payload is checked after migration, and pointers into it begin with /payload."""
    findings = validate(signed(signed(vcon(vcon="0.0.1", created_at=None))))

    assert findings == [VconFinding("E2", "error", "/payload/payload/created_at", "is missing")]
    assert str(findings[0]) == "/payload/payload/created_at: error[E2] is missing"


names_text = (
    "uuid created_at updated_at vcon redacted amended critical extensions parties dialog analysis "
    "attachments group type start url body encoding content_hash mediatype disposition recordings "
    "recording_set transferee original party_history event button time session_id message_id did "
    "name purpose payload signatures header protected signature x5c x5u ciphertext recipients "
    "unprotected originator party attachment"
)
names = st.sampled_from(names_text.split())
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-2, 3)
    | st.just(10**4000)
    | st.floats()
    | st.sampled_from(
        [UUID, DATE, HASH, "0.4.0", "none", "json", "base64url", "recording", "recording-set", "transfer"]
    )
    | st.sampled_from(["incomplete", "https://x", "keydown", "tags", "e30", "bnVsbA", "\ud800"])
    | st.text(max_size=8)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=6), max_leaves=30
)
entries = st.lists(st.dictionaries(names, values, max_size=8), max_size=3)
documents = st.fixed_dictionaries(
    {}, optional={name: entries | values for name in ("parties", "dialog", "analysis", "attachments")}
)


@given(values | documents)
@settings(deadline=None, max_examples=400)
def test_checking_never_raises(document):
    """Whatever it is given, validate answers with findings of known rules."""
    assert {finding.rule for finding in validate(document)} <= set(RULES)


def test_checking_survives_what_is_very_deep():
    """Values that no door lets in are no reason to fall over."""
    deep = []
    for _ in range(5000):
        deep = [deep]

    assert validate(deep)
    assert validate(dialog(parties=deep, session_id=deep, content_hash=deep, body=deep, type=deep))
