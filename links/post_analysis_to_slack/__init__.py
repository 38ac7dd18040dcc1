"""Post to Slack when an analysis says that somebody should look at the conversation.

For each analysis of `only_if.analysis_type` whose body contains `only_if.includes`, the summary of the same dialog is
posted to `default_channel_name`, with a button that leads to `url`. Where an attachment `strolid_dealer` names a team
other than strolid, the message ends with `#` and the dealer, and goes to `team-<first word>-alerts` as well. When Slack
refuses that channel, a notice goes to the default channel, and the link fails once everything else is posted.

Nothing is posted twice. What is about to be posted is noted in the analysis before, and what is posted after; then
`was_posted_to_slack` is set. A run that finds the first note without the second, since a process died or an answer
was lost in between, looks for the message in the channel before it posts. That needs the scopes `channels:read` and
`channels:history` (or the `groups:` ones); a token without them has such a message posted again rather than lost.

Reads: analyses of `only_if.analysis_type`, summaries, the attachment `strolid_dealer`. Writes: `was_posted_to_slack` in
the analyses that were posted.
"""

import json
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from conserver import LinkError, Vcon, outbound, telemetry, vcons
from conserver.errors import OutboundError, OutboundStatus, VconConflict

from .slack import NO_SUCH_CHANNEL, Slack, SlackRefusal, escaped

log = logging.getLogger(__name__)

_POSTS = "slack_posts"
_DONE = "was_posted_to_slack"


class OnlyIf(BaseModel):
    """What an analysis is like that calls for somebody's attention."""

    model_config = ConfigDict(frozen=True)

    analysis_type: str = Field(default="customer_frustration", description="Type of the analyses to look at.")
    includes: str = Field(default="NEEDS REVIEW", description="What the body of such an analysis must contain.")


class Options(BaseModel):
    """Where to post what."""

    model_config = ConfigDict(hide_input_in_errors=True)

    token: SecretStr = Field(description="The token of a Slack app that may post (`xoxb-...`).")
    default_channel_name: str = Field(min_length=1, description="The channel for every message, by name or ID.")
    url: str = Field(
        default="", description="Where the button leads: `{vcon_id}` in it is replaced, else a query is added."
    )
    analysis_to_post: str = Field(default="summary", description="Type of the analysis whose text is posted.")
    only_if: OnlyIf = Field(default=OnlyIf(), description="Which analyses are posted.")
    channel_name: str | None = Field(default=None, description="Not used; existing configs have it.")
    api_url: str = Field(default="https://slack.com/api", description="Where Slack's API is.")
    timeout: float = Field(default=30.0, gt=0, description="Seconds for one request, up to the last byte.")

    @field_validator("token")
    @classmethod
    def _is_there(cls, token: SecretStr) -> SecretStr:
        if not token.get_secret_value().strip():
            raise ValueError("is empty: give the token of a Slack app that may post")
        return SecretStr(token.get_secret_value().strip())


@dataclass(frozen=True)
class Message:
    """One message to one channel; `key` names it among those of its analysis, `id` among all."""

    key: str
    id: str
    channel: str
    text: str
    url: str = ""


def run(vcon_uuid: str, link_name: str, opts: Options) -> str | None:
    """Post what is not posted yet; returns the UUID, raises LinkError that names the channels that failed."""
    vcon = vcons.get(vcon_uuid)
    slack = Slack(opts.api_url, opts.token.get_secret_value(), opts.timeout)
    failures: list[tuple[str, OutboundError]] = []
    for index, entry in enumerate(vcon.analysis):
        if entry.get(_DONE) or not _is_wanted(entry, opts.only_if):
            continue
        failed = [
            (message.channel, error)
            for message in _messages(vcon, entry, opts)
            if (error := _deliver(vcon_uuid, index, entry, message, slack, opts, link_name))
        ]
        failures += failed
        if not failed:
            with vcons.edit(vcon_uuid) as current:
                posted = _same_entry(current, index, entry)
                posted[_DONE] = True
                posted.pop(_POSTS, None)
    if failures:
        said = "; ".join(dict.fromkeys(f"channel {channel!r}: {error}" for channel, error in failures))
        raise LinkError(said) from failures[0][1]
    return vcon_uuid


def _is_wanted(entry: dict[str, Any], only_if: OnlyIf) -> bool:
    return entry.get("type") == only_if.analysis_type and only_if.includes in _text_of(entry)


def _messages(vcon: Vcon, entry: dict[str, Any], opts: Options) -> Iterator[Message]:
    """Yield what is to be posted about an analysis: to the channel of the team, then to the default one."""
    about = [other for other in vcon.analysis if other.get("type") == opts.analysis_to_post]
    text = next((_text_of(other) for other in about if other.get("dialog") == entry.get("dialog")), "")
    if not text.strip():
        text = f"{opts.only_if.analysis_type}: {opts.only_if.includes} (there is no {opts.analysis_to_post})"
    channels = [opts.default_channel_name]
    team, dealer = _team_and_dealer(vcon)
    if team and team != "strolid":
        channels.insert(0, f"team-{team}-alerts")
        text += f" #{dealer}" if dealer else ""
    for channel in dict.fromkeys(channels):
        yield _message(str(vcon.uuid), entry, channel, channel, text, _details_url(opts.url, str(vcon.uuid)))


def _message(uuid: str, entry: dict[str, Any], key: str, channel: str, text: str, url: str = "") -> Message:
    # The id is by what the analysis says and not by its place, which may change.
    about = json.dumps([entry.get("type"), entry.get("dialog"), entry.get("body")], sort_keys=True)
    return Message(key, outbound.delivery_id(uuid, about, key), channel, text, url)


def _team_and_dealer(vcon: Vcon) -> tuple[str, str]:
    attachment = vcon.find_attachment_by_purpose("strolid_dealer")
    body = vcon.decoded_body(attachment) if attachment else None
    if isinstance(body, str):
        try:
            body = json.loads(body)
        except ValueError:
            body = None
    if not isinstance(body, dict):
        return "", ""
    team = body.get("team")
    name = team.get("name") if isinstance(team, dict) else team
    words = name.lower().split() if isinstance(name, str) else []
    # It comes from the vCon: nothing in it may lead to another kind of channel.
    return re.sub(r"[^\w-]", "", words[0]) if words else "", str(body.get("name") or "")


def _details_url(url: str, uuid: str) -> str:
    if not url.lower().startswith(("http://", "https://")):
        return ""
    if "{vcon_id}" in url:
        return url.replace("{vcon_id}", uuid)
    return f'{url}{"&" if "?" in url else "?"}_vcon_id="{uuid}"'


def _text_of(entry: dict[str, Any]) -> str:
    body = entry.get("body")
    return body if isinstance(body, str) else "" if body is None else json.dumps(body, ensure_ascii=False)


def _deliver(
    vcon_uuid: str,
    index: int,
    entry: dict[str, Any],
    message: Message,
    slack: Slack,
    opts: Options,
    link_name: str,
) -> OutboundError | None:
    """Post a message unless it is posted; return why Slack has not taken it, or None."""
    noted = (entry.get(_POSTS) or {}).get(message.key) or {}
    if noted.get("state") == "posted":
        return None
    try:
        if noted and _is_in(slack, message, noted):
            _note(vcon_uuid, index, entry, message, "posted")
            return None
        _note(vcon_uuid, index, entry, message, "posting")
        slack.post(message.channel, escaped(message.text), message.id, message.url)
    except OutboundError as error:
        telemetry.count("conserver.link.slack.post_failures", link=link_name)
        if isinstance(error, SlackRefusal) or (isinstance(error, OutboundStatus) and error.status < 500):
            _note(vcon_uuid, index, entry, message, None)  # there is no doubt that it was not posted
        if (
            isinstance(error, SlackRefusal)
            and error.code in NO_SUCH_CHANNEL
            and message.channel != opts.default_channel_name
        ):
            telemetry.count("conserver.link.slack.fallback_channel_used", link=link_name)
            text = f"Slack takes no messages for channel {message.channel} ({error.code})"
            notice = _message(vcon_uuid, entry, f"notice {message.channel}", opts.default_channel_name, text)
            _deliver(vcon_uuid, index, entry, notice, slack, opts, link_name)
        return error
    _note(vcon_uuid, index, entry, message, "posted")
    return None


def _is_in(slack: Slack, message: Message, noted: dict[str, Any]) -> bool:
    """Find out whether a message whose fate is not known is in the channel; False if nobody may tell."""
    since = noted.get("since")
    try:
        return slack.has(message.channel, message.id, since if isinstance(since, int) else 0)
    except SlackRefusal as error:
        log.warning(
            "a message to %s may come twice, since Slack does not show that channel: %s", message.channel, error
        )
        return False


def _note(vcon_uuid: str, index: int, entry: dict[str, Any], message: Message, state: str | None) -> None:
    """Write down in the stored vCon how far a message is; None forgets it."""
    with vcons.edit(vcon_uuid) as current:
        noted = _same_entry(current, index, entry)
        posts = noted.setdefault(_POSTS, {})
        if state is None:
            posts.pop(message.key, None)
        elif posts.get(message.key, {}).get("state") != state:
            posts[message.key] = {"state": state, "since": int(time.time())}
        if not posts:
            del noted[_POSTS]


def _same_entry(current: Vcon, index: int, entry: dict[str, Any]) -> dict[str, Any]:
    there = current.analysis[index] if index < len(current.analysis) else {}
    if any(there.get(name) != entry.get(name) for name in ("type", "dialog", "body")):
        raise VconConflict(f"vCon {current.uuid}: analysis {index} was changed while it was posted")
    return there
