"""POST the vCon as JSON to each URL, in order.

All URLs are tried, also when one of them fails; then the link fails and names those that did. An answer outside of
200 to 299 is a failure. A receiver that is down, busy or slow is asked up to four times within half a minute.

Every delivery carries the header `webhook-id`, made of the vCon's UUID, its content and the URL. A delivery that is
repeated, since the answer to the first was lost or since the chain ran again, has the same id: receivers that
remember it get each version of a vCon once. `EGRESS_FORMAT_VERSION=0.0.1` sends the vCon as older consumers expect it.
"""

import hashlib

from pydantic import BaseModel, ConfigDict, Field, field_validator

from conserver import LinkError, outbound, telemetry, vcons
from conserver.errors import OutboundError


class Options(BaseModel):
    """Where to send vCons."""

    model_config = ConfigDict(populate_by_name=True, hide_input_in_errors=True)

    webhook_urls: list[str] = Field(default=[], alias="webhook-urls", description="The receivers, in order.")
    headers: dict[str, str] = Field(default={}, description="Headers for each of them, such as Authorization.")
    timeout: float = Field(default=30.0, gt=0, description="Seconds for one attempt, up to the last byte.")

    @field_validator("webhook_urls")
    @classmethod
    def _are_urls(cls, urls: list[str]) -> list[str]:
        for number, url in enumerate(urls, 1):
            if not url.lower().startswith(("http://", "https://")):
                raise ValueError(f"number {number} is not a URL: write https://host/path")
        return urls


def run(vcon_uuid: str, link_name: str, opts: Options) -> str | None:
    """Deliver the vCon; returns the UUID, raises LinkError that names every receiver that failed."""
    if not opts.webhook_urls:
        telemetry.count("conserver.link.webhook.no_urls_configured", link=link_name)
        return vcon_uuid
    body = vcons.egress(vcon_uuid)
    content = hashlib.sha256(body).hexdigest()
    failures = []
    for url in opts.webhook_urls:
        headers = {
            "Content-Type": "application/json",
            **opts.headers,
            "webhook-id": outbound.delivery_id(vcon_uuid, content, url),
        }
        try:
            outbound.request(
                "POST",
                url,
                trusted=True,
                headers=headers,
                body=body,
                limits=outbound.Limits(read_secs=opts.timeout, total_secs=opts.timeout),
                repeatable=True,
                quote_answer=False,  # a receiver may repeat what it was sent, and errors end up in logs
            )
        except OutboundError as error:
            telemetry.count("conserver.link.webhook.post_failures", link=link_name)
            failures.append(error)
    if failures:
        raise LinkError("; ".join(map(str, failures))) from failures[0]
    return vcon_uuid
