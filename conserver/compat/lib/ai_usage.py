"""`lib.ai_usage`: reports of what a call to a paid service cost."""

from __future__ import annotations

from pydantic import SecretStr

from conserver.usage import UsageOptions, report_units


def send_ai_usage_data_for_tracking(
    vcon_uuid: str,
    input_units: float,
    output_units: float,
    unit_type: str,
    type: str,
    send_ai_usage_data_to_url: str | None,
    ai_usage_api_token: str | None,
    model: str,
    sub_type: str | None = None,
) -> None:
    """POST a report if there is an URL. One that fails is logged and forgotten: what was paid for is kept.

    The report's own *type* is always VCON_PROCESSING.
    """
    where = UsageOptions(
        send_ai_usage_data_to_url=send_ai_usage_data_to_url or "",
        ai_usage_api_token=SecretStr(ai_usage_api_token or ""),
    )
    report_units(
        where,
        model=model,
        unit_type=unit_type,
        input_units=input_units,
        output_units=output_units,
        vcon_uuid=vcon_uuid,
        sub_type=sub_type or type,
    )
