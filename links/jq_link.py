"""Let vCons through, or stop them, by a jq filter.

The filter sees the whole vCon as it is stored. Its first output decides: null, false or no output at all is no match,
everything else is one. An attachment or analysis body that is JSON comes as JSON; those that older writers stored as
text need `fromjson`.

An error of the filter on a vCon is a dead letter that says which, not a silent stop. One is mended: where a function
"requires string inputs" and a list body holds other things too, the filter is tried once more without these.

Of a signed or encrypted vCon the filter sees the envelope.

Reads: the whole vCon. Writes: nothing. Needs: conserver[jq].
"""

from functools import cache
from typing import Any

from pydantic import BaseModel, Field, model_validator

from conserver import LinkError, Vcon, telemetry, vcons


class Options(BaseModel):
    """What to look for."""

    filter: str = Field(
        default=".",
        description="The jq program. Its first output decides: `null`, `false` or no output is no match, everything "
        "else is one.",
    )
    forward_matches: bool = Field(
        default=True, description="True lets vCons that match go on; false lets those go on that do not."
    )

    @model_validator(mode="after")
    def _compiles(self) -> "Options":
        _compiled(self.filter)
        return self


def run(vcon_uuid: str, link_name: str, opts: Options) -> str | None:
    """Go on with the vCon if it matches, or if it does not, as the options say."""
    vcon = vcons.get(vcon_uuid)
    try:
        matches = _matches(vcon, link_name, opts.filter)
    except ValueError as error:
        telemetry.count("conserver.link.jq.filter_errors", link=link_name)
        raise LinkError(f"jq filter {opts.filter!r}: {error}") from error
    if matches == opts.forward_matches:
        return vcon_uuid
    telemetry.count("conserver.link.jq.vcon_filtered_out", link=link_name)
    return None


@cache
def _compiled(text: str) -> Any:
    # Not at the top, so that the page and the options of this link can be shown where jq is not installed.
    try:
        import jq  # type: ignore[import-not-found]
    except ImportError as error:
        raise ValueError("the package jq is missing (pip install 'conserver[jq]')") from error
    try:
        return jq.compile(text)
    except ValueError as error:
        reason = str(error).partition("\n")[0].removeprefix("jq: error: ")
        raise ValueError(f"{text!r} is no jq program: {reason}") from error


def _matches(vcon: Vcon, link_name: str, text: str) -> bool:
    try:
        return _first_is_true(text, vcon)
    except ValueError as error:
        mended = _only_strings_in_bodies(vcon.document)
        if "requires string inputs" not in str(error) or mended == vcon.document:
            raise
        telemetry.count("conserver.link.jq.string_body_array_retries", link=link_name)
        return _first_is_true(text, Vcon(mended))


def _first_is_true(text: str, vcon: Vcon) -> bool:
    output = next(iter(_compiled(text).input_text(vcon.dumps())), None)
    return output is not None and output is not False


def _only_strings_in_bodies(value: Any) -> Any:
    """Return a copy in which lists under the key `body` hold nothing but their strings."""
    if isinstance(value, list):
        return [_only_strings_in_bodies(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key: [item for item in below if isinstance(item, str)]
        if key == "body" and isinstance(below, list)
        else _only_strings_in_bodies(below)
        for key, below in value.items()
    }
