"""vCons by POST to the URLs of a config, for the link and the storage that do this."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field, field_validator

from conserver import outbound
from conserver.errors import OutboundError, OutboundStatus


class Receivers(BaseModel):
    """Where to send vCons."""

    model_config = ConfigDict(populate_by_name=True, hide_input_in_errors=True)

    webhook_urls: list[str] = Field(default=[], alias="webhook-urls", description="The receivers, in order.")
    headers: dict[str, str] = Field(
        default={},
        description="Headers for each of them, such as `Authorization`. `Content-Type` is `application/json` unless it "
        "is set here.",
    )
    timeout: float = Field(default=30.0, gt=0, description="Seconds for one attempt, up to the last byte.")

    @field_validator("webhook_urls")
    @classmethod
    def _are_urls(cls, urls: list[str]) -> list[str]:
        for number, url in enumerate(urls, 1):
            if not url.lower().startswith(("http://", "https://")):
                raise ValueError(f"number {number} is not a URL: write https://host/path")
        return urls


@dataclass(frozen=True)
class Delivery:
    """What became of a vCon at one receiver."""

    secs: float
    status: int | None
    """The status of the answer; None if there was none."""
    error: OutboundError | None
    """None if it took it."""


def deliver(uuid: str, body: bytes, to: Receivers) -> Iterator[Delivery]:
    """POST *body* to each URL, also after one has failed; several times where that may help, under one `webhook-id`."""
    content = hashlib.sha256(body).hexdigest()
    for url in to.webhook_urls:
        headers = {
            "Content-Type": "application/json",
            **to.headers,
            "webhook-id": outbound.delivery_id(uuid, content, url),
        }
        status, failure, began = None, None, time.monotonic()
        try:
            status = outbound.request(
                "POST",
                url,
                trusted=True,
                headers=headers,
                body=body,
                limits=outbound.Limits(read_secs=to.timeout, total_secs=to.timeout),
                repeatable=True,
                quote_answer=False,  # a receiver may repeat what it was sent, and errors end up in logs
            ).status
        except OutboundError as error:
            failure, status = error, error.status if isinstance(error, OutboundStatus) else None
        yield Delivery(time.monotonic() - began, status, failure)
