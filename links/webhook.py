"""POST the vCon as JSON to each URL, in order.

All URLs are tried, also when one of them fails; then the link fails and names those that did. An answer outside of
200 to 299 is a failure. A receiver that is down, busy or slow is asked up to four times within half a minute.

Every delivery carries the header `webhook-id`, made of the vCon's UUID, its content and the URL. A delivery that is
repeated, since the answer to the first was lost or since the chain ran again, has the same id: receivers that
remember it get each version of a vCon once. `format_version` or `EGRESS_FORMAT_VERSION` sends the vCon as older
consumers expect it.

Reads: the whole vCon. Writes: nothing; the vCon goes to other services.
"""

from typing import Literal

from pydantic import Field

from conserver import LinkError, telemetry, vcons
from conserver.webhooks import Receivers, deliver


class Options(Receivers):
    """Where to send vCons."""

    format_version: Literal["0.0.1"] | None = Field(
        default=None, description="Version of the vCons as they are sent; without it, `EGRESS_FORMAT_VERSION`."
    )


def run(vcon_uuid: str, link_name: str, opts: Options) -> str | None:
    """Deliver the vCon; returns the UUID, raises LinkError that names every receiver that failed."""
    if not opts.webhook_urls:
        telemetry.count("conserver.link.webhook.no_urls_configured", link=link_name)
        return vcon_uuid
    deliveries = deliver(vcon_uuid, vcons.egress(vcon_uuid, opts.format_version), opts)
    failures = [delivery.error for delivery in deliveries if delivery.error]
    for _ in failures:
        telemetry.count("conserver.link.webhook.post_failures", link=link_name)
    if failures:
        raise LinkError("; ".join(map(str, failures))) from failures[0]
    return vcon_uuid
