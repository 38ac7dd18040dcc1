"""What a link changed, as a person reads it."""

from __future__ import annotations

import difflib
import random
import time

import msgspec

from conserver.trial import MOST_LINES, difference

UUID = "018f3c5e-0000-8000-8000-00000000000a"


def encoded(lines: list[int]) -> bytes:
    return msgspec.json.encode({"lines": lines})


def test_a_difference_is_that_of_the_whole_texts() -> None:
    """Although only what differs is compared, with the numbers of the lines in the whole."""
    chance = random.Random(4)
    for _ in range(300):
        before = [chance.randrange(30) for _ in range(chance.randrange(12))]
        after = list(before)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(after) + 1)
            after[at : at + chance.randrange(3)] = [chance.randrange(30, 60) for _ in range(chance.randrange(3))]
        if after == before:
            continue
        texts = [msgspec.json.format(encoded(lines), indent=2).decode().splitlines() for lines in (before, after)]
        whole = difflib.unified_diff(*texts, f"{UUID} before", f"{UUID} after", n=2, lineterm="")

        patched = _patched(texts[0], difference(UUID, encoded(before), encoded(after)))
        assert patched == texts[1] == _patched(texts[0], list(whole))


def _patched(lines: list[str], told: list[str]) -> list[str]:
    """Apply a unified diff, believing its numbers."""
    assert told[:2] == [f"--- {UUID} before", f"+++ {UUID} after"]
    result: list[str] = []
    at = 0
    for line in told[2:]:
        if line.startswith("@@"):
            begin, _, count = line.split()[1].removeprefix("-").partition(",")
            to = int(begin) - (count != "0")
            result += lines[at:to]
            at = to
            assert int(line.split()[2].removeprefix("+").partition(",")[0]) == len(result) + (",0 @@" not in line)
        elif line[0] == "+":
            result.append(line[1:])
        else:
            assert lines[at] == line[1:]
            result += [lines[at]] if line[0] == " " else []
            at += 1
    return result + lines[at:]


def test_what_is_new_and_what_is_gone() -> None:
    """A vCon that was made or deleted is shown whole."""
    assert difference(UUID, b"", b'{"a":1}')[2:] == ["@@ -0,0 +1,3 @@", "+{", '+  "a": 1', "+}"]
    assert difference(UUID, b'{"a":1}', b"")[2:] == ["@@ -1,3 +0,0 @@", "-{", '-  "a": 1', "-}"]


def test_too_many_lines_are_not_compared() -> None:
    """Nobody reads them, and it would take minutes."""
    began = time.monotonic()
    told = difference(UUID, encoded([n % 700 for n in range(100_000)]), encoded([n % 900 for n in range(1, 100_000)]))

    assert told[2:] == ["(100,004 lines have become 100,003: too many to show)"]
    assert time.monotonic() - began < 20
    assert MOST_LINES < 100_000


def test_secrets_are_hidden_before_lines_are_cut() -> None:
    """Half a secret is one, too; and so is one that JSON writes in another way."""
    text = msgspec.json.encode({"a": "x" * 140 + 'half"a-secret', "b": 'half"a-secret'})
    told = "\n".join(difference(UUID, b"", text, {'half"a-secret'}))

    assert "half" not in told
    assert '+  "b": "***"' in told
