"""YAML text -> plain values, with the line and column of every key and value.

Scalars are read by the rules of YAML 1.2: `yes`, `no`, `on` and `off` are text, and so are `1:30` and dates; `0o644` is
an octal number, `0644` an error that says how to write it. Keys are always text. `${VAR}` and `${VAR:-default}` are
replaced in scalars that are parsed already, so that no variable can change the structure; `$$` is a dollar.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import yaml

from conserver.findings import Findings, Path, Substituted, is_secret, shown

MAX_VALUES = 200_000
"""Values of one file, those of an alias counted wherever it is used: the end of a "billion laughs" file."""
MAX_DEPTH = 100

_PLAIN = "!plain"
_TAG = "tag:yaml.org,2002:"
_NULLS = {"", "~", "null", "Null", "NULL"}
_BOOLS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_AMBIGUOUS = re.compile(r"([-+]?)0+([0-9]+)\Z")
_INT = re.compile(r"[-+]?[0-9]+\Z")
_BASED = re.compile(r"0o[0-7]+\Z|0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z")
_SPECIAL = re.compile(r"([-+]?)\.(?:inf|Inf|INF)\Z|\.(?:nan|NaN|NAN)\Z")
_VARIABLE = re.compile(
    r"\$(?:(?P<dollar>\$)|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}|(?P<bad>\{))"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff\ufffe\uffff]")

_ADVICE = {
    "mapping values are not allowed in this context": "put quotes around a value that contains ': '",
    "found unexpected end of stream": "it is never closed",
    "found character that cannot start any token": "put quotes around a value that begins with it",
    "found undefined alias": "a value that begins with * needs quotes, or its anchor (&name) is missing above",
    "did not find expected ',' or '}'": "it is not closed, or a ${VAR} in it needs quotes",
    "did not find expected ',' or ']'": "it is not closed, or a ${VAR} in it needs quotes",
    "did not find expected key": "the lines of one mapping begin in the same column",
    "did not find expected '-' indicator": "the items of one list begin in the same column",
}


class _Loader(yaml.CSafeLoader):
    pass


# PyYAML resolves scalars by YAML 1.1. Under a tag of our own, plain scalars come as the text they were written as.
_Loader.yaml_implicit_resolvers = {}
_Loader.add_implicit_resolver(_PLAIN, re.compile(""), None)


class _TooMuch(Exception):
    """The file goes deeper, or with its aliases is larger, than any config."""


def read_yaml(text: str, env: Mapping[str, str] | None, findings: Findings) -> Any:
    """Read one YAML document; None for an empty one.

    Without *env* what has a `$` stays as it is written, as `Substituted`, which knows whether it was a plain `${VAR}`.
    Sets `findings.places` and notes what is wrong. After a `syntax` finding the result is None.
    """
    if control := _CONTROL.search(text):
        line = text.count("\n", 0, control.start()) + 1
        column = control.start() - text.rfind("\n", 0, control.start())
        findings.at("syntax", line, column, f"control character U+{ord(control[0]):04X}: delete it")
        return None
    try:
        _check_depth(text)
        root = yaml.compose(text, _Loader)
        return None if root is None else _Reader(env, findings).value(root, ())
    except yaml.MarkedYAMLError as error:
        _note_syntax(error, text, findings)
    except _TooMuch as error:
        findings.at("syntax", 1, 1, str(error))
    return None


def resolve(text: str) -> Any:
    """Give what a plain scalar means in YAML 1.2. What has a leading zero stays text."""
    if len(text) > 300:
        return text  # no number that anybody means
    if text in _NULLS:
        return None
    if text in _BOOLS:
        return _BOOLS[text]
    if _AMBIGUOUS.match(text):
        return text
    if _BASED.match(text):
        return int(text, 0)
    if _INT.match(text):
        return int(text)
    if _FLOAT.match(text):
        return float(text)
    if special := _SPECIAL.match(text):
        return float("nan") if special[1] is None else float(f"{special[1]}inf")
    return text


def reads_as_text(text: str) -> bool:
    """Say whether a plain scalar of this text means the text, and not a number or nothing or a mistake."""
    return not _AMBIGUOUS.match(text) and isinstance(resolve(text), str)


def _check_depth(text: str) -> None:
    # compose() recurses in C and takes the process down on deep nesting, so the flat stream of events goes first.
    depth = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise _TooMuch(f"nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _note_syntax(error: yaml.MarkedYAMLError, text: str, findings: Findings) -> None:
    problem, mark = error.problem or "not YAML", error.problem_mark or error.context_mark
    lines = text.splitlines()
    if error.context_mark and mark and (mark.line >= len(lines) or "end of stream" in problem):
        mark = error.context_mark  # the place where the unfinished thing begins says more than the end of the file
    line, column = (mark.line, mark.column) if mark else (0, 0)
    before = lines[line][: column + 1] if line < len(lines) else ""
    if "\t" in before and not before.strip():
        findings.at("syntax", line + 1, before.index("\t") + 1, "a tab: YAML is indented with spaces")
        return
    if problem == "but found another document":
        problem = "a second document begins here; the config is one, so delete the line '---'"
    elif error.context:
        problem = f"{error.context}: {problem}"
    advice = _ADVICE.get(error.problem or "")
    findings.at("syntax", line + 1, column + 1, f"{problem}; {advice}" if advice else problem)


class _Reader:
    def __init__(self, env: Mapping[str, str] | None, findings: Findings) -> None:
        self._env = env
        self._findings = findings
        self._places = findings.places
        self._count = 0
        self._open: set[int] = set()

    def value(self, node: yaml.Node, path: Path) -> Any:
        self._places.values[path] = _place(node)
        self._count_one()
        if isinstance(node, yaml.ScalarNode):
            scalar = self._scalar(node, path)
            if isinstance(scalar, Substituted) and scalar.hidden:
                self._places.hidden.add(path)
            return scalar
        if node.tag not in (f"{_TAG}map", f"{_TAG}seq"):
            self._refuse_tag(node)
        if id(node) in self._open:
            self._findings.at("bad-value", *_place(node), "the alias in here refers to what it stands in")
            return None
        self._open.add(id(node))
        result: Any
        if isinstance(node, yaml.MappingNode):
            result = {}
            for key, (key_node, value_node) in self._pairs(node).items():
                self._places.keys[(*path, key)] = _place(key_node)
                result[key] = self.value(value_node, (*path, key))
        else:
            result = [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        self._open.discard(id(node))
        return result

    def _pairs(self, node: yaml.MappingNode) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            self._count_one()
            if not isinstance(key_node, yaml.ScalarNode):
                self._findings.at("wrong-type", *_place(key_node), "a key must be text, not a list or a mapping")
                continue
            key = key_node.value
            line, column = _place(key_node)
            if key in seen:
                message = f"key {key!r} is here a second time; the first is in line {seen[key]}"
                self._findings.at("duplicate-key", line, column, message)
                continue
            seen[key] = line
            if key_node.tag == _PLAIN and _AMBIGUOUS.match(key):
                self._findings.at("bad-value", line, column, f'key {key} has a leading zero; write "{key}"')
            if key == "<<" and key_node.tag == _PLAIN:
                for name, pair in self._merged(value_node).items():
                    merged.setdefault(name, pair)
            else:
                own[key] = (key_node, value_node)
        return {**merged, **own}

    def _merged(self, node: yaml.Node) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        pairs: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if not isinstance(source, yaml.MappingNode):
                self._findings.at("wrong-type", *_place(source), "'<<' takes a mapping, or a list of mappings")
            elif id(source) in self._open:
                self._findings.at("bad-value", *_place(source), "the alias in here refers to what it stands in")
            else:
                self._open.add(id(source))
                for name, pair in self._pairs(source).items():
                    pairs.setdefault(name, pair)
                self._open.discard(id(source))
        return pairs

    def _scalar(self, node: yaml.ScalarNode, path: Path) -> Any:
        text: str = node.value
        plain = node.tag == _PLAIN
        if "$" in text and _VARIABLE.search(text):
            return self._substituted(node, whole=plain)
        if not plain:
            return self._tagged(node, path)
        if ambiguous := _AMBIGUOUS.match(text):
            sign, digits = ambiguous.groups()
            octal = f"{sign}0o{digits} (octal), " if not re.search("[89]", digits) else ""
            cure = f'{text} has a leading zero; write {octal}{sign}{digits} (decimal) or "{text}" (text)'
            if is_secret(path):
                cure = "a number with a leading zero; put it in quotes if it is text"
            self._findings.at("bad-value", *_place(node), cure)
            return text
        return resolve(text)

    def _tagged(self, node: yaml.ScalarNode, path: Path) -> Any:
        text: str = node.value
        if node.tag in (f"{_TAG}str", "!"):
            return text
        value = resolve(text)
        kinds: dict[str, Any] = {"int": int, "float": int | float, "bool": bool, "null": type(None)}
        kind = kinds.get(node.tag.removeprefix(_TAG))
        if kind is None:
            self._refuse_tag(node)
        elif not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            self._findings.at("bad-value", *_place(node), f"{shown(text, path)} is no {node.tag.removeprefix(_TAG)}")
        return value

    def _substituted(self, node: yaml.ScalarNode, *, whole: bool) -> str:
        env = self._env
        if env is None:
            return Substituted(node.value, whole=whole and bool(_VARIABLE.fullmatch(node.value)))
        hidden = False
        variables = 0

        def replace(match: re.Match[str]) -> str:
            nonlocal hidden, variables
            name, default = match["name"], match["default"]
            if match["dollar"]:
                return "$"
            if match["bad"]:
                message = "'${' without the name of a variable and a '}'; write $${ for these two characters"
                self._findings.at("bad-value", *_place(node), message)
                return ""
            variables += 1
            if env.get(name) or (name in env and default is None):
                hidden = True
                return env[name]
            if default is None:
                message = f"environment variable {name} is not set; set it, or write ${{{name}:-default}}"
                self._findings.at("missing-env", *_place(node), f"{message} ($${{{name}}} if it is no variable)")
                return ""
            return str(default)

        text = _VARIABLE.sub(replace, node.value)
        if not variables:
            return text
        return Substituted(text, whole=whole and bool(_VARIABLE.fullmatch(node.value)), hidden=hidden)

    def _refuse_tag(self, node: yaml.Node) -> None:
        tag = node.tag.replace(_TAG, "!!")
        self._findings.at("bad-value", *_place(node), f"tag {tag} is not supported; write the value without it")

    def _count_one(self) -> None:
        self._count += 1
        if self._count > MAX_VALUES:
            raise _TooMuch(f"more than {MAX_VALUES:,} values, aliases counted wherever they are used; split the config")


def _place(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1
