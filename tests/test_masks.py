"""conserver.masks: what readers of a config do not see, and how it comes back from what they send."""

from __future__ import annotations

import copy
import json
import time
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from conserver.findings import ConfigRefused, Substituted
from conserver.masks import MASK, hidden_in, masked, same, unmasked

SECRETS = """\
ingress_auth:
  partner_in: hush-partner
  other_in: [hush-first, hush-second]
  odd_in: {list: [hush-nested]}
api:
  tokens:
    billing: {digest: "sha256:hush-digest", scopes: [read, "ingress:partner_in"]}
imports:
  private: {module: acme, pip_name: git+https://hush-pip@git.example/acme.git}
followers:
  peer: {url: "https://who:hush-peer@peer.example/api", auth_token: hush-follower, egress_list: out}
hooks: {api_token: hush-hook}
links:
  hook:
    module: links.webhook
    options:
      webhook-urls: ["https://hooks.slack.com/services/hush-slack", "https://a.example/?sig=hush-sig&to=a"]
      headers: {Authorization: Bearer hush-bearer, X-Mine: hush-header, Content-Type: application/json}
      lines: ["Authorization: Token hush-line-1", "curl -H 'bearer hush-line-2'"]
  ask:
    module: links.analyze
    options:
      OPENAI_API_KEY: hush-openai
      pin: 1234567890
      nested: {credentials: {user: hush-user, list: [hush-list]}, passphrase: hush-phrase}
      prompt: 'answer as {"api_key": "hush-json"}, not sk-hush0hush0hush0hush'
      pem: "-----BEGIN RSA PRIVATE KEY-----\\nhush-pem\\n-----END RSA PRIVATE KEY-----"
      model: gpt
storages:
  sql:
    module: storages.postgres
    options:
      a: host=db user=me password=hush-libpq dbname=vcons
      b: host=db password='hush quoted' dbname=vcons
      c: "Server=db;Pwd={hush;braces};Database=v"
      d: DefaultEndpointsProtocol=https;AccountKey=hush-azure==;EndpointSuffix=core
      e: redis://:hush-redis@db:6379/0
      f: postgresql://me:hush/slash@db/vcons
      g: mongodb://me:hush@at@one,two/vcons?retry=1
      h: amqp://one:hush-one@a,amqp://two:hush-two@b
      i: https://me@db.example/x?access_token=hush-query
      j: "redis://:hush space@db"
x-spare: {shared_secret: {any: {where: hush-deep}}}
"""


def refusals(posted: Any, stored: Any) -> list[tuple[str, str]]:
    with pytest.raises(ConfigRefused) as refused:
        unmasked(posted, stored)
    assert all(remark.level == "error" and remark.rule == "masked" for remark in refused.value.remarks)
    return [(remark.pointer, remark.message) for remark in refused.value.remarks]


def test_no_secret_of_any_kind_is_shown() -> None:
    """Whether its field says so, or the text around it, or the section that it stands in."""
    config = yaml.safe_load(SECRETS)

    shown = json.dumps(masked(config))
    assert "hush" not in shown
    assert "1234567890" not in shown
    assert {text for text in hidden_in(config) if "hush" not in text} == {"1234567890", "me"}


def test_what_is_no_secret_is_shown() -> None:
    """Names of links, hosts, harmless headers, limits and what only sounds like a secret."""
    config = {
        "links": {"token-counter": {"module": "links.tag", "options": {"max_tokens": 400, "author": "me"}}},
        "chains": {"authors": {"links": ["token-counter"], "enabled": True}},
        "outbound": {"allow_private": ["10.0.0.0/8"]},
        "storages": {
            "s": {"options": {"password": "", "api_key": None, "verify_token": True, "keywords": ["refund"]}},
            "h": {"options": {"headers": {"content-type": "text/plain"}, "url": "https://a.example:80/p?x=1"}},
            "q": {"options": {"filter": '.key == "a" and .token != "b"', "mail": "see http://a.example: or ask b@c"}},
        },
    }

    assert masked(config) == config


def test_only_the_part_that_is_secret_is_masked() -> None:
    """A reader still sees which host and which database."""
    shown = masked(yaml.safe_load(SECRETS))

    options = shown["storages"]["sql"]["options"]
    assert options["a"] == f"host=db user=me password={MASK} dbname=vcons"
    assert options["e"] == f"redis://{MASK}@db:6379/0"
    assert options["h"] == f"amqp://{MASK}@a,amqp://{MASK}@b"
    assert shown["api"]["tokens"]["billing"] == {"digest": MASK, "scopes": ["read", "ingress:partner_in"]}
    assert shown["links"]["hook"]["options"]["headers"]["Content-Type"] == "application/json"


def test_a_variable_is_no_secret_but_its_default_is() -> None:
    """`${VAR}` says where the secret is, not what it is."""
    names = ("${TOKEN}", "${USER}:${PASSWORD}", "redis://:${PW}@db", "host=db password=${PW}", "Authorization: ${A}")
    values = {"api_key": "${TOKEN}", "texts": [*names, "redis://:${PW:-hush}@db"], "token": "${TOKEN:-hush}"}

    shown = masked(values)
    assert shown["api_key"] == "${TOKEN}"
    assert shown["texts"] == [*names, f"redis://{MASK}@db"]
    assert shown["token"] == MASK


def test_what_json_lacks_becomes_text() -> None:
    """Numbers that are none, and texts of our own class."""
    shown = masked({"a": [float("inf"), float("-inf"), float("nan")], "b": Substituted("${A}", whole=True)})

    assert json.dumps(shown, allow_nan=False) == '{"a": [".inf", "-.inf", ".nan"], "b": "${A}"}'
    assert type(shown["b"]) is str


def test_what_was_shown_comes_back_as_it_was() -> None:
    """All of it, with its types."""
    config = yaml.safe_load(SECRETS)
    config["x-odd"] = [float("inf"), Substituted("${A}", whole=False), {"api_key": 5}]

    assert same(unmasked(json.loads(json.dumps(masked(config))), config), config)


def test_a_masked_value_keeps_what_is_stored() -> None:
    """While everything around it is another."""
    stored = {"links": {"a": {"options": {"token": "hush", "url": "redis://:hush@one/0", "x": 1}}}}

    posted = {"links": {"b": {}, "a": {"options": {"url": f"redis://{MASK}@two/1", "token": MASK, "y": [2]}}}}
    wanted = {"links": {"b": {}, "a": {"options": {"url": "redis://:hush@two/1", "token": "hush", "y": [2]}}}}
    assert same(unmasked(posted, stored), wanted)


def test_a_new_value_takes_the_place_of_a_secret() -> None:
    """Masks are for what stays."""
    assert unmasked({"token": "new", "list": []}, {"token": "hush", "list": [{"key": "k"}]}) == {
        "token": "new",
        "list": [],
    }


def test_a_mask_without_a_secret_is_refused_with_its_place() -> None:
    """A renamed link, a section that is not there, a value that is visible: all are named at once."""
    stored = {"links": {"old": {"options": {"token": "hush"}}}, "x": "plain", "y": {"password": "${PW}"}}
    posted = {
        "links": {"new/~": {"options": {"token": MASK}}},
        "x": MASK,
        "y": {"password": MASK},
        "z": [{"a": f"see {MASK}"}],
    }

    found = refusals(posted, stored)
    assert [place for place, _ in found] == ["/links/new~1~0/options/token", "/x", "/y/password", "/z/0"]
    assert found[0][1] == (
        "is hidden, and there is no such secret at this place of the file; "
        "write the secret itself, or ${VAR} for an environment variable"
    )


@pytest.mark.parametrize(
    "posted",
    [
        f"https://db.example/{MASK}",  # would be shown the next time
        f"https://{MASK}@db.example/{MASK}",
        f"https://{MASK}{MASK}@db.example/",
        f"{MASK}",
    ],
)
def test_the_secret_of_a_url_stays_where_it_is_hidden(posted: str) -> None:
    """A mask that is moved to where nothing is hidden would show the secret to the next reader."""
    assert [place for place, _ in refusals({"url": posted}, {"url": "https://hush@db.example/"})] == ["/url"]


HOOKS = [
    {"url": "https://a.example", "token": "hush-a"},
    {"url": "https://b.example", "token": "hush-b"},
    {"url": "https://c.example", "token": "hush-c"},
]
A, B, C = masked(HOOKS)


@pytest.mark.parametrize(
    ("posted", "wanted"),
    [
        ([C, A, B], [HOOKS[2], HOOKS[0], HOOKS[1]]),
        ([B], [HOOKS[1]]),
        ([{"url": "new"}, B, C, A], [{"url": "new"}, HOOKS[1], HOOKS[2], HOOKS[0]]),
        ([A, B | {"more": 1}, C], [HOOKS[0], HOOKS[1] | {"more": 1}, HOOKS[2]]),
        ([A, B | {"token": "new"}, C], [HOOKS[0], HOOKS[1] | {"token": "new"}, HOOKS[2]]),
    ],
)
def test_an_item_of_a_list_is_known_by_what_is_visible(posted: Any, wanted: Any) -> None:
    """However the items are moved, and if one of them is changed in its place."""
    assert unmasked({"hooks": posted}, {"hooks": HOOKS}) == {"hooks": wanted}


@pytest.mark.parametrize(
    ("posted", "places"),
    [
        ([A | {"more": 1}, B | {"more": 1}, C], ["/hooks/0", "/hooks/1"]),
        ([B | {"more": 1}, A, C], ["/hooks/0"]),
        ([A | {"more": 1}, {"url": "new"}, C], ["/hooks/0"]),
        ([A | {"more": 1}, B], ["/hooks/0"]),
        ([A, B, C, C], ["/hooks/3"]),
        ([A, A, B], ["/hooks/1"]),
    ],
)
def test_an_item_that_may_be_another_one_is_refused(posted: Any, places: list[str]) -> None:
    """Better than to send the secret of one place to another."""
    found = refusals({"hooks": posted}, {"hooks": HOOKS})

    assert [place for place, _ in found] == places
    assert "the list has changed" in found[0][1]


@pytest.mark.parametrize(
    ("posted", "wanted"),
    [
        ([MASK, MASK], ["one", "two"]),
        ([MASK, "new"], ["one", "new"]),
        (["new", MASK], ["new", "two"]),
        ([MASK, MASK, "new"], ["one", "two", "new"]),
        ([MASK], None),
        (["new", MASK, MASK], None),
        ([MASK, "new", MASK], None),
        ([MASK, MASK, MASK], None),
    ],
)
def test_plain_secrets_of_a_list_are_known_by_their_index(posted: list[str], wanted: list[str] | None) -> None:
    """As long as the list has its length, or has grown at its end."""
    stored = {"ingress_auth": {"in": ["one", "two"]}}

    if wanted is None:
        assert refusals({"ingress_auth": {"in": posted}}, stored)
    else:
        assert unmasked({"ingress_auth": {"in": posted}}, stored) == {"ingress_auth": {"in": wanted}}


def test_true_and_one_are_two_values() -> None:
    """And so are two orders of chains, since of two that read one list the last one has it."""
    assert not same({"a": 1}, {"a": True})
    assert not same({"a": 1, "b": 2}, {"b": 2, "a": 1})
    assert not same([1], [1, 2])
    assert same({"a": [1, None, float("nan")]}, {"a": [1.0, None, float("nan")]})


WORDS = st.sampled_from(
    [
        "token",
        "url",
        "headers",
        "x",
        "hush",
        "a=b",
        "key=hush",
        "redis://u:hush@h",
        "${A}",
        "${A:-b}",
        MASK,
        f"a {MASK}",
    ]
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), WORDS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(WORDS, inner, max_size=4)),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(stored=st.dictionaries(WORDS, VALUES, max_size=3))
def test_any_config_comes_back_from_its_masks(stored: dict[str, Any]) -> None:
    """Whatever is in it, masks included that somebody has written into the file."""
    posted = json.loads(json.dumps(masked(stored), allow_nan=False))

    assert same(unmasked(posted, stored), stored)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(stored=st.dictionaries(WORDS, VALUES, max_size=3), posted=st.dictionaries(WORDS, VALUES, max_size=3))
def test_no_mask_is_ever_taken_for_a_value(stored: dict[str, Any], posted: dict[str, Any]) -> None:
    """Unless the file has it, what comes out has none."""
    without = json.loads(json.dumps(masked(stored)).replace(MASK, "plain"))
    before = copy.deepcopy(posted)

    try:
        values = unmasked(posted, without)
    except ConfigRefused:
        pass
    else:
        assert MASK not in json.dumps(list(_leaves(values)))
    assert same(posted, before)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    order=st.permutations(range(4)),
    kept=st.integers(0, 4),
    urls=st.lists(st.sampled_from("ab"), min_size=4, max_size=4),
)
def test_no_secret_goes_to_another_place(order: list[int], kept: int, urls: list[str]) -> None:
    """Each item of a list that is shuffled and cut has its own secret."""
    stored = [{"url": url, "token": f"hush-{url}"} for url in urls]

    values = unmasked([masked(stored)[index] for index in order[:kept]], stored)

    assert values == [stored[index] for index in order[:kept]]


@pytest.mark.parametrize(
    "piece", ["://a:", "://a/", "://a@", "key={", "key='", "'key': '", "PRIVATE KEY-----", "basic ", "eyJ-", "${A"]
)
def test_no_text_takes_long(piece: str) -> None:
    """Each search has a bound, whatever somebody puts into a config."""
    text = piece * (1_000_000 // len(piece))

    begun = time.monotonic()
    masked({"a": text})
    assert time.monotonic() - begun < 20
