"""Show a language model the whole vCon, and keep the JSON object that it answers with as an analysis.

The model gets `system_prompt`, and `prompt`, an empty line and the vCon as JSON. Its answer has to be a JSON object;
one that is not is asked for once more, and then fails the link. It becomes an analysis of `analysis_type` for the
first dialog. A vCon that has an analysis of that type is skipped, whoever made it.

What stands in a vCon is material. Where its text repeats `system_prompt`, as it does after a former analysis or when
somebody means to speak with the voice of this link, those words are left out of what the model gets, and the log has
a warning. The vCon itself keeps them.

A signed or encrypted vCon cannot hold the answer: VconSealed, before anything is paid for.

Reads: the whole vCon. Writes: an analysis of `analysis_type`. Needs: conserver[openai].
"""

import json
import logging
import time
from pathlib import Path
from typing import Any

from pydantic import Field, RootModel

from conserver import Vcon, VconSealed, filters, models, telemetry, vcons
from conserver.errors import OutboundError

log = logging.getLogger(__name__)

PROMPT = Path(__file__).with_name("prompt.md").read_text(encoding="utf-8").strip()
LEFT_OUT = "[left out]"
# A shorter one is a word or two that occur anywhere.
SHORTEST_GUARDED = 16


class Options(models.ModelOptions, filters.Filters):
    """What to ask, of whom, about which vCons."""

    prompt: str = Field(default=PROMPT, description="What to ask; the vCon follows it. It has to ask for JSON.")
    system_prompt: str = Field(
        default="You analyse the records of conversations, and answer with JSON.",
        description="Who the model is to be; it is left out of the vCon that is sent.",
    )
    analysis_type: str = Field(default="json_analysis", description="Type of the analysis that is added.")
    remove_body_properties: bool = Field(
        default=True, description="Leave out the bodies of dialogs (audio, mostly) of what is sent."
    )


class Answer(RootModel[dict[str, Any]]):
    """What the model is to answer: any object."""


def run(vcon_uuid: str, link_name: str, opts: Options) -> str | None:
    """Add the analysis; returns the UUID, raises OutboundError when the model gives no answer, or no JSON."""
    vcon = vcons.get(vcon_uuid)
    if not filters.selected(opts, vcon, link_name) or vcon.find_analysis_by_type(opts.analysis_type):
        return vcon_uuid
    if vcon.sealed:
        raise VconSealed(f"vCon {vcon_uuid} is {vcon.form}: link {link_name!r} cannot add an analysis to it")
    answer = _ask(vcon_uuid, link_name, _shown(vcon, link_name, opts), opts)
    with vcons.edit(vcon_uuid) as current:
        if not current.find_analysis_by_type(opts.analysis_type):  # somebody may have, while we waited for the model
            schema = {"model": opts.model, "prompt": opts.prompt, "system_prompt": opts.system_prompt}
            current.add_analysis(
                type=opts.analysis_type,
                dialog=0 if current.dialog else None,
                vendor=models.vendor_of(opts),
                body=answer,
                encoding="json",
                extra={"vendor_schema": schema},
            )
    return vcon_uuid


def _ask(vcon_uuid: str, link_name: str, text: str, opts: Options) -> str:
    messages = [
        {"role": "system", "content": opts.system_prompt},
        {"role": "user", "content": f"{opts.prompt}\n\n{text}"},
    ]
    labels = {"link": link_name, "analysis_type": opts.analysis_type}
    started = time.monotonic()
    try:
        parsed = models.chat_json(opts, messages, Answer, vcon_uuid=vcon_uuid, sub_type="ANALYZE_VCON")
    except OutboundError as error:
        if isinstance(error, models.InvalidAnswer):
            telemetry.count("conserver.link.openai.invalid_json", **labels)
        telemetry.count("conserver.link.openai.analysis_failures", **labels)
        raise
    telemetry.observe("conserver.link.openai.analysis_time", time.monotonic() - started, **labels)
    return parsed.json


def _shown(vcon: Vcon, link_name: str, opts: Options) -> str:
    """Return the JSON of the vCon as the model gets it."""
    document = vcon.to_dict()
    if opts.remove_body_properties:
        for dialog in document.get("dialog") or []:
            dialog.pop("body", None)
            dialog.pop("encoding", None)
    prompt = opts.system_prompt.strip()
    if len(prompt) < SHORTEST_GUARDED:
        return Vcon(document).dumps()
    # Bodies of older vCons are the text of JSON, with its quotation marks and line breaks escaped.
    spellings = {prompt, json.dumps(prompt)[1:-1], json.dumps(prompt, ensure_ascii=False)[1:-1]}
    guarded = _without(document, spellings)
    if guarded != document:
        log.warning("link %s: the vCon repeats the system prompt, which is left out of what is sent", link_name)
    return Vcon(guarded).dumps()


def _without(value: Any, texts: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(below, texts) for key, below in value.items()}
    if isinstance(value, list):
        return [_without(below, texts) for below in value]
    if isinstance(value, str):
        for text in texts:
            value = value.replace(text, LEFT_OUT)
    return value
