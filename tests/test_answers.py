"""conserver.answers: the JSON in what a model has said."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from conserver.answers import parsed


class Verdict(BaseModel):
    applies: bool


@pytest.mark.parametrize(
    "text",
    [
        '{"applies": true}',
        ' \n{"applies": true}\n ',
        '```json\n{"applies": true}\n```',
        '```\n{"applies": true}\n```\n',
        'Sure! Here it is:\n\n{"applies": true}\n\nAnything else?',
        'It is yes: {"applies": true}.',
    ],
)
def test_the_only_object_is_found(text: str) -> None:
    """A fence or words around it do no harm, and are not kept."""
    answer = parsed(text, Verdict)

    assert (answer.value.applies, answer.json) == (True, '{"applies": true}')


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it holds no JSON"),
        ("yes", "it holds no JSON"),
        ("true", "it is JSON, but no object"),
        ('[{"applies": true}]', "it is JSON, but no object"),
        ('Either {"applies": true} or {"applies": false}', "it holds more than one object of JSON, or a list"),
        ('```json\n[{"applies": true}]\n```', "it holds more than one object of JSON, or a list"),
        ('{"why": {"applies": true}, "app', "it holds no JSON that can be read"),
        ('as {this}: {"applies": true}', "it holds no JSON that can be read"),
        ('{"applies": NaN}', "it holds no JSON that can be read"),
        ('{"a": ' * 100_000, "it holds no JSON that can be read"),
        ("[" * 100_000 + "]" * 100_000, "it is nested too deeply|it holds no JSON that can be read"),
    ],
)
def test_what_is_ambiguous_is_refused(text: str, reason: str) -> None:
    """Rather than guessed."""
    with pytest.raises(ValueError, match=f"^(?:{reason})$"):
        parsed(text, Verdict)


def test_the_reason_of_a_refusal_quotes_nothing() -> None:
    """It goes into logs, where what was said about a conversation must not."""
    with pytest.raises(ValueError, match="applies: Input should be a valid boolean") as caught:
        parsed('{"applies": "the customer said 4711"}', Verdict)
    with pytest.raises(ValueError, match=r"^applies: Field required$"):
        parsed('{"secret": "4711"}', Verdict)

    assert "4711" not in str(caught.value)
    assert caught.value.__cause__ is None
