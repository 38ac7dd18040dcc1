"""What calls to paid services cost, reported to where the options say, and which options may be shown."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from conserver import outbound
from conserver.errors import OutboundError
from conserver.outbound import Limits

log = logging.getLogger(__name__)

#: A link waits for its report with an answer in hand that is paid for and not saved yet.
_REPORT_SECS = 5.0


def plain_key(value: Any) -> Any:
    """Return what an option for a key was given as: stripped, and empty for null; for validators of options."""
    # A line break at the end is what keys get on their way through files and environment variables.
    return value.strip() if isinstance(value, str) else SecretStr("") if value is None else value


class UsageOptions(BaseModel):
    """Where to report what a call to a paid service cost."""

    model_config = ConfigDict(populate_by_name=True, hide_input_in_errors=True)

    send_ai_usage_data_to_url: str = Field(default="", description="Where to POST what each call cost.")
    ai_usage_api_token: SecretStr = Field(default=SecretStr(""), description="Bearer token for that.")

    @field_validator("send_ai_usage_data_to_url", mode="before")
    @classmethod
    def _null_is_nowhere(cls, value: Any) -> Any:
        return "" if value is None else value

    @field_validator("ai_usage_api_token", mode="before")
    @classmethod
    def _null_is_no_token(cls, value: Any) -> Any:
        return plain_key(value)


def report_units(
    options: UsageOptions,
    *,
    model: str,
    unit_type: str,
    input_units: float,
    output_units: float,
    vcon_uuid: str,
    sub_type: str,
) -> None:
    """POST what a call cost. A report that fails is logged and forgotten: the answer is paid for, and is kept."""
    if not options.send_ai_usage_data_to_url:
        return
    report = {
        "created_at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "record_id": vcon_uuid,
        "type": "VCON_PROCESSING",
        "sub_type": sub_type,
        "unit_type": unit_type,
        "input_units": input_units,
        "output_units": output_units,
        "ai_model": model,
    }
    token = options.ai_usage_api_token.get_secret_value()
    try:
        outbound.request(
            "POST",
            options.send_ai_usage_data_to_url,
            trusted=True,
            headers={
                "Content-Type": "application/json",
                **({"Authorization": f"Bearer {token}"} if token else {}),
            },
            body=json.dumps(report).encode(),
            limits=Limits(total_secs=_REPORT_SECS),
        )
    except OutboundError as error:
        log.warning("the usage of a model call is not reported: %s", error)


def safe_options(options: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that may be logged or stored in a vCon: all but those that may be secret, by name."""
    values = options.model_dump(mode="json") if isinstance(options, BaseModel) else options
    return {
        name: safe_options(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
        if not outbound.is_sensitive(name) and name != "send_ai_usage_data_to_url"
    }
