"""Ask a language model whether both sides of each dialog spoke, and tag the vCon with `engagement:true` or `:false`.

For every analysis of `source.analysis_type` that holds a text at `source.text_location`, the model gets `prompt`, an
empty line and the text, by OpenAI's Responses API. Its answer, `true` or `false`, becomes an analysis of
`analysis_type` for the same dialog. An answer that is neither is asked for once more, and then fails the link.

A dialog that has such an analysis is skipped; where its tag is missing, the tag is added. Without any credentials the
link lets every vCon pass, and says so in the log. A signed or encrypted vCon shows no transcripts, so it passes
through unchanged.

Reads: transcripts. Writes: an analysis of `analysis_type` for each of their dialogs, and the tag `engagement`.
Needs: conserver[openai].
"""

import logging
import os
import re
import time
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import Field, SecretStr, model_validator

from conserver import Vcon, filters, media, models, telemetry, vcons
from conserver.errors import OutboundError

log = logging.getLogger(__name__)

PROMPT = Path(__file__).with_name("prompt.md").read_text(encoding="utf-8").strip()


class Options(models.ModelOptions, filters.Filters):
    """What to ask, of whom, about which vCons.

    Without any credentials here, `OPENAI_API_KEY` of the environment is used: existing configs of this link rely on it.
    """

    prompt: str = Field(
        default=PROMPT, description="What to ask; the text follows it. It has to ask for true or false."
    )
    analysis_type: str = Field(default="engagement_analysis", description="Type of the analysis that is added.")
    model: str = Field(default="gpt-4.1", description="Name of the model, as the service knows it.")
    temperature: float | None = Field(default=0.2, description="null leaves it to the model; some accept nothing else.")
    source: media.Source = Field(default=media.Source(), description="Where the text comes from.")

    @model_validator(mode="after")
    def _names_a_service(self) -> "Options":
        # Not beside a base_url: a key of OpenAI is nobody else's business.
        if models.service_of(self) is None:
            self.api_key = SecretStr(os.environ.get("OPENAI_API_KEY", "").strip())
        return self


def run(vcon_uuid: str, link_name: str, opts: Options) -> str | None:
    """Add the missing analyses and tags; returns the UUID, raises OutboundError when the model gives no answer."""
    vcon = vcons.get(vcon_uuid)
    if models.service_of(opts) is None:
        log.warning("link %s has no credentials, so every vCon just goes on: give OPENAI_API_KEY", link_name)
        return vcon_uuid
    if not filters.selected(opts, vcon, link_name):
        return vcon_uuid
    if _missing_tags(vcon, opts):
        with vcons.edit(vcon_uuid) as current:
            _add_tags(current, opts)
    for dialog, text in media.texts(vcon, opts.source, without=_answered(vcon, opts)):
        engaged = _ask(vcon_uuid, link_name, text, opts)
        with vcons.edit(vcon_uuid) as current:
            if dialog in _answered(current, opts):  # by somebody else, while we waited for the model
                continue
            current.add_analysis(
                type=opts.analysis_type,
                dialog=dialog,
                vendor=models.vendor_of(opts),
                body="true" if engaged else "false",
                extra={"vendor_schema": {"model": opts.model, "prompt": opts.prompt, "is_engaged": engaged}},
            )
            _add_tags(current, opts)
    return vcon_uuid


def _ask(vcon_uuid: str, link_name: str, text: str, opts: Options) -> bool:
    labels = {"link": link_name, "analysis_type": opts.analysis_type}
    ask = partial(models.respond, text=f"{opts.prompt}\n\n{text}", vcon_uuid=vcon_uuid, sub_type="DETECT_ENGAGEMENT")
    started = time.monotonic()
    try:
        engaged = models.valid(opts, ask, _said)
    except OutboundError:
        telemetry.count("conserver.link.openai.engagement_analysis_failures", **labels)
        raise
    telemetry.observe("conserver.link.openai.engagement_analysis_time", time.monotonic() - started, **labels)
    telemetry.count("conserver.link.openai.engagement_detected", 1 if engaged else 0, **labels)
    return engaged


def _said(answer: str) -> bool:
    words = {word for word in re.findall(r"\w+", answer.lower()) if word in ("true", "false")}
    if len(words) != 1:
        raise ValueError("it says neither 'true' nor 'false', or both")
    return words == {"true"}


def _add_tags(vcon: Vcon, opts: Options) -> None:
    for value in _missing_tags(vcon, opts):
        vcon.add_tag("engagement", value)


def _missing_tags(vcon: Vcon, opts: Options) -> list[str]:
    """Return the values of the stored analyses that the vCon is not tagged with."""
    said = dict.fromkeys(str(entry.get("body")) for entry in _analyses(vcon, opts))
    return [value for value in said if value in ("true", "false") and f"engagement:{value}" not in vcon.tags]


def _answered(vcon: Vcon, opts: Options) -> list[Any]:
    return [entry.get("dialog") for entry in _analyses(vcon, opts)]


def _analyses(vcon: Vcon, opts: Options) -> list[dict[str, Any]]:
    return [entry for entry in vcon.analysis if entry.get("type") == opts.analysis_type]
