"""What a jq filter or a JSONPath finds in a JSON text. Both are programs of a client's, so they run elsewhere.

They have a process of their own, which has no environment and can open no file, for so much time and memory.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from typing import Any, Literal

from conserver.errors import ConserverError
from conserver.isolation import Tell, call

Language = Literal["jq", "jsonpath"]
Reason = Literal["invalid-filter", "too-slow", "too-large"]

LIMIT_SECS = 5.0
MOST_MEMORY_BYTES = 1024 * 1024 * 1024
_MODULE = re.compile(r"module not found|error loading data file|paths to modules")
#: Of all results together.
MOST_BYTES = 16 * 1024 * 1024
#: Python itself may need these to start.
_KEPT = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME")
_SURROGATE = re.compile(rb"\\u[dD][89abAB]")


class NotExtracted(ConserverError):
    """A filter that is wrong, or that needs more than it may have; `reason` says which."""

    def __init__(self, reason: Reason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def is_installed(language: Language) -> bool:
    """Say whether the package of that language is there: `pip install 'conserver[<language>]'` brings it."""
    return importlib.util.find_spec(language) is not None


def extract(language: Language, program: str, text: bytes) -> bytes:
    """Return the JSON array of all that *program* finds in the JSON *text*; raise NotExtracted.

    Numbers stay as they are written, but those with a fraction in a JSONPath are doubles.
    """
    env = {name: os.environ[name] for name in _KEPT if name in os.environ}
    told, died = call(_work, (language, program, text), limit_secs=LIMIT_SECS, env=env)
    if died is not None:
        if died.reason.startswith("takes longer") or "SIGXCPU" in died.reason or "SIGALRM" in died.reason:
            raise NotExtracted("too-slow", f"it takes longer than {LIMIT_SECS:g} s: ask for less")
        # Where C code finds no memory, it aborts.
        raise _too_large(f"its process {died.reason}")
    [(reason, answer)] = told
    if reason:
        raise NotExtracted(reason, answer)
    return str(answer).encode("utf-8", "replace")


def _too_large(why: str) -> NotExtracted:
    memory, size = MOST_MEMORY_BYTES // 1024**2, MOST_BYTES // 1024**2
    return NotExtracted(
        "too-large", f"it needs more than {memory} MB, or gives more than {size} MB ({why}): ask for less"
    )


def _work(order: tuple[Language, str, bytes], tell: Tell) -> None:
    """Tell what was found, or why not, in the child."""
    language, program, text = order
    try:
        tell(("", _found(language, program, text)))
    except MemoryError:
        refusal = _too_large("there is no memory left")
        tell((refusal.reason, str(refusal)))
    except NotExtracted as error:
        tell((error.reason, str(error)))


def _found(language: Language, program: str, text: bytes) -> str:
    run = {"jq": _jq, "jsonpath": _jsonpath}[language]()
    _confine()
    results, size = [], 0
    try:
        for result in run(program, text):
            results.append(result)
            size += len(result) + 1
            if size > MOST_BYTES:
                raise _too_large("the results")
    except (MemoryError, NotExtracted):
        raise
    except Exception as error:  # noqa: BLE001  whatever a package says of a program or its input
        words = _words(error)
        if _MODULE.search(words):
            # What jq says of them tells which files there are.
            words = "a filter has no modules: leave out import and include"
        raise NotExtracted("invalid-filter", words) from None
    return f"[{','.join(results)}]"


def _words(error: Exception) -> str:
    # The texts of some of these errors cannot be made.
    words = str(error.args[0]) if error.args else type(error).__name__
    return words.removeprefix("jq: error: ").partition("\njq: ")[0][:500]


def _confine() -> None:
    import resource

    os.environ.clear()
    # Neither files nor sockets: jq could read modules and data.
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY_BYTES, MOST_MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (int(LIMIT_SECS) + 1, int(LIMIT_SECS) + 2))


def _jq() -> Any:
    import jq  # type: ignore[import-not-found]

    def run(program: str, text: bytes) -> Iterator[str]:
        if _SURROGATE.search(text):
            # jq refuses half of a pair.
            text = json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace")
        # For its words: in what follows the program stands elsewhere.
        jq.compile(program)
        # jq writes a number as it was written; as a number of Python it would be a double.
        yield from jq.compile(f"({program}\n\n)|tojson").input_text(text.decode())

    return run


def _jsonpath() -> Any:
    from jsonpath import JSONPathEnvironment

    from conserver.vcon_json import dump, load

    env = JSONPathEnvironment(strict=True)

    def run(program: str, text: bytes) -> Iterator[str]:
        for result in env.finditer(program, load(text)):
            yield dump(result.obj).decode()

    return run
