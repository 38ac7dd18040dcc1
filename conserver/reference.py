"""Options as a table of Markdown, for the pages of links and storages."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from conserver.catalogue import Option

#: A default that is longer, such as a prompt, is shown by its beginning.
_MOST = 60


def options_table(options: Sequence[Option]) -> str:
    """Write a table with a row for each option."""
    if not options:
        return "There are no options."
    rows = [(_names(one), one.type, default_text(one, options), one.description) for one in options]
    return table(("option", "type", "default", "what"), rows)


def table(heads: Sequence[str], rows: Iterable[Iterable[str]]) -> str:
    """Write a table of Markdown."""
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join(_cell(text) for text in row)} |" for row in rows]
    return "\n".join(lines)


def default_text(option: Option, among: Iterable[Option]) -> str:
    """Say what an option is when it is left out, as the config would have it, or in a word."""
    if option.required:
        return "required"
    if option.secret or option.default is None:
        return "none"
    if any(other.name.startswith((f"{option.name}.", f"{option.name}[].")) for other in among):
        return "as below"
    return "empty" if option.default in ("", [], {}) else f"`{_as_in_config(option.default)}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _names(option: Option) -> str:
    others = ", ".join(f"`{name}`" for name in option.aliases)
    return f"`{option.name}`{f' (or {others})' if others else ''}"


def _as_in_config(value: Any) -> str:
    if isinstance(value, str):
        first = value.strip().partition("\n")[0]
        return value if len(value) <= _MOST and "\n" not in value else f"{first[:_MOST].rstrip()} ..."
    if isinstance(value, float):
        return f"{value:.12g}"
    text = json.dumps(value, ensure_ascii=False)
    return text.replace('"', "") if _is_simple(value) else text


def _is_simple(value: Any) -> bool:
    """Say whether the quotes of JSON may be left out in YAML."""
    texts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return all(isinstance(one, str) and one.replace("_", "").replace("-", "").isalpha() for one in texts)
