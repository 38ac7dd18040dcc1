"""POST each vCon as JSON to one or more URLs, which keep it.

All URLs are tried, also when one of them fails; then the save has failed and names those that did, and its replay
delivers to all of them again. An answer outside of 200 to 299 is a failure. A receiver that is down, busy or slow is
asked up to four times within half a minute.

Every delivery carries the header `webhook-id`, made of the vCon's UUID, its content and the URL: receivers that
remember it get each version of a vCon once, however often it is delivered. Nothing can be read back or deleted, so a
chain with this storage alone never lets its vCons expire.

The vCon goes out in its current version and never under another number; `format_version` sends the older form.

Reads: the whole vCon. Writes: nothing; the vCon goes to other services.
"""

from typing import Literal

from pydantic import Field, model_validator

from conserver import StorageError, telemetry, vcons
from conserver.webhooks import Receivers, deliver


class Options(Receivers):
    """Where to send vCons."""

    format_version: Literal["0.0.1"] | None = Field(
        default=None,
        description="Version of the vCons as they are sent; without it, the current one, whatever "
        "`EGRESS_FORMAT_VERSION` says.",
    )

    @model_validator(mode="after")
    def _has_urls(self) -> "Options":
        if not self.webhook_urls:
            raise ValueError("webhook-urls names no receiver, so every vCon would be lost: give at least one URL")
        return self


def save(vcon_uuid: str, opts: Options) -> None:
    """Deliver the vCon; raises StorageError that names every receiver that failed."""
    vcon = vcons.get(vcon_uuid)
    body = vcons.egress(vcon, opts.format_version) if opts.format_version else vcon.to_bytes()
    failures = []
    for delivery in deliver(vcon_uuid, body, opts):
        telemetry.observe("conserver.webhook.duration", delivery.secs, status_code=str(delivery.status or "none"))
        if delivery.error:
            failures.append(delivery.error)
    if failures:
        raise StorageError("; ".join(map(str, failures))) from failures[0]
