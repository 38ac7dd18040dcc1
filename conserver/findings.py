"""What `conserver check` finds: the rules, a finding, and the collector that knows positions and keeps secrets."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import quote

from conserver.errors import ConfigError

Level = Literal["error", "warning"]
Path = tuple[str | int, ...]

RULES: Mapping[str, Level] = {
    "syntax": "error",
    "duplicate-key": "error",
    "missing-field": "error",
    "wrong-type": "error",
    "bad-value": "error",
    "unknown-link": "error",
    "unknown-storage": "error",
    "unknown-tracer": "error",
    "missing-env": "error",
    "import-failed": "error",
    "missing-package": "error",
    "no-run": "error",
    "bad-options": "error",
    "bad-schedule": "error",
    "unknown-field": "warning",
    "unknown-option": "warning",
    "unused-link": "warning",
    "unused-storage": "warning",
    "no-ingress": "warning",
    "shared-ingress": "warning",
    "never-expires": "warning",
    "now-enforced": "warning",
    "egress-without-consumer": "warning",
    "chain-feeds-itself": "warning",
    "deprecated": "warning",
    "not-built": "warning",
}
"""Every rule by its id, each with a section in docs/reference/check.md."""

MEANINGS: Mapping[str, str] = {
    "syntax": "the file cannot be read as YAML",
    "duplicate-key": "a mapping has the same key twice",
    "missing-field": "something that cannot be left out is not there",
    "wrong-type": "a value is of another type than it must be",
    "bad-value": "a value is of the right type, and makes no sense",
    "unknown-link": "a chain uses a link that is not defined",
    "unknown-storage": "a chain uses a storage that is not defined",
    "unknown-tracer": "a chain uses a tracer that is not defined",
    "missing-env": "an environment variable that the file uses is not set",
    "import-failed": "a module is not there, or fails when it is imported",
    "missing-package": "a module needs a package that is not installed",
    "no-run": "a module lacks the function of a link or a storage",
    "bad-options": "the options of a component are not what it takes",
    "bad-schedule": "a schedule is no cron expression of five fields",
    "unknown-field": "a key means nothing",
    "unknown-option": "a component does not have this option",
    "unused-link": "a link is in no chain",
    "unused-storage": "a storage is in no chain",
    "no-ingress": "a chain has no list to take vCons from",
    "shared-ingress": "two chains read one list, and only the last gets anything",
    "never-expires": "no storage of a chain can give a vCon back, so its vCons stay in Redis",
    "now-enforced": "the existing conserver ignores what is said here, and this one does it",
    "egress-without-consumer": "no chain reads an egress list that is called nearly like one that is read",
    "chain-feeds-itself": "a vCon comes back to the chain that it was pushed from",
    "deprecated": "an old way to write something, which is understood",
    "not-built": "something that comes with a later version",
}
"""Every rule in one sentence."""

_SECRET_NAME = re.compile(r"key|token|secret|passw|credential|biscuit|\b(.*_)?auth(orization)?\b", re.IGNORECASE)
_USERINFO = re.compile(r"(?<=//)[^/@\s]+(?=@)")
HIDDEN = "***"


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of `conserver check`; `str()` is the line that people and editors read."""

    file: str
    line: int
    column: int
    level: Level
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.level}[{self.rule}] {self.message}"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a component; `path` leads from its entry in the config to the place."""

    rule: str
    message: str
    path: Path = ("module",)
    on_key: bool = False


class ComponentError(ConfigError):
    """A component cannot be used; `problems` says the same piece by piece."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("; ".join(problem.message for problem in problems if RULES[problem.rule] == "error"))
        self.problems = problems


@dataclass(frozen=True, slots=True)
class Remark:
    """What is said about a config that a client sends; `pointer` is the JSON pointer of the place in it."""

    pointer: str
    level: Level
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.pointer or '/'}: {self.message}"


class ConfigRefused(ConfigError):
    """A config that a client sends cannot be used; `remarks` says the same place by place, warnings included."""

    def __init__(self, remarks: Iterable[Remark]) -> None:
        self.remarks = tuple(remarks)
        super().__init__("; ".join(str(remark) for remark in self.remarks if remark.level == "error"))


class Substituted(str):
    """Text of the config in which `${VAR}` was replaced.

    `whole` says that the scalar was an unquoted `${VAR}` and nothing else, so that it may stand for a number or a
    boolean; `hidden`, that a part of it came from the environment and must not be shown.
    """

    whole: bool
    hidden: bool

    def __new__(cls, text: str, *, whole: bool = False, hidden: bool = False) -> Substituted:
        self = super().__new__(cls, text)
        self.whole = whole
        self.hidden = hidden
        return self


@dataclass(frozen=True, slots=True)
class Places:
    """Where each key and each value of the file is: (line, column), both from 1."""

    values: dict[Path, tuple[int, int]] = field(default_factory=dict)
    keys: dict[Path, tuple[int, int]] = field(default_factory=dict)
    hidden: set[Path] = field(default_factory=set)
    """Values of which a part came from the environment."""

    def of_value(self, path: Path) -> tuple[int, int]:
        """Give the place of the value, or of the nearest thing around it that is in the file."""
        return self.values[path] if path in self.values else self.of_key(path)

    def of_key(self, path: Path) -> tuple[int, int]:
        """Give the place of the key, or of the nearest thing around it that is in the file."""
        while path:
            for places in (self.keys, self.values):
                if path in places:
                    return places[path]
            path = path[:-1]
        return (1, 1)


class Findings:
    """Collects the findings of one file."""

    def __init__(self, file: str, places: Places | None = None) -> None:
        self.file = file
        self.places = places or Places()
        self._found: dict[Finding, None] = {}
        self._unreadable: set[tuple[int, int]] = set()
        self._refused: set[Path] = set()

    def at(self, rule: str, line: int, column: int, message: str) -> None:
        """Note a scalar or a piece of syntax that cannot be read; no more errors are noted at that place."""
        self._unreadable.add((line, column))
        self._note(rule, line, column, message)

    def value(self, rule: str, path: Path, message: str) -> None:
        """Note a finding about a value."""
        if RULES[rule] == "error":
            self._refused.add((path[0], path[2]) if len(path) > 2 else path)
        place = self.places.of_value(path)
        # A value that could not be read stands in as text: what else is wrong with that text helps nobody.
        if place not in self._unreadable or RULES[rule] == "warning":
            self._note(rule, *place, message)

    def key(self, rule: str, path: Path, message: str) -> None:
        """Note a finding about a key, or about all that stands under it."""
        self._note(rule, *self.places.of_key(path), message)

    def refused(self, section: str, field: str) -> bool:
        """Say whether an error was noted about this field of any entry, so that what follows from it goes unsaid."""
        return (section, field) in self._refused

    def shown(self, value: Any, path: Path) -> str:
        """Show a value in a message, unless it is a secret or came from the environment."""
        return HIDDEN if path in self.places.hidden else shown(value, path)

    def sorted(self) -> list[Finding]:
        return sorted(self._found, key=lambda found: (found.line, found.column, found.level, found.rule, found.message))

    def _note(self, rule: str, line: int, column: int, message: str) -> None:
        self._found[Finding(self.file, line, column, RULES[rule], rule, one_line(message))] = None


def has_errors(findings: Iterable[Finding]) -> bool:
    return any(finding.level == "error" for finding in findings)


def one_line(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in " ".join(text.split()))


def pointer(path: Path) -> str:
    """Write a path as a JSON pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def did_you_mean(name: object, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Give the end of a message that names the nearest known name; empty when there is none."""
    if not isinstance(name, str) or (isinstance(name, Substituted) and name.hidden):
        return ""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def is_secret(path: Path) -> bool:
    """Say whether a value is a secret by the name of its field, or lies inside one."""
    # The second part of a long path is the name that somebody gave a link or a chain.
    fields = path if len(path) <= 2 else path[:1] + path[2:]
    return any(isinstance(part, str) and _SECRET_NAME.search(part) for part in fields)


def shown(value: Any, path: Path = ()) -> str:
    """Show a value in a message, unless it is a secret or came from the environment."""
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    if value is None:
        return "nothing"
    if (isinstance(value, Substituted) and value.hidden) or is_secret(path):
        return HIDDEN
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(_without_passwords(value)) if isinstance(value, str) else str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def quotable(text: str) -> str:
    """Return a text as a message may quote it, whole: without the user and password of a URL in it.

    Nothing is left of one that came from the environment.
    """
    return HIDDEN if isinstance(text, Substituted) and text.hidden else _without_passwords(text)


#: A password in a URL, and what stands behind such a name in a URL or a connection string.
_INSIDE = re.compile(
    r"://[^/@\s:]*:([^@/\s]+)@|(?:password|passwd|pwd|secret|token|key|credential)s?=([^&;\s'\"]+)", re.IGNORECASE
)


def _without_passwords(text: str) -> str:
    return _INSIDE.sub(lambda match: match[0].replace(match[1] or match[2], HIDDEN), _USERINFO.sub(HIDDEN, text))


def secrets_of(value: Any, path: Path = ()) -> set[str]:
    """Collect the texts inside `value` that no message may show."""
    if isinstance(value, Mapping):
        return set().union(*(secrets_of(item, (*path, str(key))) for key, item in value.items()))
    if isinstance(value, list | tuple):
        return set().union(*(secrets_of(item, (*path, index)) for index, item in enumerate(value)))
    if value is None or isinstance(value, bool):
        return set()
    if shown(value, path) == HIDDEN:
        return {str(value)}
    return {found for groups in _INSIDE.findall(str(value)) for found in groups if found}


def without(secrets: Iterable[str], text: str) -> str:
    """Take secrets out of a text that we did not write ourselves, such as the message of somebody's exception."""
    for secret in sorted(secrets, key=len, reverse=True):
        # Shorter ones would tear words apart that only look like them.
        if len(secret) >= 4:
            text = text.replace(secret, HIDDEN).replace(quote(secret, safe=""), HIDDEN)
    return text
