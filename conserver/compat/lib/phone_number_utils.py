"""`lib.phone_number_utils`: telephone numbers in one form."""

from __future__ import annotations

import importlib
import re


def get_e164_number(phone_number: str | None) -> str:
    """Return a number as E.164; one without a country is of the US, one of less than 10 characters stays as it is.

    The package `phonenumbers` decides where it is installed; without it a number is taken for valid.
    """
    text = (phone_number or "").strip()
    if len(text) < 10:
        return text
    try:
        phonenumbers = importlib.import_module("phonenumbers")
    except ImportError:
        return _plain(text)
    try:
        parsed = phonenumbers.parse(text, "US")
    except phonenumbers.NumberParseException as error:
        raise ValueError(f"{text!r:.40} is no telephone number: {error}") from error
    return str(phonenumbers.format_number(parsed, phonenumbers.PhoneNumberFormat.E164))


def _plain(text: str) -> str:
    digits = re.sub(r"\D", "", re.split(r"(?i)\s*(?:;|x|ext)", text.removeprefix("tel:"))[0])
    if text.removeprefix("tel:").startswith("+"):
        return f"+{digits}"
    return f"+{digits}" if len(digits) == 11 and digits.startswith("1") else f"+1{digits}"
