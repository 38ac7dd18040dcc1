"""conserver.extract: programs of clients, which get results and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from conserver import extract as extracting
from conserver.extract import Language, NotExtracted, extract

pytest.importorskip("jq")
pytest.importorskip("jsonpath")

DOCUMENT = {"parties": [{"tel": "+15550100", "name": "Ann"}, {"name": "Bób 🎧"}], "n": 12345678901234567890123}
TEXT = json.dumps(DOCUMENT, ensure_ascii=False).encode()


def refused(language: Language, program: str, text: bytes = TEXT) -> NotExtracted:
    """What is said of a program."""
    with pytest.raises(NotExtracted) as caught:
        extract(language, program, text)
    return caught.value


@pytest.mark.parametrize(
    ("program", "results"),
    [
        (".parties[].name, .n, .none, nan, empty", '["Ann","Bób 🎧",12345678901234567890123,null,null]'),
        ("def f: .n; f # the number", "[12345678901234567890123]"),
        (". as $v | label $out | $v.parties[0].tel, break $out, 1", '["+15550100"]'),
    ],
)
def test_jq_gives_all_outputs(program: str, results: str) -> None:
    """In their order, with numbers as they are written."""
    assert extract("jq", program, TEXT) == results.encode()


@pytest.mark.parametrize(
    ("program", "results"),
    [
        ("$.parties[*].name", '["Ann","Bób 🎧"]'),
        ("$['n', 'none']", "[12345678901234567890123]"),
        ("$.parties[?@.tel && match(@.name, 'A.*')]", '[{"tel":"+15550100","name":"Ann"}]'),
    ],
)
def test_jsonpath_gives_all_values(program: str, results: str) -> None:
    """As RFC 9535 has them."""
    assert extract("jsonpath", program, TEXT) == results.encode()


@pytest.mark.parametrize(
    ("language", "program", "words"),
    [
        ("jq", ".a[", "syntax error, unexpected end of file"),
        ("jq", "nothing", "nothing/0 is not defined"),
        ("jq", ".n.a", "Cannot index number"),
        ("jq", 'error("mine")', "mine"),
        ("jq", "input", "break"),
        ("jq", ".) | (.", "syntax error"),
        ("jsonpath", "parties", "expected 'TOKEN_ROOT'"),
        ("jsonpath", "", "expected"),
        ("jsonpath", "$.", "expected a shorthand selector"),
        ("jsonpath", "$[?" + "(" * 5000 + "@" + ")" * 5000 + "]", "recursion"),
    ],
)
def test_a_bad_program_is_refused_in_the_words_of_its_language(language: Language, program: str, words: str) -> None:
    """Whatever went wrong."""
    error = refused(language, program)

    assert error.reason == "invalid-filter"
    assert words in str(error)


def test_a_program_sees_no_environment_and_no_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither in variables, nor as modules or data, nor of other inputs."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    (tmp_path / "data.json").write_text('"sk-secret"')
    (tmp_path / "code.jq").write_text('"sk-secret" (((')
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".jq").write_text('def mine: "sk-secret";')

    assert extract("jq", "env, $ENV, input_filename", TEXT) == b"[{},{},null]"
    for program in ('import "data" as $d {search: "%s"}; $d', 'include "code" {search: "%s"}; f', "mine"):
        error = refused("jq", program % tmp_path if "%s" in program else program)
        assert error.reason == "invalid-filter"
        assert "sk-secret" not in str(error)


@pytest.mark.parametrize(
    ("language", "program"),
    [("jq", "def f: f; f"), ("jsonpath", "$[?match(@, '(a|a)*b')]")],
)
def test_a_program_has_so_much_time(monkeypatch: pytest.MonkeyPatch, language: Language, program: str) -> None:
    """It says how much."""
    monkeypatch.setattr(extracting, "LIMIT_SECS", 0.5)

    error = refused(language, program, json.dumps(["a" * 60]).encode())

    assert error.reason == "too-slow"
    assert str(error) == "it takes longer than 0.5 s: ask for less"


@pytest.mark.parametrize(
    "program",
    ["def f: 1 + f; f", '"a" * 20000000'],
)
def test_a_program_has_so_much_memory(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """And its results so much room; the process of this one is spared."""
    monkeypatch.setattr(extracting, "LIMIT_SECS", 60.0)

    error = refused("jq", program)

    assert error.reason == "too-large"
    assert "it needs more than 1024 MB, or gives more than 16 MB" in str(error)


def test_half_of_a_surrogate_pair_spoils_nothing() -> None:
    """JSON allows it, jq does not."""
    text = b'{"a": "x\\ud83dy", "b": "\\ud83c\\udfa7"}'

    assert extract("jq", ".a, .b", text) == '["x?y","🎧"]'.encode()
    assert extract("jsonpath", "$.b", text) == '["🎧"]'.encode()


def test_nothing_is_left_of_it() -> None:
    """No child, no open pipe."""
    extract("jq", ".", TEXT)
    before = len(os.listdir("/proc/self/fd"))

    extract("jq", ".", TEXT)

    assert len(os.listdir("/proc/self/fd")) == before
