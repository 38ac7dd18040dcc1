"""links.post_analysis_to_slack: what needs a look is posted, and posted once."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conserver import LinkError, Vcon, outbound, telemetry
from conserver.ambient import Work, working
from conserver.components import check, load_link
from conserver.config import LinkConfig
from conserver.errors import ConfigError, VconNotFound
from conserver.store import VconStore
from conserver.testing import run_link, throwaway_store, try_link, two_party_call
from links import post_analysis_to_slack as link_module
from links.post_analysis_to_slack.slack import Slack
from tests.fakes.slack_server import TOKEN, SlackServer, dropped, lost, nonsense, ok, refuse, slow, status

MODULE = "links.post_analysis_to_slack"


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test begins with closed breakers and empty metrics, and waits that take no time."""
    monkeypatch.setattr(outbound, "_breakers", outbound._Breakers())
    monkeypatch.setattr(outbound, "_sleep", lambda _: None)
    monkeypatch.setattr(telemetry, "metrics", telemetry.Metrics())


@pytest.fixture
def slack() -> Iterator[SlackServer]:
    """A Slack of our own with three channels."""
    with SlackServer("other", "alerts", "team-blue-alerts") as running:
        yield running


def options(slack: SlackServer, **more: Any) -> dict[str, Any]:
    return {
        "token": TOKEN,
        "default_channel_name": "alerts",
        "url": "https://sheet.example/calls",
        "api_url": slack.api_url,
        **more,
    }


def angry_call(*, team: str = "", summary: str | None = "Ben wants a new kettle.") -> Vcon:
    """A call whose customer is frustrated."""
    vcon = two_party_call()
    vcon.add_analysis(type="customer_frustration", dialog=0, vendor="openai", body="Anger: high. NEEDS REVIEW")
    if summary is not None:
        vcon.add_analysis(type="summary", dialog=0, vendor="openai", body=summary)
    if team:
        body = {"name": "Kettles-of-Kent", "team": {"name": team}}
        vcon.add_attachment(purpose="strolid_dealer", body=body, encoding="json")
    return vcon


def counters() -> dict[str, float]:
    return {name: value for (name, _), value in telemetry.metrics.snapshot()["counters"].items()}


class Run:
    """The link on a vCon in a store, for what a failed run leaves behind."""

    def __init__(self, vcon: Vcon, given: dict[str, Any]) -> None:
        self.store: VconStore = throwaway_store()
        self.store.create(vcon)
        self.uuid = str(vcon.uuid)
        self.link = load_link(LinkConfig(name="slack", module=MODULE, options=given))

    def __call__(self) -> Vcon:
        with working(Work(self.store.writer())):
            self.link.run(self.uuid, "slack", self.link.options)
        return self.vcon

    @property
    def vcon(self) -> Vcon:
        return self.store.get(self.uuid)


def test_what_needs_review_is_posted_once(slack: SlackServer) -> None:
    """The summary goes to the default channel with a button; a second run posts and changes nothing."""
    vcon = run_link(MODULE, options(slack), on=angry_call(), times=2)
    message = slack.messages[0]

    assert slack.texts("alerts") == ["Ben wants a new kettle."]
    assert len(slack.posts) == 1
    assert f'https://sheet.example/calls?_vcon_id=\\"{vcon.uuid}\\"' in json.dumps(message["blocks"])
    assert vcon.analysis[1]["was_posted_to_slack"] is True
    assert "slack_posts" not in vcon.analysis[1]


@pytest.mark.parametrize(
    ("url", "leads_to"),
    [
        ("https://x.example/{vcon_id}/view", "https://x.example/UUID/view"),
        ("https://x.example/?a=b", 'https://x.example/?a=b&_vcon_id="UUID"'),
        ("Url to hex sheet", None),
        ("", None),
    ],
)
def test_the_button_leads_where_the_option_says(slack: SlackServer, url: str, leads_to: str | None) -> None:
    """A template has its UUID, and what is no URL gets no button."""
    vcon = run_link(MODULE, options(slack, url=url), on=angry_call())
    found = [block["elements"][0]["url"] for block in slack.messages[0].get("blocks", []) if "elements" in block]

    assert found == ([leads_to.replace("UUID", str(vcon.uuid))] if leads_to else [])


def test_only_what_matches_is_posted(slack: SlackServer) -> None:
    """The type, the text and the note of an earlier post decide."""
    vcon = angry_call()
    vcon.add_analysis(type="customer_frustration", dialog=0, vendor="openai", body="All is well")
    vcon.add_analysis(type="other", dialog=0, vendor="openai", body="NEEDS REVIEW")
    vcon.add_analysis(
        type="customer_frustration",
        dialog=0,
        vendor="x",
        body="NEEDS REVIEW as well",
        extra={"was_posted_to_slack": True},
    )

    after = run_link(MODULE, options(slack), on=vcon)

    assert len(slack.messages) == 1
    assert [entry.get("was_posted_to_slack") for entry in after.analysis[1:]] == [True, None, None, None, True]


def test_the_condition_and_the_text_can_be_others(slack: SlackServer) -> None:
    """Half an only_if is filled up; a body that is JSON is searched as text."""
    vcon = angry_call()
    vcon.add_analysis(type="score", dialog=0, vendor="x", body={"verdict": "NEEDS REVIEW"})
    given = {"only_if": {"analysis_type": "score"}, "analysis_to_post": "transcript"}

    run_link(MODULE, options(slack, **given), on=vcon, times=2)

    assert len(slack.messages) == 1
    assert "My kettle does not boil" in slack.messages[0]["text"]


def test_without_a_summary_it_is_posted_all_the_same(slack: SlackServer) -> None:
    """The message then says what was found."""
    run_link(MODULE, options(slack), on=angry_call(summary=None))

    assert slack.texts("alerts") == ["customer_frustration: NEEDS REVIEW (there is no summary)"]


@pytest.mark.parametrize("as_text", [False, True])
def test_the_team_gets_it_as_well(slack: SlackServer, as_text: bool) -> None:
    """The channel is made of the team's first word, and the message names the dealer."""
    vcon = angry_call(team="Blue Whales")
    if as_text:
        vcon.attachments[0]["body"] = json.dumps(vcon.attachments[0]["body"])

    run_link(MODULE, options(slack), on=vcon, times=2)

    assert slack.texts("team-blue-alerts") == ["Ben wants a new kettle. #Kettles-of-Kent"]
    assert slack.texts("alerts") == ["Ben wants a new kettle. #Kettles-of-Kent"]


@pytest.mark.parametrize("team", ["Strolid", " "])
def test_the_house_itself_has_no_team_channel(slack: SlackServer, team: str) -> None:
    """Then there is one message, as without the attachment."""
    run_link(MODULE, options(slack), on=angry_call(team=team))

    assert [message["text"] for message in slack.messages] == ["Ben wants a new kettle."]


def test_a_channel_that_slack_refuses_is_told_of_in_the_default_one(slack: SlackServer) -> None:
    """Once, however often the link runs; what goes elsewhere is posted, and the link fails."""
    run = Run(angry_call(team="Red"), options(slack))
    for _ in range(3):
        with pytest.raises(LinkError, match=r"^channel 'team-red-alerts': .* Slack says channel_not_found$"):
            run()
    failed = slack.texts("alerts")
    slack.ids["team-red-alerts"] = "C0RED000"
    after = run()

    assert failed == [
        "Slack takes no messages for channel team-red-alerts (channel_not_found)",
        "Ben wants a new kettle. #Kettles-of-Kent",
    ]
    assert slack.texts("team-red-alerts") == ["Ben wants a new kettle. #Kettles-of-Kent"]
    assert slack.texts("alerts") == failed
    assert after.analysis[1]["was_posted_to_slack"] is True
    assert counters() == {
        "conserver.link.slack.post_failures": 3,
        "conserver.link.slack.fallback_channel_used": 3,
    }


def test_an_error_in_a_good_status_is_an_error(slack: SlackServer) -> None:
    """Slack says no with 200; the vCon is not marked, and the next run posts without a look at the channel."""
    run = Run(angry_call(), options(slack))
    slack.order(refuse("not_in_channel"))

    with pytest.raises(LinkError, match=rf"channel 'alerts': POST {slack.url}: Slack says not_in_channel"):
        run()
    left = run.vcon.analysis[1]
    run()

    assert "was_posted_to_slack" not in left
    assert "slack_posts" not in left
    assert slack.texts("alerts") == ["Ben wants a new kettle."]
    assert slack.calls("conversations.history") == []


def test_what_is_posted_is_not_even_looked_for(slack: SlackServer) -> None:
    """When one of two channels fails, the next run knows by its notes that the other has its message."""
    slack.scopes = {"chat:write"}
    run = Run(angry_call(team="Blue"), options(slack))
    slack.order(ok, refuse("not_in_channel"))

    with pytest.raises(LinkError, match=r"^channel 'alerts': "):
        run()
    run()

    assert (len(slack.texts("team-blue-alerts")), len(slack.texts("alerts"))) == (1, 1)
    assert slack.calls("conversations.list") == []


def test_a_busy_slack_is_asked_again(slack: SlackServer) -> None:
    """By status or by word, for what was not posted."""
    slack.order(status(429, retry_after="1"), refuse("ratelimited", retry_after="1"))

    run_link(MODULE, options(slack), on=angry_call())

    assert (len(slack.posts), slack.texts("alerts")) == (3, ["Ben wants a new kettle."])


def test_a_long_retry_after_is_handed_on(slack: SlackServer) -> None:
    """No worker waits for it; the chain's retry does."""
    slack.order(status(429, retry_after="300"))

    with pytest.raises(LinkError, match=r"answered 429") as caught:
        run_link(MODULE, options(slack), on=angry_call())

    assert len(slack.posts) == 1
    assert getattr(caught.value.__cause__, "retry_after_secs", None) == 300


@pytest.mark.parametrize("order", [lost, slow(30)])
def test_a_message_whose_answer_is_lost_is_not_posted_twice(slack: SlackServer, order: Any) -> None:
    """The next run finds it in the channel."""
    run = Run(angry_call(), options(slack, timeout=0.5))
    slack.order(order)

    with pytest.raises(LinkError, match=r"channel 'alerts': .* no answer"):
        run()
    in_doubt = run.vcon.analysis[1]["slack_posts"]["alerts"]["state"]
    after = run()

    assert in_doubt == "posting"
    assert (len(slack.posts), slack.texts("alerts")) == (1, ["Ben wants a new kettle."])
    assert after.analysis[1]["was_posted_to_slack"] is True


@pytest.mark.parametrize("order", [dropped, status(503), nonsense])
def test_a_message_that_did_not_arrive_is_posted_by_the_next_run(slack: SlackServer, order: Any) -> None:
    """It is not in the channel, so nothing is lost."""
    run = Run(angry_call(), options(slack))
    slack.order(order)

    with pytest.raises(LinkError, match="channel 'alerts': "):
        run()
    before = slack.texts("alerts")
    run()

    assert (before, slack.texts("alerts")) == ([], ["Ben wants a new kettle."])


def test_a_process_that_dies_after_posting_does_not_post_again(
    slack: SlackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the message in doubt nor the one before it."""
    run = Run(angry_call(team="Blue"), options(slack))
    posting = Slack.post

    def post_and_die(self: Slack, channel: str, *more: Any) -> None:
        posting(self, channel, *more)
        if channel == "alerts":
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Slack, "post", post_and_die)
        with pytest.raises(KeyboardInterrupt):
            run()
    run()

    assert (len(slack.texts("alerts")), len(slack.texts("team-blue-alerts"))) == (1, 1)


def test_a_process_that_dies_before_posting_loses_nothing(slack: SlackServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The note alone is no message."""
    run = Run(angry_call(), options(slack))

    def die(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Slack, "post", die)
        with pytest.raises(KeyboardInterrupt):
            run()
    noted = run.vcon.analysis[1]["slack_posts"]
    run()

    assert noted["alerts"]["state"] == "posting"
    assert slack.texts("alerts") == ["Ben wants a new kettle."]


def test_a_message_in_doubt_is_found_among_many(slack: SlackServer) -> None:
    """Page by page, in channels that are given by name, with # or by ID."""
    slack.page_size = 1
    for channel in ("alerts", "#alerts", slack.ids["alerts"]):
        slack.messages.clear()
        run = Run(angry_call(), options(slack, default_channel_name=channel))
        slack.order(lost)
        with pytest.raises(LinkError):
            run()
        slack.messages += [{"channel": "alerts", "text": "hello", "ts": f"500000000{n}.0"} for n in range(3)]

        run()

        assert slack.texts("alerts") == ["Ben wants a new kettle.", "hello", "hello", "hello"]


def test_a_token_that_may_not_look_posts_again(slack: SlackServer, caplog: pytest.LogCaptureFixture) -> None:
    """Twice is better than never, and the log says what scope is missing."""
    slack.scopes = {"chat:write"}
    run = Run(angry_call(), options(slack))
    slack.order(lost)
    with pytest.raises(LinkError):
        run()

    run()

    assert slack.texts("alerts") == ["Ben wants a new kettle."] * 2
    assert "may come twice" in caplog.text
    assert "missing_scope" in caplog.text


def test_messages_do_not_notify_a_whole_channel(slack: SlackServer) -> None:
    """What was said in a call is shown as it is, and a long text is cut."""
    run_link(MODULE, options(slack), on=angry_call(summary="<!channel> & " + "x" * 5000))

    assert slack.messages[0]["text"].startswith("&lt;!channel&gt; &amp; xxx")
    assert len(slack.messages[0]["blocks"][0]["text"]["text"]) <= 3000


def test_an_analysis_that_is_changed_meanwhile_is_a_conflict(
    slack: SlackServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link then runs again on the new copy, and the note never lands at another analysis."""
    run = Run(angry_call(), options(slack))

    def meanwhile(fake: SlackServer, exchange: Any) -> None:
        with run.store.edit(run.uuid) as vcon:
            vcon.analysis[1]["body"] = "No anger at all"
        ok(fake, exchange)

    slack.order(meanwhile)

    with pytest.raises(Exception, match="analysis 1 was changed while it was posted"):
        run()
    assert "was_posted_to_slack" not in run.vcon.analysis[1]


def test_neither_errors_nor_logs_hold_the_token(slack: SlackServer, caplog: pytest.LogCaptureFixture) -> None:
    """Nor does the vCon."""
    caplog.set_level(logging.DEBUG)
    run = Run(angry_call(), options(slack))
    slack.order(refuse(f"bad token {TOKEN}"))

    with pytest.raises(LinkError, match="Slack says unknown_error") as caught:
        run()
    after = run()

    assert TOKEN not in str(caught.value) + caplog.text + after.dumps()


def test_a_sealed_vcon_passes_through(slack: SlackServer) -> None:
    """It shows no analyses."""
    signed = Vcon(
        {
            "payload": "eyJ1dWlkIjogIjAxOGYzYzVlLTAwMDAtODAwMC04MDAwLTAwMDAwMDAwMDAwMSJ9",
            "signatures": [{"signature": "x", "header": {"uuid": "018f3c5e-0000-8000-8000-000000000001"}}],
        }
    )

    trial = try_link(MODULE, options(slack), on=signed)

    assert (trial.result, trial.vcon.document, slack.requests) == (signed.uuid, signed.document, [])


def test_a_missing_vcon_is_an_error(slack: SlackServer) -> None:
    """Not a silent stop."""
    link = load_link(LinkConfig(name="slack", module=MODULE, options=options(slack)))

    with working(Work(throwaway_store().writer())), pytest.raises(VconNotFound):
        link.run("018f3c5e-0000-8000-8000-00000000dead", "slack", link.options)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "option 'token' is missing"),
        ({"token": "xoxb-1"}, "option 'default_channel_name' is missing"),
        ({"token": " ", "default_channel_name": "x"}, "is empty: give the token of a Slack app"),
        ({"token": "xoxb-1", "default_channel_name": ""}, "default_channel_name"),
    ],
)
def test_options_that_cannot_work_are_found_by_the_check(given: dict[str, Any], said: str) -> None:
    """Before the first vCon, with the cure."""
    with pytest.raises(ConfigError, match=said):
        load_link(LinkConfig(name="slack", module=MODULE, options=given))


def test_a_config_of_the_existing_conserver_is_understood(tmp_path: Path) -> None:
    """With all that its documentation shows, and not a word of complaint about the link."""
    (tmp_path / "config.yml").write_text(
        """
links:
  post_to_slack:
    module: links.post_analysis_to_slack
    options:
      token: ${SLACK_TOKEN}
      channel_name: alerts
      default_channel_name: alerts
      url: https://sheet.example/app/{vcon_id}
      analysis_to_post: summary
      only_if:
        analysis_type: customer_frustration
        includes: NEEDS REVIEW
storages:
  disk:
    module: storages.file
    options:
      path: vcons
chains:
  main:
    links: [post_to_slack]
    storages: [disk]
    ingress_lists: [main_in]
    enabled: 1
"""
    )

    _, findings = check(tmp_path / "config.yml", {"SLACK_TOKEN": "xoxb-1"})

    assert [str(finding) for finding in findings if "slack" in str(finding)] == []
    assert link_module.Options.model_fields["only_if"].default.includes == "NEEDS REVIEW"
