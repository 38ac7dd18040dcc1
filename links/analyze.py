"""Ask a language model about each dialog that has a transcript, and keep its answer as an analysis.

For every analysis of `source.analysis_type` that holds a text at `source.text_location`, the model gets
`system_prompt`, and `prompt`, an empty line and the text. Its answer becomes an analysis of `analysis_type` for the
same dialog. A dialog that has one already is skipped, so running the link again costs nothing.

Each answer is saved before the next question is asked: when a later call fails, what was paid for is kept, and the
next run goes on from there. A signed or encrypted vCon shows no transcripts, so it passes through unchanged.

Any service that speaks OpenAI's protocol will do: OpenAI, Azure, a LiteLLM proxy, or whatever `base_url` points at.

Reads: transcripts. Writes: an analysis of `analysis_type` for each of their dialogs. Needs: conserver[openai].
"""

import time
from typing import Any

from pydantic import Field

from conserver import Vcon, filters, media, models, telemetry, vcons
from conserver.errors import OutboundError


class Options(models.ModelOptions, filters.Filters):
    """What to ask, of whom, about which vCons."""

    prompt: str = Field(default="", description="What to ask; the text follows it.")
    system_prompt: str = Field(default="You are a helpful assistant.", description="Who the model is to be.")
    analysis_type: str = Field(default="summary", description="Type of the analysis that is added.")
    source: media.Source = Field(default=media.Source(), description="Where the text comes from.")


def run(vcon_uuid: str, link_name: str, opts: Options) -> str | None:
    """Add the missing analyses; returns the UUID, raises OutboundError when the model gives no answer."""
    vcon = vcons.get(vcon_uuid)
    if not filters.selected(opts, vcon, link_name):
        return vcon_uuid
    for dialog, text in media.texts(vcon, opts.source, without=_answered(vcon, opts)):
        answer = _ask(vcon_uuid, link_name, text, opts)
        with vcons.edit(vcon_uuid) as current:
            if dialog in _answered(current, opts):  # by somebody else, while we waited for the model
                continue
            current.add_analysis(
                type=opts.analysis_type,
                dialog=dialog,
                vendor=models.vendor_of(opts),
                body=answer,
                extra={"vendor_schema": {"model": opts.model, "prompt": opts.prompt}},
            )
    return vcon_uuid


def _ask(vcon_uuid: str, link_name: str, text: str, opts: Options) -> str:
    messages = [
        {"role": "system", "content": opts.system_prompt},
        {"role": "user", "content": f"{opts.prompt}\n\n{text}"},
    ]
    started = time.monotonic()
    try:
        answer = models.chat(opts, messages, vcon_uuid=vcon_uuid, sub_type="ANALYZE")
    except OutboundError:
        telemetry.count("conserver.link.openai.analysis_failures", link=link_name, analysis_type=opts.analysis_type)
        raise
    secs = time.monotonic() - started
    telemetry.observe("conserver.link.openai.analysis_time", secs, link=link_name, analysis_type=opts.analysis_type)
    return answer.text


def _answered(vcon: Vcon, opts: Options) -> list[Any]:
    return [entry.get("dialog") for entry in vcon.analysis if entry.get("type") == opts.analysis_type]
