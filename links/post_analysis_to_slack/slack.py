"""The three methods of Slack's Web API that posting once takes."""

import json
import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

from conserver import outbound
from conserver.errors import OutboundError, OutboundStatus
from conserver.outbound import Backoff, Limits, Retryable

#: What Slack says of a channel that is not there or not for this app.
NO_SUCH_CHANNEL = frozenset(
    {"channel_not_found", "not_in_channel", "is_archived", "restricted_action", "restricted_action_read_only_channel"}
)
_EVENT_TYPE = "conserver_analysis"
_LONGEST_TEXT = 2900  # a section takes 3000 characters
_MOST_PAGES = 20
# Slack's clock and ours may differ.
_SLACK_SECS = 3600


class SlackRefusal(OutboundError):
    """Slack has answered, and has not done what it was asked for; `code` is its word for why."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class Slack:
    """Slack's Web API with one token."""

    def __init__(self, api_url: str, token: str, timeout: float) -> None:
        self._api_url = api_url.rstrip("/")
        self._token = token
        self._limits = Limits(read_secs=timeout, total_secs=timeout)

    def post(self, channel: str, text: str, message_id: str, url: str = "") -> None:
        """Post a message (mrkdwn) with an id that no reader sees; SlackRefusal if it is certain that it was not."""
        text = text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + "…"
        message: dict[str, Any] = {
            "channel": channel,
            "text": text,
            "metadata": {"event_type": _EVENT_TYPE, "event_payload": {"id": message_id}},
        }
        if url:
            button = {"type": "button", "text": {"type": "plain_text", "text": "Details"}, "url": url}
            message["blocks"] = [
                {"type": "section", "text": {"type": "mrkdwn", "text": text}},
                {"type": "actions", "elements": [{**button, "action_id": "details"}]},
            ]
        # Not repeated when the answer is lost: it may have been posted.
        self._call("chat.postMessage", json.dumps(message).encode(), "application/json; charset=utf-8", again=False)

    def has(self, channel: str, message_id: str, since: int) -> bool:
        """Tell whether the channel has the message with this id, posted after *since* (Unix time, seconds)."""
        channel_id = channel if re.fullmatch(r"[CGD][A-Z0-9]{7,}", channel) else self._id_of(channel)
        asked = {"channel": channel_id, "oldest": max(0, since - _SLACK_SECS), "include_all_metadata": "true"}
        return any(
            ((message.get("metadata") or {}).get("event_payload") or {}).get("id") == message_id
            for message in self._pages("conversations.history", "messages", asked)
        )

    def _id_of(self, name: str) -> str:
        asked = {"types": "public_channel,private_channel", "exclude_archived": "true"}
        for channel in self._pages("conversations.list", "channels", asked):
            if channel.get("name") == name.removeprefix("#"):
                return str(channel["id"])
        raise SlackRefusal(f"Slack shows no channel {name!r}", "channel_not_found")

    def _pages(self, method: str, name: str, asked: dict[str, Any]) -> Iterator[dict[str, Any]]:
        cursor = ""
        for _ in range(_MOST_PAGES):
            more = {"cursor": cursor} if cursor else {}
            body = urlencode({**asked, "limit": 200, **more}).encode()
            answer = self._call(method, body, "application/x-www-form-urlencoded", again=True)
            yield from (item for item in answer.get(name) or [] if isinstance(item, dict))
            cursor = (answer.get("response_metadata") or {}).get("next_cursor") or ""
            if not cursor:
                return

    def _call(self, method: str, body: bytes, content_type: str, *, again: bool) -> dict[str, Any]:
        def attempt() -> dict[str, Any]:
            try:
                answer = outbound.request(
                    "POST",
                    f"{self._api_url}/{method}",
                    trusted=True,
                    headers={"Content-Type": content_type, "Authorization": f"Bearer {self._token}"},
                    body=body,
                    limits=self._limits,
                    repeatable=again,
                    quote_answer=False,
                )
            except OutboundStatus as error:
                if error.status == 429 and not again:
                    raise _busy(str(error), error.retry_after_secs) from error
                raise
            said = answer.json()
            if not isinstance(said, dict) or not isinstance(said.get("ok"), bool):
                raise OutboundError(f"{answer.source}: the answer is not Slack's")
            if said["ok"]:
                return said
            code = said.get("error")
            code = code if isinstance(code, str) and re.fullmatch(r"[a-z0-9_.-]{1,80}", code) else "unknown_error"
            if code == "ratelimited":
                raise _busy(f"{answer.source}: Slack says ratelimited", outbound.retry_after(answer.headers))
            raise SlackRefusal(f"{answer.source}: Slack says {code}", code)

        return outbound.retrying(f"Slack's {method}", attempt, Backoff())


def escaped(text: str) -> str:
    """Return the text as mrkdwn that shows it: what was said in a call must not notify a whole channel."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _busy(message: str, retry_after_secs: float | None) -> Retryable:
    return Retryable(message, status=429, retry_after_secs=retry_after_secs)
